"""Who is said to have done what is stored together."""

import asyncio
from functools import partial

from mesh.events.aggregate import Repository
from mesh.events.memory import MemoryEventStore
from mesh.events.store import StreamName
from services.scheduler.domain import decide
from services.scheduler.domain.state import QUEUE_FOLD
from services.scheduler.journal import Journal
from tests.support.events import commits_of
from weft.scheduler.v1 import queues_pb2, tasks_pb2

STREAM = StreamName("scheduler", "acme", ("q",))
SPEC = tasks_pb2.TaskSpec(capability="c")


async def test_a_commit_is_one_actors_doing_and_each_ones_go_together() -> None:
    store = MemoryEventStore()
    aggregate = Repository(store, QUEUE_FOLD).open(STREAM)
    await aggregate.load()
    journal = Journal(aggregate)
    create = partial(decide.create, limits=queues_pb2.QueueLimits())
    await journal.put("", create, actor="ada")

    def submit(number: int, actor: str) -> "asyncio.Future[object]":
        submission = decide.Submission(f"t{number}", SPEC, "", b"", actor)
        change = partial(decide.submit, submission=submission)
        return journal.put(submission.task, change, actor=actor)  # type: ignore[return-value]

    await asyncio.gather(*(submit(number, ("ada", "eve")[number % 2]) for number in range(20)))
    await journal.put("", decide.pause, actor="eve")
    await journal.put("", decide.resume)
    commits = await commits_of(store, STREAM)
    assert [(each.commit.actor, len(each.commit.events)) for each in commits] == [
        *(("ada", 1), ("ada", 10), ("eve", 10), ("eve", 1), ("system", 1))
    ]
