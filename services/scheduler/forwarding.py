"""Hands calls and workers to the instance that owns their queue.

It stands around the handlers, so none of them knows of other instances. A call goes one hop
at most, on behalf of its caller, whom both pipelines look at; where the owner can't be
reached it is answered here, which is correct too, since the log's expected revision fences
every writer. A watch of a task goes there too, since only the owner hears how far its worker
is; should the owner go, it is shown from here on. Watches of batches stay here: they follow
the log.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import structlog
from google.protobuf.descriptor import FieldDescriptor

from mesh.call import Call
from mesh.errors import InvalidArgument, NotServing, Unavailable
from mesh.ids import new_id
from mesh.rpc.channel import RemoteChannel
from mesh.rpc.methods import Handler, MethodSpec, methods_of, service_of
from mesh.runtime.service import Mesh
from services.scheduler.owners import SERVICE, Owners
from services.scheduler.peers import Peer, Unreached
from weft.options.v1 import options_pb2

MOVES_SECONDS = 1.0
"""How long an instance that lost a queue may take to let its workers go by itself."""
STAYS_SECONDS = 10.0
"""How long a worker stays here whose queue's owner couldn't be reached; then it attaches
again, to find it reachable or not."""

WATCHES = ("WatchTask",)
"""Methods that show what only the owner knows, for as long as it goes on."""

_log = structlog.get_logger(__name__)

QueueOfSchedule = Callable[[str], Awaitable[str]]
"""Gives the id of the queue to which the schedule of that name submits; empty for none."""


class Forwarding:
    """See the module. `let_go` has the workers attach again that this instance has of the
    queues of an id."""

    def __init__(
        self,
        mesh: Mesh,
        owners: Owners,
        queue_of_schedule: QueueOfSchedule,
        let_go: Callable[[str], None],
        hello_seconds: float,
    ) -> None:
        self._let_go = let_go
        self._mesh = mesh
        self._owners = owners
        self._queue_of_schedule = queue_of_schedule
        self._hello_seconds = hello_seconds
        self._peers: dict[str, Peer] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._streams: dict[Call, tuple[str, str]] = {}
        """Workers' streams: the queue's id, and the name of the instance that has it."""
        self._draining = False
        owners.on_change(self._settle)

    def around(self, contract: str, implementation: object) -> object:
        """The implementation of a contract, whose calls go to the owner of their queue."""
        handlers: dict[str, Handler] = {}
        for spec in methods_of(service_of(contract)):
            handler: Handler = getattr(implementation, spec.attribute)
            if spec.client_streaming:
                handler = self._stream(spec, handler)
            elif spec.name in WATCHES:
                handler = self._watch(spec, handler)
            elif not spec.server_streaming:
                handler = self._unary(spec, handler)
            handlers[spec.attribute] = handler
        return SimpleNamespace(**handlers)

    def drain(self) -> None:
        """Lets workers go that other instances have, and takes in none for them."""
        self._draining = True
        for call, (_, place) in list(self._streams.items()):
            if place != self._owners.own:
                _end(call, NotServing("the process ends: attach again, or elsewhere"))

    async def stop(self) -> None:
        """Ends what is under way with other instances."""
        closing = [*self._closing, *(asyncio.create_task(p.close()) for p in self._peers.values())]
        self._peers.clear()
        if closing:
            await asyncio.wait(closing)

    def _unary(self, spec: MethodSpec, handler: Handler) -> Handler:
        queue_id_of = self._reader(spec)
        if queue_id_of is None:
            return handler
        has_request_id = "request_id" in spec.request_class.DESCRIPTOR.fields_by_name

        async def routed(request: Any, call: Call) -> Any:
            found = queue_id_of(request)
            queue_id = found if isinstance(found, str) else await found
            owner = self._peer(queue_id, call)
            if owner is None or owner.avoided:
                return await handler(request, call)
            if has_request_id and not request.request_id:
                # So that it can be answered here, should its answer be lost: it is one task.
                named = type(request)()
                named.CopyFrom(request)
                named.request_id = new_id()
                request = named
            try:
                return await owner.unary(spec.path, request)
            except Unreached:
                return await handler(request, call)

        return routed

    def _watch(self, spec: MethodSpec, handler: Handler) -> Handler:
        async def routed(request: Any, call: Call) -> AsyncGenerator[Any, None]:
            owner = self._peer(request.name.split("/")[3], call)
            if owner is not None and not owner.avoided:
                try:
                    async with aclosing(owner.watch(spec.path, request)) as messages:
                        async for message in messages:
                            yield message
                    return
                except Unreached:
                    # It begins anew with the task as it is, as every watch does.
                    pass
            async with aclosing(handler(request, call)) as messages:
                async for message in messages:
                    yield message

        return routed

    def _stream(self, spec: MethodSpec, handler: Handler) -> Handler:
        async def routed(requests: AsyncIterator[Any], call: Call) -> AsyncGenerator[Any, None]:
            first = await first_message(requests, self._hello_seconds)
            queue_id = _queue_id_of_worker(first)
            owner = self._peer(queue_id, call)
            if owner is not None and self._draining:
                raise NotServing("the process ends: attach again, or elsewhere")
            following = _following(first, requests)
            if owner is None or owner.avoided:
                source, place = handler(following, call), self._owners.own
            else:
                source, place = owner.stream(spec.path, following), owner.name
            self._streams[call] = (queue_id, place)
            if owner is not None and place == self._owners.own:
                asyncio.get_running_loop().call_later(STAYS_SECONDS, self._settle_streams)
            try:
                async with aclosing(source) as messages:
                    async for message in messages:
                        yield message
            except Unreached:
                raise Unavailable("the queue's owner can't be reached: attach again") from None
            finally:
                del self._streams[call]

        return routed

    def _reader(self, spec: MethodSpec) -> Callable[[Any], str | Awaitable[str]] | None:
        """What reads the id of the queue from a request of the method; None where it names
        none, and so is nobody's."""
        fields = spec.request_class.DESCRIPTOR.fields_by_name
        if spec.name == "TriggerSchedule":
            return lambda request: self._queue_of_schedule(request.name)
        if "queue_id" in fields:
            return lambda request: str(request.queue_id)
        field = fields.get(spec.policy.resource)
        if field is None or not _names_queue(field):
            return None
        name = field.name
        return lambda request: str(getattr(request, name).split("/")[3])

    def _peer(self, queue_id: str, call: Call) -> Peer | None:
        """The instance to hand the call to; None where it is answered here. What another one
        has handed over isn't handed on: who owns a queue may be seen differently there."""
        if call.peer and SERVICE in (call.caller, call.relayed_by):
            return None
        owner = self._owners.elsewhere(queue_id) if queue_id else None
        if owner is None:
            return None
        found = self._peers.get(owner.name)
        if found is None:
            mesh = self._mesh
            channel = RemoteChannel(
                owner.target,
                mesh.rpc_settings,
                caller=SERVICE,
                sign=mesh.access.sign,
                relays=True,
                transport=mesh.transport,
                service=SERVICE if mesh.transport.encrypted else "",
            )
            found = self._peers[owner.name] = Peer(owner.name, channel, mesh.clock.monotonic)
        return found

    def _settle(self) -> None:
        """The owners may be others: ends what is under way with an instance that is gone, and
        has workers attach again whose queue moved. They keep what they run."""
        there = self._owners.names()
        for name in self._peers.keys() - there:
            closing = asyncio.create_task(self._peers.pop(name).close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        for call, (_, place) in list(self._streams.items()):
            if place not in there and place != self._owners.own:
                _end(call, Unavailable("the queue's owner is gone: attach again"))
        self._settle_streams()

    def _settle_streams(self) -> None:
        own = self._owners.own
        moved = [call for call, placed in self._streams.items() if self._moved(*placed)]
        for queue_id in {self._streams[call][0] for call in moved if self._streams[call][1] == own}:
            _log.info("queue_moved", queue_id=queue_id)
            self._let_go(queue_id)
        for call in moved:
            if self._streams[call][1] != own:
                asyncio.get_running_loop().call_later(MOVES_SECONDS, self._end_moved, call)

    def _end_moved(self, call: Call) -> None:
        """Ends a worker's stream to an instance that doesn't let it go by itself: it sees the
        owners differently, or took the worker in after it looked."""
        if call in self._streams and self._moved(*self._streams[call]):
            _end(call, Unavailable("another instance has the queue: attach again"))

    def _moved(self, queue_id: str, place: str) -> bool:
        owner = self._owners.elsewhere(queue_id) if queue_id else None
        return place != (owner.name if owner is not None else self._owners.own)


async def first_message(requests: AsyncIterator[Any], seconds: float) -> Any:
    """The first message of a worker; None where there is none. InvalidArgument where it
    doesn't come in time."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(requests, None)
    except TimeoutError:
        raise InvalidArgument.of("hello", "didn't come in time") from None


async def _following(first: Any, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    if first is None:
        return
    yield first
    async for request in requests:
        yield request


def _queue_id_of_worker(first: Any) -> str:
    if first is None:
        return ""
    queue_id: str = first.queue_id if hasattr(first, "queue_id") else first.queue.split("/")[3]
    return queue_id


def _names_queue(field: FieldDescriptor) -> bool:
    """Whether the field of a request names a queue, or what is in one."""
    options: Any = field.GetOptions()
    named: str = options.Extensions[options_pb2.bounds].resource
    return named.startswith("tenants/*/queues/*")


def _end(call: Call, error: Unavailable) -> None:
    if call.end is not None:
        call.end(error)
