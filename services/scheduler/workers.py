"""The workers that are attached, what each can do, and what each has."""

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from mesh.clock import NANOSECONDS
from mesh.principal import SYSTEM_NAME
from services.scheduler.domain import decide
from weft.scheduler.v1 import tasks_pb2
from weft.scheduler.v1 import worker_service_pb2 as pb

_log = structlog.get_logger(__name__)
BUNDLE_MAX = 64
BUNDLE_BYTES_MAX = 1_000_000
"""A bundle holds no more messages, and is sent once it has so many bytes; a client receives
4 MiB where it isn't told else."""
OUTBOX_SPARE = 1_000
"""Messages to a worker that may wait beside those of its tasks."""
FITTING_MAX = 4_000
"""Shapes of which it is remembered which workers could run them."""
_BUNDLED = frozenset(("assignment", "cancel", "recorded"))

Attempt = tuple[str, int]
"""Name of a task, and number of one of its attempts."""


class Shape(NamedTuple):
    """What tasks need of a worker; those of one shape are equal to it. Those of a batch with
    a limit are a shape of their own, since they can be passed over together."""

    capability: str
    labels: frozenset[tuple[str, str]] = frozenset()
    cpu_millis: int = 0
    memory_bytes: int = 0
    batch: str = ""
    zone: str = ""
    """Where they would best run."""

    @classmethod
    def of(cls, spec: tasks_pb2.TaskSpec, batch: str = "") -> "Shape":
        """The shape of a task; `batch` is the id of its batch, where that has a limit."""
        labels, resources = spec.labels, spec.resources
        if not labels and not spec.HasField("resources"):
            # As most are: a start with many tasks is quicker by it.
            return cls(spec.capability, batch=batch, zone=spec.preferred_zone)
        return cls(
            spec.capability,
            frozenset((label.key, label.value) for label in labels),
            resources.cpu_millis,
            resources.memory_bytes,
            batch,
            spec.preferred_zone,
        )


@dataclass(slots=True)
class Held:
    """A task that a worker has, until it says that it ended. `moved_ns` is when it last said
    something new of it, in Unix nanoseconds; 0 where it never did."""

    shape: Shape
    progress: float = 0.0
    note: str = ""
    moved_ns: int = 0

    def hear(self, progress: pb.TaskProgress, now_ns: int) -> bool:
        """Takes what the worker says of it; whether that is new."""
        if (progress.progress, progress.note) == (self.progress, self.note):
            return False
        self.progress, self.note, self.moved_ns = progress.progress, progress.note, now_ns
        return True


@dataclass(slots=True, eq=False)
class Worker:
    """A worker. `held` is by the task's name and attempt. `seen` is when it was last heard
    of, on the monotonic clock; `attach_ns` when its stream began, in Unix nanoseconds. `actor` is
    who it is to the log. `outbox` is what is to be sent to it; None ends its stream."""

    id: str
    tenant: str
    capabilities: frozenset[str]
    labels: frozenset[tuple[str, str]]
    cpu_millis: int
    memory_bytes: int
    slots: int
    seen: float
    zone: str = ""
    takes_bundles: bool = False
    load: float = 0.0
    attached: bool = True
    attach_ns: int = 0
    actor: str = SYSTEM_NAME
    held: dict[Attempt, Held] = field(default_factory=dict)
    outbox: "asyncio.Queue[pb.AttachResponse | None]" = field(default_factory=asyncio.Queue)

    @classmethod
    def of(cls, hello: pb.WorkerHello, worker_id: str, tenant: str, now: float) -> "Worker":
        """The worker that says hello."""
        labels = {(label.key, label.value) for label in hello.labels}
        if hello.zone:
            labels.add(("zone", hello.zone))
        return cls(
            worker_id,
            tenant,
            frozenset(hello.capabilities),
            frozenset(labels),
            hello.resources.cpu_millis,
            hello.resources.memory_bytes,
            hello.slots,
            now,
            hello.zone,
            hello.takes_bundles,
        )

    @property
    def key(self) -> str:
        """What tells it from all others that serve a tenant."""
        return f"{self.id}/{'own' if self.tenant else 'shared'}"

    @property
    def free_slots(self) -> int:
        """How many more tasks it takes now."""
        return max(0, self.slots - len(self.held)) if self.attached else 0

    @property
    def business(self) -> tuple[float, float]:
        """The smaller, the sooner it gets a task."""
        return (len(self.held) / max(1, self.slots), self.load)

    def serves(self, tenant: str) -> bool:
        """Whether it may have tasks of that tenant."""
        return not self.tenant or self.tenant == tenant

    def fits(self, shape: Shape) -> bool:
        """Whether it could ever run such a task."""
        return (
            shape.capability in self.capabilities
            and shape.labels <= self.labels
            and not (self.cpu_millis and shape.cpu_millis > self.cpu_millis)
            and not (self.memory_bytes and shape.memory_bytes > self.memory_bytes)
        )

    def lacks(self, shape: Shape) -> str:
        """Why it could never run such a task; empty where it could."""
        if shape.capability not in self.capabilities:
            return f"no worker can do {shape.capability}"
        if not shape.labels <= self.labels:
            wanted = ", ".join(f"{key}={value}" for key, value in sorted(shape.labels))
            return f"no worker that can do {shape.capability} has the labels {wanted}"
        if self.cpu_millis and shape.cpu_millis > self.cpu_millis:
            return f"no worker has {shape.cpu_millis} thousandths of a processor"
        if self.memory_bytes and shape.memory_bytes > self.memory_bytes:
            return f"no worker has {shape.memory_bytes} bytes of memory"
        return ""

    def takes(self, shape: Shape) -> bool:
        """Whether it could begin such a task now."""
        return self.free_slots > 0 and self.fits(shape) and self._has_left(shape)

    def _has_left(self, shape: Shape) -> bool:
        for name in ("cpu_millis", "memory_bytes"):
            wanted, of_all = getattr(shape, name), getattr(self, name)
            if wanted and of_all:
                used = sum(getattr(held.shape, name) for held in self.held.values())
                if used + wanted > of_all:
                    return False
        return True

    def send(self, message: pb.AttachResponse) -> None:
        """Sends a message soon; lets a worker go that doesn't read."""
        if not self.attached:
            return
        if self.outbox.qsize() > 4 * (self.slots + len(self.held)) + OUTBOX_SPARE:
            _log.warning("a worker is let go that doesn't read", worker=self.id)
            self.leave()
            return
        self.outbox.put_nowait(message)

    async def messages(self) -> AsyncGenerator[pb.AttachResponse, None]:
        """What is to be sent to it, until its stream ends. What is there already goes in
        bundles, where it takes them."""
        while True:
            waiting = [await self.outbox.get()]
            size_bytes = 0
            while (
                self.takes_bundles
                and not self.outbox.empty()
                and len(waiting) < BUNDLE_MAX
                and size_bytes < BUNDLE_BYTES_MAX
            ):
                waiting.append(message := self.outbox.get_nowait())
                size_bytes += message.ByteSize() if message is not None else 0
            for message in bundled(waiting):
                if message is None:
                    return
                yield message

    def leave(self) -> None:
        """Ends its stream after what was sent before."""
        if self.attached:
            self.attached = False
            self.outbox.put_nowait(None)

    def cancel(self, attempt: Attempt, reason: str) -> None:
        """Has it end an attempt. It keeps the slot until it says that it has."""
        cancel = pb.WorkerCancel(task=attempt[0], attempt=attempt[1], reason=reason)
        self.send(pb.AttachResponse(cancel=cancel))

    def recorded(self, task: str, attempt: int, *, stale: bool) -> None:
        """Tells it that what it reported is kept, or came too late."""
        recorded = pb.WorkerRecorded(task=task, attempt=attempt, stale=stale)
        self.send(pb.AttachResponse(recorded=recorded))

    def welcome(self, lost: list[str], *, heartbeat_seconds: float, lease_seconds: float) -> None:
        """Tells it that it is attached, and which of its tasks aren't its any more."""
        welcome = pb.WorkerWelcome(worker_id=self.id, lost=lost)
        welcome.heartbeat_interval.FromNanoseconds(int(heartbeat_seconds * NANOSECONDS))
        welcome.lease.FromNanoseconds(int(lease_seconds * NANOSECONDS))
        self.send(pb.AttachResponse(welcome=welcome))


class Workers(dict[tuple[str, str], Worker]):
    """The workers by tenant and id, and which of them could run tasks of a shape: that is
    found out once, since a queue may hold a thousand shapes that nobody can run."""

    def __init__(self) -> None:
        super().__init__()
        self._fitting: dict[Shape, dict[Worker, None]] = {}

    def __setitem__(self, key: tuple[str, str], worker: Worker) -> None:
        if key in self:
            del self[key]
        super().__setitem__(key, worker)
        for shape, fitting in self._fitting.items():
            if worker.fits(shape):
                fitting[worker] = None

    def __delitem__(self, key: tuple[str, str]) -> None:
        worker = self[key]
        super().__delitem__(key)
        for fitting in self._fitting.values():
            fitting.pop(worker, None)

    def able(self, tenant: str) -> set[str]:
        """What those can do that have a slot for the tenant."""
        return {
            capability
            for worker in self.values()
            if worker.free_slots and worker.serves(tenant)
            for capability in worker.capabilities
        }

    def fitting(self, shape: Shape) -> Collection[Worker]:
        """Those that could ever run such tasks."""
        found = self._fitting.get(shape)
        if found is None:
            if len(self._fitting) >= FITTING_MAX:
                self._fitting.clear()
            found = {worker: None for worker in self.values() if worker.fits(shape)}
            self._fitting[shape] = found
        return found


def bundled(
    messages: Sequence[pb.AttachResponse | None],
) -> Iterator[pb.AttachResponse | None]:
    """The same, those in a row that a bundle takes in one."""
    for fits, group in itertools.groupby(messages, _fits):
        several = list(group)
        if not fits or len(several) == 1:
            yield from several
            continue
        bundle = pb.AttachResponse()
        for message in several:
            assert message is not None, "the end of the stream fits in no bundle"
            # Fields of the same numbers.
            bundle.bundle.news.add().MergeFromString(message.SerializeToString())
        yield bundle


def _fits(message: pb.AttachResponse | None) -> bool:
    return message is not None and message.WhichOneof("message") in _BUNDLED


def holder_of(
    workers: Mapping[tuple[str, str], Worker], tenant: str, worker_id: str, attempt: Attempt
) -> Worker | None:
    """The worker of that id that has the attempt of the tenant's task: its own, or one of
    all. None where it isn't here, or doesn't have it."""
    for key in ((tenant, worker_id), ("", worker_id)):
        worker = workers.get(key)
        if worker is not None and attempt in worker.held:
            return worker
    return None


def unschedulable_reason(shape: Shape, workers: Iterable[Worker]) -> str:
    """Why none of the workers could ever run such a task; empty where one could. Of several
    reasons the one of the worker that comes nearest."""
    reason, nearest = "no worker is attached", -1
    for worker in workers:
        lacks = worker.lacks(shape)
        if not lacks:
            return ""
        near = int(shape.capability in worker.capabilities) + int(shape.labels <= worker.labels)
        if near > nearest:
            reason, nearest = lacks, near
    return reason


def failure_of(code: int, message: str, *, lost: bool = False) -> decide.Failure:
    """How an attempt ended, with the random number for the wait after it."""
    return decide.Failure(code, message, random.random(), lost)
