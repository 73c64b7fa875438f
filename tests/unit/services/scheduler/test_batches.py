"""Batches of a queue: how many it remembers, and which items it takes."""

from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.clock import SYSTEM
from mesh.errors import FailedPrecondition, InvalidArgument, LimitExceeded, NotFound
from mesh.events.fold import Place
from mesh.events.store import StreamName
from services.scheduler.domain import batches, decide
from services.scheduler.domain.state import BATCHES_MAX, QueueState, decode, encode, evolve
from services.scheduler.tenant_queue import TenantQueue
from weft.scheduler.v1 import queues_pb2, tasks_pb2

NOW_NS = 1_000_000_000_000


def after(state: QueueState, found: "batches.Facts") -> QueueState:
    for fact in found:
        state = stored(state, fact)
    return state


def stored(state: QueueState, fact: Message) -> QueueState:
    return evolve(state, fact, Place(1, Timestamp()))


def submission(batch: str, index: int) -> decide.Submission:
    spec = tasks_pb2.TaskSpec(capability="c")
    return decide.Submission(f"{batch}-{index}", spec, "", b"", "somebody", batch, index)


@pytest.fixture
def queue() -> QueueState:
    return after(QueueState(), decide.create(QueueState(), queues_pb2.QueueLimits()))


def test_the_oldest_batch_that_is_over_makes_room(queue: QueueState) -> None:
    for number in range(BATCHES_MAX):
        queue = after(queue, batches.create(queue, f"b{number}", 0, "somebody"))
    with pytest.raises(LimitExceeded):
        batches.create(queue, "new", 0, "somebody")
    queue = after(queue, batches.submit(queue, submission("b2", 0), NOW_NS))
    for over in ("b2", "b3", "b4"):
        queue = after(queue, batches.close(queue, over))
    queue = after(queue, batches.create(queue, "new", 0, "somebody"))
    assert {"b2", "b4", "new"} <= set(queue.batches)
    assert "b3" not in queue.batches
    assert len(queue.batches) == BATCHES_MAX
    assert list(decode(encode(queue)).batches) == list(queue.batches)


def test_a_closed_batch_takes_only_what_it_has(queue: QueueState) -> None:
    queue = after(queue, batches.create(queue, "b", 0, "somebody"))
    queue = after(queue, batches.submit(queue, submission("b", 70_000), NOW_NS))
    queue = after(queue, batches.close(queue, "b"))
    assert batches.submit(queue, submission("b", 70_000), NOW_NS) == []
    for index in (0, 69_999, 70_001, 99_999):
        with pytest.raises(FailedPrecondition):
            batches.submit(queue, submission("b", index), NOW_NS)
    with pytest.raises(NotFound):
        batches.submit(queue, submission("other", 0), NOW_NS)


def test_an_item_whose_time_is_over_is_refused_unless_it_was_accepted(queue: QueueState) -> None:
    queue = after(queue, batches.create(queue, "b", 0, "somebody"))
    item = submission("b", 0)
    item.spec.deadline.FromNanoseconds(NOW_NS + 1)
    with pytest.raises(InvalidArgument):
        batches.submit(queue, item, NOW_NS + 2)
    queue = after(queue, batches.submit(queue, item, NOW_NS))
    assert batches.submit(queue, item, NOW_NS + 2) == []


def test_those_that_are_started_in_one_commit_count_against_the_limit(queue: QueueState) -> None:
    queue = after(queue, batches.create(queue, "b", 2, "somebody"))
    for index in range(4):
        queue = after(queue, batches.submit(queue, submission("b", index), NOW_NS))
    started: list[Message] = []
    for index in range(4):
        found = decide.start(queue, f"b-{index}", "w", "i")
        batches.expect(queue, found)
        started += found
    assert len(started) == 2


async def test_what_is_left_of_a_forgotten_batch_holds_up_nobody(queue: QueueState) -> None:
    queue = after(queue, batches.create(queue, "b", 1, "somebody"))
    queue = after(queue, batches.submit(queue, submission("b", 0), NOW_NS))
    stream = StreamName("scheduler", "acme", ("q",))
    aggregate: Any = SimpleNamespace(stream=stream, state=queue)
    order = TenantQueue(aggregate, SYSTEM)
    await order.load()
    aggregate.state = after(queue, decide.cancel(queue, "b-0", "enough"))
    order.refresh("b-0")
    del aggregate.state.batches["b"]
    assert list(order.heads({"c"})) == []
