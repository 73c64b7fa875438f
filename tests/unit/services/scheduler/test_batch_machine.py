"""A queue with batches against a simple model: in its state, in the order of its tasks, and
in the read model."""

import asyncio
import sqlite3
from collections import Counter
from functools import partial
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.clock import SYSTEM
from mesh.errors import WeftError
from mesh.events.fold import Place
from mesh.events.store import StreamName
from mesh.security.sealing import RowSeal
from services.scheduler import batch_rows, read_model
from services.scheduler.domain import batches, decide
from services.scheduler.domain.codes import Code
from services.scheduler.domain.state import (
    CANCELLED,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Entry,
    QueueState,
    decode,
    encode,
    evolve,
)
from services.scheduler.tenant_queue import TenantQueue
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import queues_pb2, tasks_pb2

SECOND = 1_000_000_000
LIMITS = {"free": 0, "one": 1, "two": 2}
STREAM = StreamName("scheduler", "acme", ("q",))
QUEUE = "tenants/acme/queues/q"
ENDS = {
    facts.TaskSucceeded: SUCCEEDED,
    facts.TaskFailed: FAILED,
    facts.TaskCancelled: CANCELLED,
}
names = st.sampled_from(sorted(LIMITS))
indices = st.integers(0, 11)


class Stored:
    """What a TenantQueue needs of its aggregate: a state that is stored."""

    def __init__(self) -> None:
        self.stream = STREAM
        self.state = QueueState()


class Batches(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stored = Stored()
        aggregate: Any = self.stored
        self.queue = TenantQueue(aggregate, SYSTEM)
        self.seal = RowSeal(b"k" * 32, "scheduler")
        self.rows = sqlite3.connect(":memory:")
        self.rows.executescript(read_model.TABLES)
        self.now_ns = 1_000 * SECOND
        self.revision = 0
        self.accepted: dict[str, dict[int, str]] = {}
        self.stands: dict[str, int] = {}
        self.ends: dict[str, list[str]] = {}
        self.do(partial(decide.create, limits=queues_pb2.QueueLimits(open_tasks_max=20)))

    def teardown(self) -> None:
        self.rows.close()

    def do(self, change: Any) -> Any:
        """What the change leads to, stored; None where it is refused."""
        state = self.stored.state
        before = encode(state)
        try:
            found = change(state)
        except WeftError:
            found = None
        assert encode(state) == before, "to decide changes nothing"
        time = Timestamp()
        time.FromNanoseconds(self.now_ns)
        for fact in found or ():
            self.revision += 1
            self.stored.state = evolve(self.stored.state, fact, Place(self.revision, time))
            self.queue.observe(self.revision, time, fact)
            if apply := read_model.APPLY.get(type(fact)):
                apply(read_model.Change(self.rows, self.seal, STREAM, self.now_ns), fact)
            self.note(fact)
        return found

    def note(self, fact: Any) -> None:
        """The model's own account of it."""
        if isinstance(fact, facts.TaskSubmitted):
            assert fact.batch_index not in self.accepted[fact.batch], "accepted twice"
            self.accepted[fact.batch][fact.batch_index] = fact.task
            self.stands[fact.task] = QUEUED
        elif isinstance(fact, facts.TaskStarted):
            self.stands[fact.task] = RUNNING
        elif isinstance(fact, facts.TaskAttemptFailed | facts.TaskReleased | facts.TaskRedriven):
            self.stands[fact.task] = QUEUED
        elif isinstance(fact, facts.TaskDiscarded):
            self.stands[fact.task] = CANCELLED
        elif type(fact) in ENDS:
            self.stands[fact.task] = ENDS[type(fact)]
            self.ends[fact.task.partition("-")[0]].append(fact.task)

    def entry(self, batch: str, index: int) -> Entry | None:
        return self.stored.state.tasks.get(f"{batch}-{index}")

    @rule(batch=names)
    def create(self, batch: str) -> None:
        create = partial(
            batches.create, batch=batch, running_tasks_max=LIMITS[batch], creator="somebody"
        )
        assert bool(self.do(create)) == (batch not in self.accepted)
        self.accepted.setdefault(batch, {})
        self.ends.setdefault(batch, [])
        other = partial(batches.create, batch=batch, running_tasks_max=9, creator="somebody")
        assert self.do(other) is None

    @rule(batch=names, index=indices, attempts=st.integers(1, 2))
    def submit(self, batch: str, index: int, attempts: int) -> None:
        spec = tasks_pb2.TaskSpec(capability="c")
        spec.retry.max_attempts = attempts
        submission = decide.Submission(f"{batch}-{index}", spec, "", b"", "somebody", batch, index)
        known = self.stored.state.batches.get(batch)
        found = self.do(partial(batches.submit, submission=submission, now_ns=self.now_ns))
        if known is None or found is None:
            assert known is None or known.closed or known.cancelled or self.is_full
        elif not found:
            assert index in self.accepted[batch]

    @property
    def is_full(self) -> bool:
        return self.stored.state.open_count >= 20

    @rule()
    def dispatch(self) -> None:
        """As the dispatcher: whatever may be given to a worker is."""
        while heads := list(self.queue.heads({"c"})):
            shape = min(heads)[2]
            task = self.queue.take(shape)
            assert self.do(partial(decide.start, task=task, worker="w", instance="i"))
        self.end_doomed()

    @rule(batch=names, index=indices)
    def start_whatever_the_order_says(self, batch: str, index: int) -> None:
        self.do(partial(decide.start, task=f"{batch}-{index}", worker="w", instance="i"))

    @rule(batch=names, index=indices, well=st.booleans(), final=st.booleans())
    def end(self, batch: str, index: int, well: bool, final: bool) -> None:
        entry = self.entry(batch, index)
        if entry is None or entry.task.state != RUNNING:
            return
        task, attempt = f"{batch}-{index}", entry.attempt
        if well:
            self.do(partial(decide.succeed, task=task, attempt=attempt, result=b"r"))
            return
        code = Code.INVALID_ARGUMENT if final else Code.ABORTED
        failure = decide.Failure(code, "no", 0.0)
        self.do(
            partial(decide.fail, task=task, attempt=attempt, failure=failure, now_ns=self.now_ns)
        )

    @rule(batch=names, index=indices)
    def release(self, batch: str, index: int) -> None:
        entry = self.entry(batch, index)
        attempt = entry.attempt if entry is not None else 1
        self.do(partial(decide.release, task=f"{batch}-{index}", attempt=attempt))

    @rule(batch=names, index=indices)
    def cancel_task(self, batch: str, index: int) -> None:
        self.do(partial(decide.cancel, task=f"{batch}-{index}", reason="enough"))

    @rule(batch=names, index=indices, again=st.booleans())
    def decide_on_a_dead_letter(self, batch: str, index: int, again: bool) -> None:
        task = f"{batch}-{index}"
        change = decide.redrive if again else partial(decide.discard, reason="enough")
        self.do(partial(change, task=task))

    @rule(batch=names)
    def close(self, batch: str) -> None:
        self.do(partial(batches.close, batch=batch))

    @rule(batch=names)
    def cancel(self, batch: str) -> None:
        self.do(partial(batches.cancel, batch=batch, reason="enough"))
        self.end_doomed()

    def end_doomed(self) -> None:
        while doomed := self.queue.doomed(2):
            for task in doomed:
                self.do(partial(batches.cancel_task, task=task))

    @rule()
    def rebuild(self) -> None:
        """As another process that takes over from a snapshot."""
        self.stored.state = decode(encode(self.stored.state))
        aggregate: Any = self.stored
        self.queue = TenantQueue(aggregate, SYSTEM)
        asyncio.run(self.queue.load())
        self.end_doomed()

    @invariant()
    def no_more_run_than_the_limit(self) -> None:
        for batch, limit in LIMITS.items():
            states = [self.stands[task] for task in self.accepted.get(batch, {}).values()]
            assert not limit or states.count(RUNNING) <= limit

    @invariant()
    def none_of_a_cancelled_batch_waits(self) -> None:
        for name, batch in self.stored.state.batches.items():
            for task in self.accepted[name].values():
                assert not (batch.cancelled and self.stands[task] == QUEUED)

    @invariant()
    def the_state_counts_what_is_in_it(self) -> None:
        for name, batch in self.stored.state.batches.items():
            states = Counter(self.stands[task] for task in self.accepted[name].values())
            for state in (QUEUED, RUNNING, FAILED):
                assert batch.counts[state] == states[state]
            assert {i for i in range(12) if batch.has(i)} == set(self.accepted[name])

    @invariant()
    def the_read_model_counts_every_item(self) -> None:
        for name, accepted in self.accepted.items():
            found = batch_rows.find(self.rows, self.seal, QUEUE, name)
            assert found is not None
            states = Counter(self.stands[task] for task in accepted.values())
            counts = found.counts
            assert (counts.queued, counts.running) == (states[QUEUED], states[RUNNING])
            assert (counts.succeeded, counts.failed) == (states[SUCCEEDED], states[FAILED])
            assert (counts.cancelled, counts.items) == (states[CANCELLED], len(accepted))

    @invariant()
    def ends_are_numbered_as_they_came(self) -> None:
        for name, ends in self.ends.items():
            last = {task: number for number, task in enumerate(ends, 1)}
            told = batch_rows.results(self.rows, self.seal, QUEUE, name, 0)
            shown = {each.task.rpartition("/")[2]: each.number for each in told}
            final = {t for t in self.accepted[name].values() if self.stands[t] > RUNNING}
            assert shown == {task: last[task] for task in final}
            assert [each.number for each in told] == sorted(shown.values())


TestBatches = Batches.TestCase
