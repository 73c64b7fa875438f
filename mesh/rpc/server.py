"""The gRPC server: the endpoints of the pipeline, health and reflection on one port."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from mesh.call import Call
from mesh.errors import Cancelled, FailedPrecondition, WeftError
from mesh.rpc.load_report import LoadReport
from mesh.rpc.pipeline import Endpoint, Pipeline
from mesh.rpc.propagation import INSTANCE_KEY, REQUEST_ID_KEY, incoming_call
from mesh.rpc.reflection import reflection_endpoints
from mesh.rpc.settings import RpcSettings
from mesh.rpc.status import DETAILS_KEY, code_of, to_status
from mesh.rpc.transport import PLAIN, Transport
from mesh.sockets import address_at, bind_first_free

_PORT_ATTEMPTS_MAX = 3
WRITE_SECONDS = 1.0
"""How long a client that doesn't read may still take a message after its stream has ended."""
CANCEL_SECONDS_MAX = 5.0
"""How long a handler may wait for the word that its call is cancelled, once that shows."""
HEALTH_WATCHES_MAX = 128
HEALTH_WATCH_SECONDS_MAX = 3600.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class RpcServer:
    """Serves endpoints over the wire. Health is open to everybody; reflection goes through
    the pipeline as they do.

    Methods that aren't among them answer UNIMPLEMENTED, bytes that don't parse
    INVALID_ARGUMENT. With a `transport` of certificates it speaks TLS only. The request id
    comes back in the trailing metadata, and now and then with it the server's load; a stream tells
    other processes first which `instance` it is of. When a client goes away, its handler is
    cancelled where it waits, and a generator is closed.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        settings: RpcSettings,
        pipeline: Pipeline,
        transport: Transport = PLAIN,
        *,
        shares: bool = False,
        instance: str = "",
    ) -> None:
        self._transport = transport
        self._services = sorted({endpoint.spec.service for endpoint in endpoints.values()})
        self._server = grpc.aio.server(
            options=server_options(settings, shares=shares),
            # A backstop: below it calls over the bounds are refused with a time to wait.
            maximum_concurrent_rpcs=2
            * (settings.concurrent_calls_max + settings.concurrent_streams_max),
        )
        self._health = _Health()
        named = [*self._services, health.SERVICE_NAME]
        served = {**endpoints, **reflection_endpoints(named, pipeline, settings)}
        load = LoadReport(pipeline.metrics.totals)
        handlers = {
            path: _wire_handler(endpoint, settings, transport, load, instance)
            for path, endpoint in served.items()
        }
        self._server.add_generic_rpc_handlers((_Endpoints(handlers),))
        self._server.add_generic_rpc_handlers((_health_handlers(self._health),))

    def listen_to_processes(self, host: str, port: int) -> int:
        """Before `start`: listens on a port more, to Weft's own processes only, whose
        certificates are asked for; returns which it became. A service is taken for what it
        says to be on this port alone, once there are certificates."""
        return self._bind(host, port, processes=True)

    async def start(self, host: str, port: int, shared_port: int = 0) -> int:
        """Listens on `port`, or the next one that is free; returns which it became. And on
        `shared_port`, where there is one, beside others that listen there.

        From here on `grpc.health.v1` answers SERVING, for each service and for `""`.
        Raises FailedPrecondition when no port is free, or what is sent there could be read.
        """
        number = self._bind(host, port, processes=False)
        if shared_port:
            try:
                self._listen(host, shared_port, processes=False)
            except RuntimeError as error:
                raise FailedPrecondition(f"can't share {host}:{shared_port}") from error
        await self._server.start()
        for service in self._services:
            await self._health.set(service, _SERVING)
        return number

    async def refuse(self) -> None:
        """Says NOT_SERVING from now on, and goes on serving."""
        await self._health.enter_graceful_shutdown()

    async def say_serving(self, serving: bool) -> None:
        """Says SERVING from now on, or NOT_SERVING, and goes on serving either way."""
        status = _SERVING if serving else _NOT_SERVING
        for service in ("", *self._services):
            await self._health.set(service, status)

    async def drain(self, notice_seconds: float, grace_seconds: float) -> None:
        """Ends serving in order: NOT_SERVING, and `notice_seconds` for the balancers to see
        it; then no new calls, and `grace_seconds` for those under way before they are
        cancelled."""
        await self.refuse()
        await asyncio.sleep(notice_seconds)
        await self._server.stop(grace_seconds)

    async def stop(self) -> None:
        """Ends serving at once; calls under way are cancelled."""
        await self._server.stop(None)

    def _bind(self, host: str, port: int, *, processes: bool) -> int:
        self._transport.check_listening(host)
        for _ in range(_PORT_ATTEMPTS_MAX):
            # gRPC can't be handed a socket: the port is found with one that is closed
            # again. Should somebody take it in between, the next attempt finds another.
            with bind_first_free(host, port) as probe:
                free: int = probe.getsockname()[1]
            try:
                return self._listen(host, free, processes=processes)
            except RuntimeError:
                continue
        raise FailedPrecondition(f"can't listen on {host}:{port}")

    def _listen(self, host: str, port: int, *, processes: bool) -> int:
        return self._transport.listen(self._server, address_at(host, port), processes=processes)


class _Health(health.aio.HealthServicer):
    """Health is told to everybody; who watches it is bounded, since nobody knows them."""

    def __init__(self) -> None:
        super().__init__()
        self._watched = 0

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        return await super().Check(await _health_request(request, context), context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - gRPC's name
        request = await _health_request(request, context)
        if self._watched >= HEALTH_WATCHES_MAX:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch the health")
        self._watched += 1
        try:
            async with asyncio.timeout(HEALTH_WATCH_SECONDS_MAX):
                await super().Watch(request, context)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "watch again")
        finally:
            self._watched -= 1


def _health_handlers(servicer: _Health) -> Any:
    """Takes bytes, so that those which don't parse are refused as everywhere."""
    to_bytes = health_pb2.HealthCheckResponse.SerializeToString
    handlers: dict[str, Any] = {
        "Check": grpc.unary_unary_rpc_method_handler(servicer.Check, None, to_bytes),
        "Watch": grpc.unary_stream_rpc_method_handler(servicer.Watch, None, to_bytes),
    }
    return grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers)


async def _health_request(data: bytes, context: Any) -> Any:
    try:
        return health_pb2.HealthCheckRequest.FromString(data)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request doesn't parse")


class _Endpoints(grpc.GenericRpcHandler):
    """Finds the handler of a path; what it doesn't find, gRPC answers as UNIMPLEMENTED."""

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)


def server_options(settings: RpcSettings, *, shares: bool = False) -> list[tuple[str, Any]]:
    """The options of the server; mesh.md of the design says what each was needed for."""
    aged = [
        ("grpc.max_connection_age_ms", int(settings.connection_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", int(settings.connection_grace_seconds * 1000)),
    ]
    return [
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_receive_message_length", settings.request_bytes_max),
        # Between the two gRPC refuses by chance.
        ("grpc.max_metadata_size", settings.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", settings.metadata_bytes_max),
        # A call counts for the bounds once its message is there: what comes before it is
        # bounded here.
        ("grpc.max_concurrent_streams", settings.connection_streams_max),
        ("grpc.max_allowed_incoming_connections", settings.connections_max),
        # Who only holds a place loses it.
        ("grpc.max_connection_idle_ms", int(settings.connection_idle_seconds * 1000)),
        *(aged if settings.connection_age_seconds else ()),
        # Two servers on one port would share its calls unnoticed, unless they are meant to.
        ("grpc.so_reuseport", int(shares)),
    ]


def _wire_handler(
    endpoint: Endpoint,
    settings: RpcSettings,
    transport: Transport,
    load: LoadReport,
    instance: str,
) -> Any:
    spec = endpoint.spec
    if spec.server_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if spec.client_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        behaviour = _streaming_behaviour(endpoint, settings, transport, instance)
    else:
        make = (
            grpc.stream_unary_rpc_method_handler
            if spec.client_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        behaviour = _unary_behaviour(endpoint, settings, transport, load)
    return make(
        behaviour,
        # Whom nobody knows makes no message: the interceptor Decode parses the bytes.
        request_deserializer=None,
        response_serializer=spec.response_class.SerializeToString,
    )


def _unary_behaviour(
    endpoint: Endpoint, settings: RpcSettings, transport: Transport, load: LoadReport
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def behaviour(request: Any, context: Any) -> Any:
        call = _arrived(endpoint, context, settings.call_seconds_max, load.trailing())
        call.acts_as = transport.acts_as(context)
        if endpoint.spec.client_streaming:
            request = _whole(request, context)
        try:
            return await endpoint.invoke(request, call)
        except WeftError as error:
            await _refuse(context, call, error)

    return behaviour


async def _whole(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    """The requests of a call. Where its client cancels it gRPC ends them as if they were all, and
    cancels the handler a moment later: half of them must not pass for all until then. The head
    of an answer is sent at once to who waits for it, and can't be to who went away."""
    async for request in requests:
        yield request
    try:
        await context.send_initial_metadata(())
    except grpc.aio.InternalError:
        await asyncio.sleep(CANCEL_SECONDS_MAX)
        raise Cancelled("the client went away before all of its requests had come") from None


def _streaming_behaviour(
    endpoint: Endpoint, settings: RpcSettings, transport: Transport, instance: str
) -> Callable[[Any, Any], Awaitable[None]]:
    # Written with `context.write` rather than as a generator: gRPC wouldn't close one
    # when its client goes away.
    async def behaviour(request: Any, context: Any) -> None:
        call = _arrived(endpoint, context, settings.stream_seconds_max)
        call.acts_as = transport.acts_as(context)
        writing, named = False, not instance
        try:
            async with aclosing(endpoint.invoke(request, call)) as messages:
                async for message in messages:
                    # The pipeline ends the handler's steps; this a client that doesn't read.
                    assert call.alarm is not None, "set before the first message"
                    writing = True
                    with call.alarm:
                        if not named and (call.caller or call.relayed_by):
                            await context.send_initial_metadata(((INSTANCE_KEY, instance),))
                        await context.write(message)
                    writing, named = False, True
        except WeftError as error:
            if writing:
                # gRPC sends no status while a message is on its way.
                await asyncio.sleep(WRITE_SECONDS)
            await _refuse(context, call, error)

    return behaviour


def _arrived(
    endpoint: Endpoint, context: Any, seconds_max: float, trailing: Sequence[tuple[str, bytes]] = ()
) -> Call:
    call = incoming_call(
        endpoint.spec.path,
        endpoint.deadline_seconds,
        context.time_remaining(),
        context.invocation_metadata(),
        context.peer(),
        seconds_max,
    )
    context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id), *trailing))
    return call


async def _refuse(context: Any, call: Call, error: WeftError) -> None:
    """Ends the call with the error, as the one thing that is sent: behind headers or a message
    of their own no client's gRPC would try the call again."""
    message, trailing = _status(call, error)
    try:
        await context.abort(code_of(error), message, trailing)
    except grpc.aio.AbortError as aborted:
        # gRPC keeps it with the call and raises it again. It would keep the frames that it
        # went through, and they the call: its place on the connection would stay taken until
        # garbage is looked for.
        aborted.__traceback__ = aborted.__context__ = None
    except grpc.aio.InternalError:
        # A message is on its way to a client that doesn't read: it hears of no status.
        raise asyncio.CancelledError from None


def _status(call: Call, error: WeftError) -> tuple[str, tuple[tuple[str, str | bytes], ...]]:
    """The text and the trailing metadata of an error."""
    status = to_status(error, call.request_id)
    details = (DETAILS_KEY, status.SerializeToString())
    return status.message, ((REQUEST_ID_KEY, call.request_id), details)
