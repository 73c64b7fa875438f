"""Channels to handlers in other processes, and the one that finds the nearest handler."""

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import Any

import grpc.aio
import grpc.experimental

from mesh.call import Call
from mesh.control.xds.names import RING_PLACES_MAX, TARGET
from mesh.errors import NotServing, PermissionDenied
from mesh.principal import Principal
from mesh.rpc.affinity import affinity_of
from mesh.rpc.local import StubChannel, call_endpoint
from mesh.rpc.methods import MethodSpec, method_of
from mesh.rpc.pipeline import Endpoint, default_deadline
from mesh.rpc.propagation import IDENTITY_KEY, Metadata, outgoing_call, wire_metadata
from mesh.rpc.settings import RpcSettings
from mesh.rpc.status import from_rpc_error

Resolve = Callable[[str], str | None]
"""Gives the gRPC target of a service, by full name; None while nobody serves it."""
Sign = Callable[[Principal, str, float], str]
"""Signs on whose behalf a service calls, for so many seconds."""
MESH_TARGET = f"xds:///{TARGET}"
"""All services, wherever they run."""


class RemoteChannel(StubChannel):
    """Reaches the server at `target` without encryption.

    Deadline, request id and trace are sent with every call, and with `sign` the identity of
    who calls; what the server answers is raised as the WeftError that its handler raised.
    Made inside a running loop.
    """

    def __init__(
        self,
        target: str,
        settings: RpcSettings,
        *,
        caller: str = "",
        sign: Sign | None = None,
    ) -> None:
        self._settings = settings
        self._caller = caller
        self._sign = sign
        self._channel = self._dial(target)

    def callable_of(self, method: str) -> Callable[..., Any]:
        spec = method_of(method)
        if spec.server_streaming:
            return self._streaming(spec)
        return self._unary(spec)

    async def close(self) -> None:
        """Closes the connection; calls that are being awaited are cancelled."""
        await self._channel.close()

    def _dial(self, target: str) -> grpc.aio.Channel:
        if target.startswith("xds:"):
            # An insecure channel ignores the cluster's TLS and would dial in the clear.
            raise ValueError("xds targets need a channel with xDS credentials")
        return grpc.aio.insecure_channel(target, options=channel_options(self._settings))

    def _affinity(self, spec: MethodSpec) -> Callable[[Any], Metadata]:
        """What a request's metadata say of where it should go: nothing, where there is one
        server."""
        return lambda request: ()

    def _metadata(self, call: Call) -> Sequence[tuple[str, str]]:
        sent = wire_metadata(call)
        if self._sign is None or call.principal is None:
            return sent
        signed = self._sign(call.principal, self._caller, call.remaining_seconds())
        return (*sent, (IDENTITY_KEY, signed))

    def _unary(self, spec: MethodSpec) -> Callable[..., Any]:
        kind = self._channel.stream_unary if spec.client_streaming else self._channel.unary_unary
        multicallable = _dialled(kind, spec)
        default_seconds = default_deadline(spec, self._settings)
        affinity = self._affinity(spec)

        async def call(
            request: Any, *, timeout: float | None = None, metadata: Metadata | None = None
        ) -> Any:
            made = outgoing_call(spec.path, default_seconds, timeout, metadata, self._caller)
            try:
                return await multicallable(
                    request,
                    timeout=made.remaining_seconds(),
                    metadata=(*self._metadata(made), *affinity(request)),
                )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None

        return call

    def _streaming(self, spec: MethodSpec) -> Callable[..., Any]:
        kind = self._channel.stream_stream if spec.client_streaming else self._channel.unary_stream
        multicallable = _dialled(kind, spec)
        default_seconds = default_deadline(spec, self._settings)
        affinity = self._affinity(spec)

        async def call(
            request: Any, *, timeout: float | None = None, metadata: Metadata | None = None
        ) -> AsyncGenerator[Any, None]:
            made = outgoing_call(spec.path, default_seconds, timeout, metadata, self._caller)
            stream = multicallable(
                request,
                timeout=made.remaining_seconds(),
                metadata=(*self._metadata(made), *affinity(request)),
            )
            try:
                async for message in stream:
                    yield message
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None
            finally:
                # Tells the server when the reader stops early; after the end it does nothing.
                stream.cancel()

        return call


class XdsChannel(RemoteChannel):
    """Reaches whoever the control plane says: every service by the one target, MESH_TARGET.

    Which instance takes a call, and whether one that failed is tried again, gRPC decides by
    what the control plane told it; calls of one session or queue go to one instance while it
    lives. Connections are secured as the cluster says, and plain where it says nothing.
    The process's bootstrap names the control plane (`mesh.control.xds.bootstrap`).
    """

    def __init__(
        self, settings: RpcSettings, *, caller: str = "", sign: Sign | None = None
    ) -> None:
        super().__init__(MESH_TARGET, settings, caller=caller, sign=sign)

    def _dial(self, target: str) -> grpc.aio.Channel:
        experimental: Any = grpc.experimental
        plain = experimental.insecure_channel_credentials()
        credentials = grpc.xds_channel_credentials(plain)
        return grpc.aio.secure_channel(
            target, credentials, options=xds_channel_options(self._settings)
        )

    def _affinity(self, spec: MethodSpec) -> Callable[[Any], Metadata]:
        return affinity_of(spec)


class MeshChannel(StubChannel):
    """Nearest first: the handler in this process where there is one, else the server that
    `resolve` names, or the mesh where it names MESH_TARGET. Each call decides anew, so
    services may come and go.

    With `validated` the requests are made of parts that were checked when they came in:
    a handler in this process isn't asked to check them again. `caller` is the service that
    calls, and `callees` the contracts that it may call, by full name; None for all.

    Raises NotServing when nobody serves the method, PermissionDenied for a stub of a
    contract that isn't among the callees.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        resolve: Resolve,
        settings: RpcSettings,
        *,
        validated: bool = False,
        caller: str = "",
        callees: Collection[str] | None = None,
        sign: Sign | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._validated = validated
        self._caller = caller
        self._callees = callees
        self._sign = sign
        self._resolve = resolve
        self._settings = settings
        self._channels: dict[str, RemoteChannel] = {}
        self._remote: dict[tuple[str, str], Callable[..., Any]] = {}

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
            return self._remote_callable(method)(request, timeout=timeout, metadata=metadata)

        return call

    async def close(self) -> None:
        """Closes the connections to other processes."""
        channels = list(self._channels.values())
        self._channels.clear()
        self._remote.clear()
        for channel in channels:
            await channel.close()

    def _remote_callable(self, method: str) -> Callable[..., Any]:
        service = method[1:].partition("/")[0]
        target = self._resolve(service)
        if target is None:
            raise NotServing(f"nobody serves {service}")
        found = self._remote.get((target, method))
        if found is None:
            channel = self._channels.get(target)
            if channel is None:
                channel = self._channels[target] = self._reaching(target)
            found = self._remote[target, method] = channel.callable_of(method)
        return found

    def _reaching(self, target: str) -> RemoteChannel:
        if target == MESH_TARGET:
            return XdsChannel(self._settings, caller=self._caller, sign=self._sign)
        return RemoteChannel(target, self._settings, caller=self._caller, sign=self._sign)


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


def xds_channel_options(settings: RpcSettings) -> list[tuple[str, Any]]:
    """The options of a channel to the mesh."""
    return [
        *(option for option in channel_options(settings) if option[0] != "grpc.enable_retries"),
        # The routes say which methods may be tried again.
        ("grpc.enable_retries", 1),
        ("grpc.lb.ring_hash.ring_size_cap", RING_PLACES_MAX),
    ]


def _dialled(kind: Callable[..., Any], spec: MethodSpec) -> Callable[..., Any]:
    multicallable: Callable[..., Any] = kind(
        spec.path,
        request_serializer=spec.request_class.SerializeToString,
        response_deserializer=spec.response_class.FromString,
    )
    return multicallable
