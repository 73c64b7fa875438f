"""Runs tasks that a scheduler sends, and reports what became of them."""

import asyncio
import contextlib
import inspect
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog

from mesh.errors import WeftError
from mesh.rpc.status import code_of
from mesh.worker.processes import Processes, Untold, tell
from mesh.worker.task import ABORTED, TaskFailure, WorkerTask
from weft.scheduler.v1 import worker_service_pb2 as pb
from weft.scheduler.v1.worker_service_pb2_grpc import WorkerServiceStub

RECONNECT_SECONDS = 0.1
RECONNECT_SECONDS_MAX = 5.0
BEAT_TASKS_MAX = 1_000
"""Tasks whose progress goes in one heartbeat."""
REPORTS_MAX = 64
REPORTS_BYTES_MAX = 1_000_000
"""Reports that go in one message, beside the one that it grew by last."""
_REPORTS = frozenset(("succeeded", "failed"))
MESSAGE_LENGTH_MAX = 4_096
RESULT_BYTES_MAX = 262_144
LASTING_SECONDS = 5.0
"""An attachment that ended sooner counts as one that failed, for the wait before the next."""
WAITS_SECONDS = 30.0
"""How long a part of Weft may wait, at its start, for the others before that is a warning."""
END_SECONDS = 5.0
"""How long handlers may take to end where the worker can't go on."""
HELD_SECONDS = 1.0
"""Handlers may keep a heartbeat waiting for so long before that is logged: past the lease
the scheduler takes the worker for lost."""
CANCELLED = 1
OUT_OF_RANGE = 11
INTERNAL = 13
UNIMPLEMENTED = 12
_OPTIONS = (
    # A key isn't for a proxy to read, and a scheduler that vanished is noticed.
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_REFUSED = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
)
"""Attaching again wouldn't help."""

Handler = Callable[[WorkerTask], Any]

_log = structlog.get_logger(__name__)


def _never() -> bool:
    return False


@dataclass(slots=True)
class _Running:
    """A task that runs. `report` is what became of it, until the scheduler has it."""

    assignment: pb.WorkerAssignment
    task: "asyncio.Task[None] | None" = None
    progress: float = 0.0
    note: str = ""
    report: pb.AttachRequest | None = None


@dataclass(slots=True)
class Worker:
    """Attaches to a queue and runs its tasks until `stop`.

    `queue` is its name. With `all_tenants` it is an id, and the worker serves the queues of
    that id of all tenants, which needs a permission for the platform. `api_key` is sent with
    the stream; that of the environment's WEFT_API_KEY where it is empty. `slots` tasks run
    at once; those of plain functions in so many processes. Without its scheduler it goes on
    with what it has, attaches again, and reports what it hadn't. `ca_file` holds the roots of
    the server's certificate; without it the connection is in plain text. Where `stub` is set, it is
    a WorkerServiceStub to attach with, instead of a channel to `address`. It doesn't attach
    again once `ends` says so. `locate`, where it is set, gives the address and the key before
    each attachment, and raises WeftError where there is no server just now.
    """

    queue: str
    address: str = "127.0.0.1:50051"
    api_key: str = field(default="", repr=False)
    slots: int = 4
    worker_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    zone: str = ""
    cpu_millis: int = 0
    memory_bytes: int = 0
    all_tenants: bool = False
    ca_file: Path | None = None
    stub: Any = field(default=None, repr=False)
    ends: Callable[[], bool] = field(default=_never, repr=False)
    locate: Callable[[], tuple[str, str]] | None = field(default=None, repr=False)
    _handlers: dict[str, Handler] = field(default_factory=dict)
    _running: dict[tuple[str, int], _Running] = field(default_factory=dict)
    _on_loop: set[str] = field(default_factory=set)
    _outbox: "asyncio.Queue[pb.AttachRequest | None]" = field(default_factory=asyncio.Queue)
    _processes: Processes = field(default_factory=Processes)
    _stopping: bool = False
    _paused: bool = False
    _heartbeat_seconds: float = 1.0
    attached: bool = False

    def task(self, capability: str) -> Callable[[Handler], Handler]:
        """Makes a function the handler of a capability."""

        def register(handler: Handler) -> Handler:
            self._handlers[capability] = handler
            return handler

        return register

    def run(self) -> None:
        """Works until SIGINT or SIGTERM, and ends when what it has is done. Raises
        grpc.aio.AioRpcError where the scheduler refuses it."""
        asyncio.run(self._until_signal())

    async def work(self) -> None:
        """Works until `stop`, in the event loop of the caller. Raises grpc.aio.AioRpcError
        where the scheduler refuses it, or with a stub of the mesh WeftError; ValueError for
        a worker without handlers, or whose queue isn't a full name."""
        if not self._handlers:
            raise ValueError("a worker needs a task")
        if "/" not in self.queue and not self.all_tenants:
            raise ValueError(f"queue: write tenants/TENANT/queues/{self.queue}")
        self.worker_id = self.worker_id or f"{socket.gethostname()}-{os.getpid()}"
        failures = 0
        waits_until = time.monotonic() + WAITS_SECONDS if self.stub is not None else 0.0
        try:
            while not self._done and not self.ends():
                begun = time.monotonic()
                try:
                    await self._attach_once()
                    failures = 0
                except (grpc.aio.AioRpcError, WeftError) as error:
                    code, said = (
                        (code_of(error), error.message)
                        if isinstance(error, WeftError)
                        else (error.code(), error.details())
                    )
                    if code in _REFUSED:
                        raise
                    lasted = time.monotonic() - begun > LASTING_SECONDS
                    failures = 0 if self.attached and lasted else failures + 1
                    if self.attached or code is not grpc.StatusCode.UNAVAILABLE:
                        waits_until = 0.0
                    if not self.ends():
                        expected = time.monotonic() < waits_until
                        report = _log.debug if expected else _log.warning
                        report("detached", worker=self.worker_id, reason=code.name, error=said)
                self.attached = False
                if not self._done:
                    await asyncio.sleep(_pause(failures))
        finally:
            await self._end_all()

    def pause(self, paused: bool) -> None:
        """Takes no new tasks while it is paused; what runs goes on."""
        if paused != self._paused:
            self._paused = paused
            self._say(pb.AttachRequest(slots=pb.WorkerSlots(slots=self._slots_said)))

    def stop(self) -> None:
        """Takes no more tasks, and ends when those that run are done and reported."""
        self._stopping = True
        self._say(pb.AttachRequest(slots=pb.WorkerSlots(slots=self._slots_said)))
        self._leave_if_done()

    @property
    def _slots_said(self) -> int:
        return 0 if self._stopping or self._paused else self.slots

    @property
    def _done(self) -> bool:
        return self._stopping and not self._running

    async def _until_signal(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        await self.work()

    async def _attach_once(self) -> None:
        if self.locate is not None:
            self.address, self.api_key = self.locate()
        outbox = self._outbox = asyncio.Queue()
        outbox.put_nowait(self._hello())
        for running in self._running.values():
            if running.report is not None:
                self._outbox.put_nowait(running.report)
        async with contextlib.AsyncExitStack() as stack:
            # Else what feeds a stream that is lost waits for ever.
            stack.callback(outbox.put_nowait, None)
            if self.stub is None:
                channel = self._channel()
                stream = self._attach(WorkerServiceStub(await stack.enter_async_context(channel)))
            else:
                stream = await stack.enter_async_context(
                    contextlib.aclosing(self._attach(self.stub))
                )
            beat = asyncio.create_task(self._beat())
            stack.callback(beat.cancel)
            async for message in stream:
                self._take(message)

    def _channel(self) -> grpc.aio.Channel:
        if self.ca_file is None:
            return grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        # Read each time: a worker runs for longer than roots may stay.
        encryption = grpc.ssl_channel_credentials(self.ca_file.read_bytes())
        return grpc.aio.secure_channel(self.address, encryption, options=_OPTIONS)

    def _attach(self, stub: Any) -> Any:
        """The stream of what the scheduler says."""
        key = self.api_key or os.environ.get("WEFT_API_KEY", "")
        metadata = (("authorization", f"Bearer {key}"),) if key and self.stub is None else ()
        method = stub.AttachShared if self.all_tenants else stub.Attach
        return method(self._messages(), metadata=metadata)

    def _hello(self) -> pb.AttachRequest:
        hello = pb.WorkerHello(
            worker_id=self.worker_id,
            capabilities=sorted(self._handlers),
            slots=self._slots_said,
            takes_bundles=True,
            zone=self.zone,
            running=(
                pb.TaskProgress(
                    task=name, attempt=attempt, progress=running.progress, note=running.note
                )
                for (name, attempt), running in self._running.items()
            ),
        )
        for key, value in self.labels.items():
            hello.labels.add(key=key, value=value)
        hello.resources.cpu_millis = self.cpu_millis
        hello.resources.memory_bytes = self.memory_bytes
        return pb.AttachRequest(queue=self.queue, hello=hello)

    async def _messages(self) -> AsyncIterator[pb.AttachRequest | pb.AttachSharedRequest]:
        while (message := await self._outbox.get()) is not None:
            message = self._gathered(message)
            yield self._shared(message) if self.all_tenants else message

    def _gathered(self, message: pb.AttachRequest) -> pb.AttachRequest:
        """A report, with those in one that wait behind it."""
        if message.WhichOneof("message") not in _REPORTS or self._outbox.empty():
            return message
        several = [message]
        size_bytes = message.ByteSize()
        while len(several) < REPORTS_MAX and size_bytes < REPORTS_BYTES_MAX:
            if self._outbox.empty():
                break
            following = self._outbox.get_nowait()
            if following is None or following.WhichOneof("message") not in _REPORTS:
                # It waits for its turn: what else is in there may come before it.
                self._outbox.put_nowait(following)
                break
            several.append(following)
            size_bytes += following.ByteSize()
        if len(several) == 1:
            return message
        gathered = pb.AttachRequest(queue=self.queue)
        for each in several:
            report = gathered.reports.reports.add()
            if each.HasField("failed"):
                report.failed.CopyFrom(each.failed)
            else:
                report.succeeded.CopyFrom(each.succeeded)
        return gathered

    def _shared(self, message: pb.AttachRequest) -> pb.AttachSharedRequest:
        shared = pb.AttachSharedRequest(queue_id=self.queue)
        kind = message.WhichOneof("message")
        assert kind is not None, "what is sent says something"
        getattr(shared, kind).CopyFrom(getattr(message, kind))
        return shared

    def _say(self, message: pb.AttachRequest) -> None:
        message.queue = self.queue
        self._outbox.put_nowait(message)

    async def _beat(self) -> None:
        while True:
            due = time.monotonic() + self._heartbeat_seconds
            await asyncio.sleep(self._heartbeat_seconds)
            held_seconds = time.monotonic() - due
            running_here = self._ran_here()
            if held_seconds > HELD_SECONDS and running_here:
                _log.warning(
                    "a handler held the event loop: what computes belongs into a plain def",
                    held_seconds=round(held_seconds, 1),
                    running=running_here,
                )
            elif held_seconds > HELD_SECONDS:
                _log.warning(
                    "the process stood still, and no handler ran in its event loop: it was stopped,"
                    " the machine slept, or something else held the loop",
                    held_seconds=round(held_seconds, 1),
                )
            beat = pb.WorkerHeartbeat(load=min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))
            for (name, attempt), running in self._running.items():
                if (running.progress or running.note) and len(beat.running) < BEAT_TASKS_MAX:
                    beat.running.add(
                        task=name, attempt=attempt, progress=running.progress, note=running.note
                    )
            self._say(pb.AttachRequest(heartbeat=beat))

    def _ran_here(self) -> list[str]:
        """What ran in the event loop at any time since this was asked last: a handler that held
        it may have ended by now. Plain functions run in processes of their own."""
        found = sorted(self._on_loop)
        going_on = [each for each in self._running.values() if each.report is None]
        self._on_loop &= {each.assignment.capability for each in going_on}
        return found

    def _take(self, message: pb.AttachResponse | pb.AttachSharedResponse) -> None:
        kind = message.WhichOneof("message")
        if kind == "welcome":
            self.attached = True
            self._heartbeat_seconds = message.welcome.heartbeat_interval.ToNanoseconds() / 1e9
            for name, attempt in list(self._running):
                if name in message.welcome.lost:
                    self._drop(name, attempt)
        elif kind == "bundle":
            for news in message.bundle.news:
                self._hear(news)
        elif kind == "drain":
            # The scheduler ends; what runs is reported to the next.
            self._outbox.put_nowait(None)
        else:
            self._hear(message)

    def _hear(self, news: pb.AttachResponse | pb.AttachSharedResponse | pb.WorkerNews) -> None:
        kind = news.WhichOneof("message")
        if kind == "assignment":
            self._begin(news.assignment)
        elif kind == "cancel":
            running = self._running.get((news.cancel.task, news.cancel.attempt))
            if running is not None and running.task is not None:
                running.task.cancel(news.cancel.reason or "cancelled")
        elif kind == "recorded":
            self._running.pop((news.recorded.task, news.recorded.attempt), None)
            self._leave_if_done()

    def _begin(self, assignment: pb.WorkerAssignment) -> None:
        key = (assignment.task, assignment.attempt)
        if key in self._running:
            return
        running = self._running[key] = _Running(assignment)
        if self._stopping:
            self._end(key, pb.AttachRequest(failed=pb.WorkerFailed(code=CANCELLED, released=True)))
            return
        running.task = asyncio.create_task(self._execute(key, running))

    def _drop(self, name: str, attempt: int) -> None:
        running = self._running.pop((name, attempt))
        if running.task is not None:
            running.task.cancel()

    async def _execute(self, key: tuple[str, int], running: _Running) -> None:
        try:
            result = await self._handle(running)
            report = pb.AttachRequest(succeeded=pb.WorkerSucceeded(result=_bytes(result)))
        except asyncio.CancelledError:
            report = _failed(CANCELLED, "cancelled")
        except TaskFailure as failure:
            report = _failed(failure.code, failure.message)
        except BrokenProcessPool:
            report = _failed(ABORTED, "the process that ran it has died")
        except Untold as error:
            report = _failed(INTERNAL, str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it fails the attempt
            report = _failed(INTERNAL, _told(error))
            # What isn't text can be neither printed (UnicodeError) nor made JSON (TypeError).
            with contextlib.suppress(UnicodeError, TypeError):
                _log.exception("a task failed", task=key[0], attempt=key[1])
        if key in self._running:
            self._end(key, report)

    async def _handle(self, running: _Running) -> Any:
        assignment = running.assignment
        handler = self._handlers.get(assignment.capability)
        if handler is None:
            raise TaskFailure(f"no handler of {assignment.capability}", UNIMPLEMENTED)

        def progress(fraction: float, note: str) -> None:
            running.progress, running.note = fraction, note

        task = WorkerTask(
            assignment.task,
            assignment.attempt,
            assignment.capability,
            assignment.payload,
            assignment.idempotency_key,
            assignment.deadline.ToNanoseconds() / 1e9,
            assignment.creator,
            progress,
        )
        if _is_async(handler):
            self._on_loop.add(assignment.capability)
            return await handler(task)
        return await self._processes.run(handler, replace(task, report=tell), progress)

    def _end(self, key: tuple[str, int], report: pb.AttachRequest) -> None:
        told = report.failed if report.HasField("failed") else report.succeeded
        told.task, told.attempt = key
        self._running[key].report = report
        self._say(report)

    async def _end_all(self) -> None:
        tasks = {each.task for each in self._running.values() if each.task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_SECONDS)
        await self._processes.close()

    def _leave_if_done(self) -> None:
        if self._done:
            self._outbox.put_nowait(None)


def _is_async(handler: Handler) -> bool:
    call = getattr(type(handler), "__call__", None)  # noqa: B004 - an object may be a handler
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - also what tells of itself wrongly is told of
        return type(error).__name__


def _failed(code: int, message: str) -> pb.AttachRequest:
    # A name of a file may hold what isn't text.
    cut = message[:MESSAGE_LENGTH_MAX].encode(errors="replace").decode()
    return pb.AttachRequest(failed=pb.WorkerFailed(code=code, message=cut))


def _bytes(result: object) -> bytes:
    if result is None:
        return b""
    data = result.encode() if isinstance(result, str) else result
    if isinstance(data, bytes):
        if len(data) > RESULT_BYTES_MAX:
            size = f"the result has {len(data)} bytes, of at most {RESULT_BYTES_MAX}"
            raise TaskFailure(f"{size}: keep it elsewhere, and answer with where", OUT_OF_RANGE)
        return data
    raise TypeError(f"a handler returns bytes, text or None, not {type(result).__name__}")


def _pause(failures: int) -> float:
    """Full jitter."""
    return random.random() * min(RECONNECT_SECONDS_MAX, RECONNECT_SECONDS * 2.0**failures)
