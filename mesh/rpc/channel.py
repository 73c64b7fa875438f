"""Channels to handlers in other processes, and the one that finds the nearest handler."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, aclosing
from time import monotonic
from typing import Any

import grpc.aio
import grpc.experimental
from google.protobuf import descriptor_pb2

from mesh.call import Call, current_call
from mesh.control.xds.names import TARGET
from mesh.control.xds.placement import Placement
from mesh.errors import NotServing, PermissionDenied, Unavailable
from mesh.ids import new_id
from mesh.rpc.affinity import affinity_of
from mesh.rpc.local import StubChannel, call_endpoint
from mesh.rpc.methods import MethodSpec, method_of
from mesh.rpc.pipeline import Endpoint, default_deadline
from mesh.rpc.propagation import IDENTITY_KEY, Metadata, outgoing_call, wire_metadata
from mesh.rpc.retries import (
    READ_SLOW_SECONDS,
    WRITE_SLOW_SECONDS,
    Losses,
    Retries,
    call_again,
)
from mesh.rpc.sending import Sending
from mesh.rpc.settings import RpcSettings
from mesh.rpc.status import from_rpc_error
from mesh.rpc.streams import Cut, begin_again, instance_of
from mesh.rpc.transport import PLAIN, Transport
from mesh.security.identity import Sign, audience_of

_UNKNOWN = descriptor_pb2.MethodOptions.IDEMPOTENCY_UNKNOWN
_NO_SIDE_EFFECTS = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
MESH_TARGET = f"xds:///{TARGET}"
"""All services, wherever they run."""


SERVED_SECONDS = 10.0
"""How long a call waits for somebody to serve it, where nobody does."""
SERVED_SHARE = 0.8
"""Of the time that a call has: it waits for no longer."""
POLL_SECONDS = 0.05
CHECK_SECONDS = 1.0
"""How often a channel looks whether its certificate was replaced."""


class _Connection:
    """A channel of gRPC, with the certificate that there was when it was made. Once it is
    retired it is closed behind its last call. With `waits` a call isn't over while nobody
    can be reached."""

    __slots__ = ("_callables", "calls", "channel", "retired", "waits")

    def __init__(self, channel: grpc.aio.Channel, *, waits: bool = False) -> None:
        self.channel = channel
        self.waits = waits or None
        self.calls = 0
        self.retired = False
        self._callables: dict[str, Callable[..., Any]] = {}

    def method(self, spec: MethodSpec) -> Callable[..., Any]:
        found = self._callables.get(spec.path)
        if found is None:
            found = self._callables[spec.path] = _dialled(self.channel, spec)
        return found


class RemoteChannel(StubChannel):
    """Reaches the process at `target` in which `service` runs, over `transport`; `instance` is
    its id, where it is that one which is called and no other.

    Deadline, request id and trace are sent with every call, and with `sign` the identity of
    who calls; what the server answers is raised as the WeftError that its handler raised.
    With `relays` a call from outside goes on as its caller's own, so that it is judged there as
    if it had come there; one that needs no credential goes on as nobody's. When the certificate
    is replaced, the next call is made on a new connection, and those under way end on the old
    one. Made inside a running loop. FailedPrecondition where it would be in plain text and
    mustn't. Streams of instances that `losses` knows of end as Unavailable.
    """

    def __init__(
        self,
        target: str,
        settings: RpcSettings,
        *,
        caller: str = "",
        sign: Sign | None = None,
        relays: bool = False,
        transport: Transport = PLAIN,
        service: str = "",
        instance: str = "",
        losses: Losses | None = None,
    ) -> None:
        self._target = target
        self._settings = settings
        self._caller = caller
        self._sign = sign
        self._relays = relays
        self._transport = transport
        self._service = service
        self._instance = instance
        self._losses = losses or Losses()
        self._closing: set[asyncio.Task[None]] = set()
        self._held = transport.held()
        self._looked = monotonic()
        self._present = self._connected()

    def callable_of(self, method: str) -> Callable[..., Any]:
        spec = method_of(method)
        if spec.server_streaming:
            return self._streaming(spec)
        return self._unary(spec)

    async def close(self) -> None:
        """Closes the connections; calls that are being awaited are cancelled."""
        await self._present.channel.close()
        for closing in list(self._closing):
            await closing

    def _connected(self) -> _Connection:
        if self._target.startswith("xds:"):
            # It would silently ignore the cluster's TLS and dial in the clear.
            raise ValueError("xds targets need a channel with xDS credentials")
        options = channel_options(self._settings)
        return _Connection(self._transport.channel(self._target, self._service, options))

    def _begin(self) -> _Connection:
        """The connection for a call that begins, which `_end` has to get back."""
        if self._held is not None and monotonic() - self._looked >= CHECK_SECONDS:
            self._looked = monotonic()
            held = self._transport.held()
            if held is not self._held:
                self._held = held
                old, self._present = self._present, self._connected()
                old.retired = True
                self._close_unused(old)
        self._present.calls += 1
        return self._present

    def _end(self, connection: _Connection) -> None:
        connection.calls -= 1
        self._close_unused(connection)

    def _close_unused(self, connection: _Connection) -> None:
        if connection.retired and not connection.calls:
            closing = asyncio.create_task(connection.channel.close(), name="old certificate")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _affinity(self, spec: MethodSpec) -> Callable[[Any], Metadata]:
        """What a request's metadata say of where it should go: nothing, where there is one
        server."""
        return lambda request: ()

    def _metadata(self, call: Call) -> Sequence[tuple[str, str]]:
        sent = wire_metadata(call)
        if self._sign is None or (call.principal is None and not self._relays):
            return sent
        answered = current_call.get() if self._relays else None
        identity = self._sign(
            call.principal,
            self._caller,
            audience_of(call.method, self._instance),
            call.remaining_seconds(),
            handed_on=answered is not None and bool(answered.peer) and not answered.caller,
        )
        return (*sent, (IDENTITY_KEY, identity))

    def _unary(self, spec: MethodSpec) -> Callable[..., Any]:
        default_seconds = default_deadline(spec, self._settings)
        affinity = self._affinity(spec)

        async def call(
            request: Any,
            *,
            timeout: float | None = None,
            metadata: Metadata | None = None,
            spread: bool = False,
        ) -> Any:
            made = outgoing_call(spec.path, default_seconds, timeout, metadata, self._caller)
            sent = (*self._metadata(made), *(() if spread else affinity(request)))
            sending = Sending(request) if spec.client_streaming else None
            connection = self._begin()
            try:
                begun = connection.method(spec)(
                    request if sending is None else sending.messages(),
                    timeout=made.remaining_seconds(),
                    metadata=sent,
                    wait_for_ready=connection.waits,
                )
                answer = await (begun if sending is None else sending.through(begun))
                if answer is None:
                    # gRPC's word for one that doesn't parse, or that isn't there behind an OK
                    # (seen where a call ended in the moment of its deadline).
                    raise Unavailable("the server's answer can't be read")
                return answer
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None
            except asyncio.CancelledError:
                if sending is not None and sending.error is not None:
                    raise sending.error from None
                raise
            finally:
                self._end(connection)

        return call

    def _streaming(self, spec: MethodSpec) -> Callable[..., Any]:
        default_seconds = default_deadline(spec, self._settings)
        affinity = self._affinity(spec)

        async def call(
            request: Any,
            *,
            timeout: float | None = None,
            metadata: Metadata | None = None,
            spread: bool = False,
        ) -> AsyncGenerator[Any, None]:
            made = outgoing_call(spec.path, default_seconds, timeout, metadata, self._caller)
            sent = (*self._metadata(made), *(() if spread else affinity(request)))
            sending = Sending(request) if spec.client_streaming else None
            connection = self._begin()
            try:
                stream = connection.method(spec)(
                    request if sending is None else sending.messages(),
                    timeout=made.remaining_seconds(),
                    metadata=sent,
                    wait_for_ready=connection.waits,
                )
                cut = Cut(stream)
                try:
                    with ExitStack() as under_way:
                        messages = stream if sending is None else sending.through(stream)
                        async for message in messages:
                            if not cut.instance:
                                cut.instance = await instance_of(stream)
                                under_way.enter_context(
                                    self._losses.under_way(cut.instance, cut.now)
                                )
                            yield message
                except grpc.aio.AioRpcError as error:
                    raise from_rpc_error(error) from None
                except asyncio.CancelledError:
                    if sending is not None and sending.error is not None:
                        raise sending.error from None
                    if cut.is_done:
                        raise Unavailable("who answered is lost") from None
                    raise
                finally:
                    # Tells the server when the reader stops early; after the end it does
                    # nothing.
                    stream.cancel()
            finally:
                self._end(connection)

        return call


class XdsChannel(RemoteChannel):
    """Reaches whoever the control plane says, by the process's one `connection` to the mesh.

    Which instance takes a call, gRPC decides by what the control plane told it; calls of one
    session or queue go to the instance of its `placement` while it lives, but those with
    `spread`. A call waits for an instance that takes it until its deadline. Connections are
    secured as the cluster says, and plain where it says nothing.
    """

    def __init__(
        self,
        connection: grpc.aio.Channel,
        settings: RpcSettings,
        *,
        caller: str = "",
        sign: Sign | None = None,
        relays: bool = False,
        losses: Losses | None = None,
        placement: Placement | None = None,
    ) -> None:
        self._connection = connection
        self._placement = placement
        super().__init__(
            MESH_TARGET, settings, caller=caller, sign=sign, relays=relays, losses=losses
        )

    async def close(self) -> None:
        """Whose connection it is closes that."""

    def _connected(self) -> _Connection:
        return _Connection(self._connection, waits=True)

    def _affinity(self, spec: MethodSpec) -> Callable[[Any], Metadata]:
        return affinity_of(spec, self._placement)


def mesh_connection(settings: RpcSettings) -> grpc.aio.Channel:
    """A process's connection to all services, wherever they run. Its bootstrap names the
    control plane (`mesh.control.xds.bootstrap`). Made inside a running loop."""
    experimental: Any = grpc.experimental
    plain = experimental.insecure_channel_credentials()
    credentials = grpc.xds_channel_credentials(plain)
    return grpc.aio.secure_channel(MESH_TARGET, credentials, options=channel_options(settings))


class MeshChannel(StubChannel):
    """Nearest first: the handler in this process where there is one, else by `elsewhere`.
    Each call decides anew, so services may come and go.

    With `validated` the requests are made of parts that were checked when they came in:
    a handler in this process isn't asked to check them again. `caller` is the service that
    calls, and `callees` the contracts that it may call, by full name; None for all.

    What is in other processes is tried again where its contract allows that, and a call
    waits a moment where nobody serves the method, as `is_served` says of a contract. Raises
    NotServing when nobody does then, PermissionDenied for a stub of a contract that isn't
    among the callees. `losses` tells of instances that are lost.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        elsewhere: RemoteChannel | None,
        is_served: Callable[[str], bool],
        settings: RpcSettings,
        *,
        validated: bool = False,
        caller: str = "",
        callees: Collection[str] | None = None,
        losses: Losses | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._elsewhere = elsewhere
        self._is_served = is_served
        self._settings = settings
        self._validated = validated
        self._caller = caller
        self._callees = callees
        self._retries = Retries(losses or Losses())

    def callable_of(self, method: str) -> Callable[..., Any]:
        endpoints, validated, caller = self._endpoints, self._validated, self._caller
        service = method[1:].partition("/")[0]
        if self._callees is not None and service not in self._callees:
            raise PermissionDenied(f"the catalogue doesn't say that {caller} calls {service}")

        def call(
            request: Any, *, timeout: float | None = None, metadata: Metadata | None = None
        ) -> Any:
            endpoint = endpoints.get(method)
            if endpoint is not None:
                return call_endpoint(
                    endpoint, request, timeout, metadata, validated=validated, caller=caller
                )
            return elsewhere(request, timeout, metadata)

        spec = method_of(method)
        elsewhere = self._stream(spec) if spec.server_streaming else self._unary(spec)
        return call

    def _unary(self, spec: MethodSpec) -> Callable[..., Any]:
        if self._elsewhere is None:
            return self._nowhere(spec)
        remote = self._elsewhere.callable_of(spec.path)
        may_repeat = spec.idempotency != _UNKNOWN and not spec.client_streaming
        reads = spec.idempotency == _NO_SIDE_EFFECTS
        slow_seconds = READ_SLOW_SECONDS if reads else WRITE_SLOW_SECONDS
        default_seconds = default_deadline(spec, self._settings)

        async def call(request: Any, timeout: float | None, metadata: Metadata | None) -> Any:
            ends = monotonic() + (default_seconds if timeout is None else timeout)
            await self._until_served(spec, ends)
            if not may_repeat:
                return await remote(request, timeout=ends - monotonic(), metadata=metadata)
            request = _named(request)

            async def attempt(number: int) -> Any:
                return await remote(
                    request, timeout=ends - monotonic(), metadata=metadata, spread=number > 0
                )

            return await call_again(attempt, self._retries, slow_seconds)

        return call

    def _stream(self, spec: MethodSpec) -> Callable[..., Any]:
        if self._elsewhere is None:
            return self._nowhere(spec)
        remote = self._elsewhere.callable_of(spec.path)
        may_repeat = spec.idempotency != _UNKNOWN and not spec.client_streaming
        default_seconds = default_deadline(spec, self._settings)

        async def call(
            request: Any, timeout: float | None, metadata: Metadata | None
        ) -> AsyncGenerator[Any, None]:
            ends = monotonic() + (default_seconds if timeout is None else timeout)
            await self._until_served(spec, ends)

            def begin(spread: bool = False) -> AsyncGenerator[Any, None]:
                begun: AsyncGenerator[Any, None] = remote(
                    request, timeout=ends - monotonic(), metadata=metadata, spread=spread
                )
                return begun

            # One that means something by leaving is begun once.
            if may_repeat and not getattr(request, "cancel_on_disconnect", False):
                request = _named(request)
                parts = begin_again(begin, self._retries)
            else:
                parts = begin()
            async with aclosing(parts) as messages:
                async for message in messages:
                    yield message

        return call

    def _nowhere(self, spec: MethodSpec) -> Callable[..., Any]:
        async def call(request: Any, timeout: float | None, metadata: Metadata | None) -> Any:
            raise NotServing(f"nobody serves {spec.service}")

        async def stream(
            request: Any, timeout: float | None, metadata: Metadata | None
        ) -> AsyncGenerator[Any, None]:
            raise NotServing(f"nobody serves {spec.service}")
            yield

        return stream if spec.server_streaming else call

    async def _until_served(self, spec: MethodSpec, ends: float) -> None:
        """Waits a while where nobody serves it: who does may be about to start again. A part of
        the call's time is left, for the call itself, or for whoever waits to hear why it isn't
        answered."""
        if self._is_served(spec.service):
            return
        now, answered = monotonic(), current_call.get()
        left = ends - now
        if answered is not None:
            left = min(left, answered.remaining_seconds())
        waits_until = now + min(SERVED_SECONDS, SERVED_SHARE * left)
        while not self._is_served(spec.service):
            if monotonic() > waits_until:
                raise NotServing(f"nobody serves {spec.service}")
            await asyncio.sleep(POLL_SECONDS)


def _named(request: Any) -> Any:
    """The request with an id, where it may have one: by it the second attempt is known for the
    first."""
    if "request_id" not in request.DESCRIPTOR.fields_by_name or request.request_id:
        return request
    named = type(request)()
    named.CopyFrom(request)
    named.request_id = new_id()
    return named


def channel_options(settings: RpcSettings) -> list[tuple[str, Any]]:
    """The options of every channel; mesh.md of the design says what each was needed for."""
    return [
        ("grpc.keepalive_time_ms", 10_000),
        # Without it a hung server keeps its share of the calls failing for a minute.
        ("grpc.http2.ping_timeout_ms", 2_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.max_receive_message_length", settings.response_bytes_max),
        ("grpc.max_metadata_size", settings.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", settings.metadata_bytes_max),
        # Which calls are repeated is decided by their idempotency, not by the transport.
        ("grpc.enable_retries", 0),
    ]


def _dialled(channel: grpc.aio.Channel, spec: MethodSpec) -> Callable[..., Any]:
    kind: Callable[..., Any]
    if spec.server_streaming:
        kind = channel.stream_stream if spec.client_streaming else channel.unary_stream
    else:
        kind = channel.stream_unary if spec.client_streaming else channel.unary_unary
    multicallable: Callable[..., Any] = kind(
        spec.path,
        request_serializer=spec.request_class.SerializeToString,
        response_deserializer=spec.response_class.FromString,
    )
    return multicallable
