"""The server of ADS, state of the world: tells gRPC's own xDS clients where to go."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from mesh.control.xds.mesh_view import MeshView
from mesh.control.xds.messages import ADS_METHOD, ADS_SERVICE
from mesh.control.xds.resources import Affinity, Resources, resources_of
from mesh.control.xds.subscriptions import Refusal, Subscriptions
from mesh.errors import FailedPrecondition, InvalidArgument, LimitExceeded
from mesh.sockets import stays_here
from weft.xds.v1 import discovery_pb2

STREAMS_MAX = 2_048
REQUEST_BYTES_MAX = 1 << 20
STREAM_SECONDS_MAX = 3_600.0
"""Then a client asks anew, of any control plane that is there."""
LOADED_SECONDS_MAX = 30.0
"""How long a client is held while nothing is known yet, before it may ask elsewhere."""
REQUEST_SECONDS_MAX = 10.0
"""How long a client may take to say what it wants."""
CONNECTION_STREAMS_MAX = 16
"""Streams of one connection: a process of gRPC's has one."""
REFUSALS_SECONDS = 1.0
"""The least time between two lines about refusals: who can ask can refuse."""
WRITE_SECONDS_MAX = 10.0
"""How long a client may take to read one response."""
PUSH_SECONDS = 0.01
"""The least time between two pushes: what changes meanwhile goes in one."""
PUSH_REST = 4
"""As many times as long as it took to make what was pushed is between two pushes, too: the
process has other things to do."""
_TEXT_MAX = 500
_AFFINITIES = {
    # It ends its process where a ring changes twice at once, and waits at each new endpoint of
    # one (grpc-js-xds 1.14; grpc-node 2807).
    "gRPC Node": Affinity.NONE,
    # On a ring that gets smaller it looks an endpoint that is gone up behind the list's end, and
    # its process crashes (1.78.2, 1.80.1, 1.85.3: RequestConnectionLocked in ring_hash.cc).
    "gRPC C-core": Affinity.NAMED,
}
"""By what begins a client's name; others are told of rings."""

_log = structlog.get_logger()


class AdsServer:
    """Serves what `set` was last called with, to each client as its zone sees it.

    Until the first `set` clients are held: an empty answer would take from them what they
    know. A client that refuses a response is logged, and told nothing until something
    changes. Those at a unix socket, which are this process, are never too many. Made, called
    and closed in one event loop.
    """

    def __init__(self, *, streams_max: int = STREAMS_MAX) -> None:
        self._view: MeshView | None = None
        self._next: MeshView | None = None
        self._pushed = 0.0
        self._refused = float("-inf")
        self._made_seconds = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._by_zone: dict[tuple[str, Affinity], Resources] = {}
        self._left_out: tuple[str, ...] = ()
        self._loaded = asyncio.Event()
        self._wakes: set[asyncio.Event] = set()
        self._streams = 0
        self._streams_max = streams_max
        self._servers: list[grpc.aio.Server] = []

    @property
    def streams(self) -> int:
        """How many clients are connected."""
        return self._streams

    async def start(
        self,
        address: str,
        credentials: grpc.ServerCredentials | None = None,
        *,
        plain_text: bool = False,
    ) -> int:
        """Serves at `unix:/path`, or at an IP address with a port, beside the addresses that
        it serves at already; returns the port.

        Plain text, without `credentials`, is for sockets and loopback: ValueError elsewhere,
        but with `plain_text`. FailedPrecondition where the address can't be had.
        """
        if credentials is None and not (plain_text or stays_here(address)):
            raise ValueError("a control plane that others reach needs credentials")
        server = grpc.aio.server(
            options=_server_options(),
            # A backstop: who comes over the bound of streams is told so below it.
            maximum_concurrent_rpcs=2 * self._streams_max,
        )
        handler = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=_parsed,
            response_serializer=discovery_pb2.DiscoveryResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler(ADS_SERVICE, {ADS_METHOD: handler})
        server.add_generic_rpc_handlers((service,))
        try:
            if credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, credentials)
        except RuntimeError:
            raise FailedPrecondition(f"the control plane can't listen on {address}") from None
        await server.start()
        self._servers.append(server)
        return port

    def set(self, view: MeshView) -> None:
        """Replaces what is served; clients are told what changed for them."""
        self._next = view
        if self._timer is None:
            rest = max(PUSH_SECONDS, PUSH_REST * self._made_seconds)
            self._timer = asyncio.get_running_loop().call_at(self._pushed + rest, self._push)

    async def stop(self) -> None:
        """Ends serving at once. Clients keep what they know, and come back."""
        if self._timer is not None:
            self._timer.cancel()
        servers, self._servers = self._servers, []
        for server in servers:
            await server.stop(None)

    def _push(self) -> None:
        self._timer = None
        self._pushed = asyncio.get_running_loop().time()
        self._made_seconds = 0.0
        self._view = self._next
        self._by_zone.clear()
        self._loaded.set()
        for wake in self._wakes:
            wake.set()

    def _resources(self, zone: str, affinity: Affinity) -> Resources:
        """As a zone sees them; made once for all of its clients. All zones in which nothing
        runs see the same."""
        view = self._view
        assert view is not None, "streams wait for it"
        seen = (zone if zone in view.zones else "", affinity)
        found = self._by_zone.get(seen)
        if found is None:
            started = time.perf_counter()
            found = self._by_zone[seen] = resources_of(view, *seen)
            self._made_seconds += time.perf_counter() - started
            self._tell_left_out(found.left_out)
        return found

    def _tell_left_out(self, left_out: tuple[str, ...]) -> None:
        if left_out and left_out != self._left_out:
            _log.warning("xds_instances_left_out", count=len(left_out), first=left_out[0])
        self._left_out = left_out

    async def _stream(self, requests: Any, context: Any) -> None:
        own = context.peer().startswith("unix:")
        if self._streams >= self._streams_max and not own:
            await _end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many clients")
        self._streams += 0 if own else 1
        try:
            async with asyncio.timeout(LOADED_SECONDS_MAX):
                await self._loaded.wait()
            # Not all clients come back in the same moment.
            async with asyncio.timeout(STREAM_SECONDS_MAX * random.uniform(0.8, 1)):
                await self._serve(requests, context)
        except LimitExceeded as error:
            await _end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, error.message)
        except InvalidArgument as error:
            await _end(context, grpc.StatusCode.INVALID_ARGUMENT, error.message)
        except TimeoutError:
            await _end(context, grpc.StatusCode.UNAVAILABLE, "ask again")
        finally:
            self._streams -= 0 if own else 1

    async def _serve(self, requests: Any, context: Any) -> None:
        """Until the client ends its side or goes away."""
        client = _Client(asyncio.Event(), self._tell_refused)
        self._wakes.add(client.wake)
        reading = asyncio.create_task(client.read(requests), name="xds requests")
        reading.add_done_callback(lambda _: client.wake.set())
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                await client.asked.wait()
            while not reading.done():
                await client.wake.wait()
                client.wake.clear()
                for response in client.subscriptions.due(
                    self._resources(client.zone, client.affinity)
                ):
                    async with asyncio.timeout(WRITE_SECONDS_MAX):
                        await context.write(response)
            reading.result()
        finally:
            self._wakes.discard(client.wake)
            reading.cancel()
            with suppress(asyncio.CancelledError, LimitExceeded, InvalidArgument):
                await reading

    def _tell_refused(self, node: str, refused: Refusal) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._refused < REFUSALS_SECONDS:
            return
        self._refused = now
        _log.warning(
            "xds_refused",
            node=node,
            type=refused.type_url.rpartition(".")[2],
            version=refused.version,
            message=refused.message[:_TEXT_MAX],
        )


class _Client:
    """Who is at the other end of a stream, and what it wants; `wake` is set by its word and
    by every push."""

    def __init__(self, wake: asyncio.Event, refuse: Callable[[str, Refusal], None]) -> None:
        self.wake = wake
        self.asked = asyncio.Event()
        self._refuse = refuse
        self.subscriptions = Subscriptions()
        self.node = ""
        self.zone = ""
        self.affinity = Affinity.RING

    async def read(self, requests: Any) -> None:
        try:
            await self._read(requests)
        finally:
            self.asked.set()

    async def _read(self, requests: Any) -> None:
        async for request in requests:
            if request is None:
                raise InvalidArgument("the request doesn't parse")
            if request.HasField("node"):
                self.node = request.node.id[:_TEXT_MAX]
                self.zone = request.node.locality.zone
                named = request.node.user_agent_name
                self.affinity = next(
                    (how for begin, how in _AFFINITIES.items() if named.startswith(begin)),
                    Affinity.RING,
                )
            refused = self.subscriptions.take(request)
            if refused is not None:
                self._refuse(self.node, refused)
            self.asked.set()
            self.wake.set()


async def _end(context: Any, code: grpc.StatusCode, text: str) -> NoReturn:
    try:
        await context.abort(code, text)
    except grpc.aio.InternalError:
        # A message is on its way to a client that doesn't read: it hears of no status.
        raise asyncio.CancelledError from None
    raise AssertionError("abort raises")


def _parsed(data: bytes) -> discovery_pb2.DiscoveryRequest | None:
    """gRPC would say UNKNOWN for what raises here."""
    try:
        return discovery_pb2.DiscoveryRequest.FromString(data)
    except DecodeError:
        return None


def _server_options() -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", CONNECTION_STREAMS_MAX),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Who is gone without a word is noticed, and its stream's place is free again.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.so_reuseport", 0),
    ]
