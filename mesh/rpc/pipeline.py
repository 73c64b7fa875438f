"""The pipeline around every handler, the same for local calls and for the wire.

Each method gets one function, made once. Of unary methods it is a coroutine function, of
streaming ones an async generator function; both take the request (or an async iterator of
requests) and the Call.
"""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry

from mesh.call import Call, current_call
from mesh.errors import CredentialInvalid, Unimplemented
from mesh.rpc.methods import Handler, MethodSpec, methods_of, service_of
from mesh.rpc.open_methods import PUBLIC
from mesh.rpc.propagation import AUTHORIZATION_KEY, IDENTITY_KEY
from mesh.rpc.rate_limiter import RateLimiter
from mesh.rpc.settings import RpcSettings
from mesh.rpc.stages.authorize import Authorize, Callers
from mesh.rpc.stages.deadline import Deadlines
from mesh.rpc.stages.errors import outward, wrong_answer
from mesh.rpc.stages.identity import CredentialWatch, Identities, identify
from mesh.rpc.stages.limits import Peers, UnderWay
from mesh.rpc.stages.trace import InCall, open_span
from mesh.rpc.stages.validate import validate
from mesh.rpc.status import code_of
from mesh.security.authenticator import Authenticator
from mesh.telemetry import traces
from mesh.telemetry.metrics import RpcMetrics, Served
from weft.options.v1 import options_pb2


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A method with its whole pipeline. `deadline_seconds` is for calls without one."""

    spec: MethodSpec
    invoke: Handler
    deadline_seconds: float


@dataclass(frozen=True, slots=True)
class Edge:
    """Who decides whether a call may be made, and how many. `callers` are the services
    that may call a contract, by its full name."""

    authenticator: Authenticator
    identities: Identities
    rate_limiter: RateLimiter
    callers: Callers = field(default_factory=dict)


class Pipeline:
    """What stands around all handlers of one server, in one event loop. The order is the
    project's one: trace, metrics, errors, the bounds of peers and of calls under way, peer
    identity, authenticate, rate limit, decode, authorize, deadline, validate, handler.

    Each part raises what the call then ends with. It is written out in one function for
    unary methods and one for streams: wrapped around each other the parts cost twice as much.
    """

    def __init__(self, registry: CollectorRegistry, settings: RpcSettings, edge: Edge) -> None:
        self._edge = edge
        self._metrics = RpcMetrics(registry)
        peers = Peers(settings, edge.authenticator, edge.identities)
        self._calls = UnderWay("calls", settings.concurrent_calls_max, peers)
        # A bound of their own, so that watchers don't keep calls out.
        self._streams = UnderWay("streams", settings.concurrent_streams_max, peers)
        self._watch = CredentialWatch(edge.authenticator)
        self._authorize = Authorize(edge.authenticator, edge.callers)
        self._deadlines = Deadlines()

    @property
    def metrics(self) -> RpcMetrics:
        """What was counted of its calls."""
        return self._metrics

    @property
    def under_way(self) -> int:
        """Calls and streams from other processes that are being answered."""
        return self._calls.count + self._streams.count

    @property
    def served(self) -> Mapping[str, Served]:
        """Calls that ended here, by the service that their contract is of."""
        return self._metrics.served()

    def around(self, spec: MethodSpec, handler: Handler) -> Handler:
        """The handler of a method with everything around it.

        Raises ValueError for a method whose contract states no permission.
        """
        admit = self._admission(spec)
        if spec.server_streaming:
            return self._stream(spec, handler, admit)
        return self._unary(spec, handler, admit)

    def _admission(self, spec: MethodSpec) -> Callable[[Any, Call], Any]:
        """From the peer's identity to authorization: gives the request that may go on."""
        verify, recall = self._edge.identities.verify, self._edge.authenticator.recall
        authenticate = self._edge.authenticator.authenticate
        take = self._edge.rate_limiter.take
        authorize = self._authorize.check_of(spec)
        may_open = self._authorize.opening_of(spec)
        watch = self._watch.add
        public = spec.path in PUBLIC
        streams = spec.client_streaming or spec.server_streaming
        reads = spec.policy.effect == options_pb2.EFFECT_READ

        async def received(requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
            async for request in requests:
                message = spec.decode(request) if type(request) is bytes else request
                authorize(message, call)
                validate(spec, message)
                yield message

        def admit(request: Any, call: Call) -> Any:
            if call.peer:
                identity = call.metadata.get(IDENTITY_KEY)
                if identity is not None:
                    identify(call, verify(identity, spec.path), recall, public=public)
                elif not public:
                    call.principal = authenticate(call.metadata.get(AUTHORIZATION_KEY, ""))
                # What Weft's services call for a principal is part of a call that was
                # counted; a public method is bounded by what its peer may do.
                if call.principal is not None and not (call.caller or call.relayed_by):
                    take(call.principal, read=reads)
                if streams:
                    watch(call)
            elif call.principal is None and not public:
                call.principal = authenticate(call.metadata.get(AUTHORIZATION_KEY, ""))
            if spec.client_streaming:
                may_open(call)
                return received(request, call)
            # A few bytes can make many messages: whom nobody knows is refused before.
            message = spec.decode(request) if type(request) is bytes else request
            authorize(message, call)
            return message

        return admit

    def _unary(
        self, spec: MethodSpec, handler: Handler, admit: Callable[[Any, Call], Any]
    ) -> Handler:
        metrics = self._metrics.method(spec.service, spec.name)
        # What a client streams may be open for as long as what it is sent.
        under_way = self._streams if spec.client_streaming else self._calls
        new_alarm = self._deadlines.alarm
        response_class, client_streaming = spec.response_class, spec.client_streaming
        caught_up = self._edge.authenticator.caught_up

        async def answer(request: Any, call: Call) -> Any:
            peer = alarm = failure = None
            token = current_call.set(call)
            span = open_span(spec, call) if traces.active() else None
            started = perf_counter()
            metrics.in_flight += 1
            try:
                if call.peer:
                    peer = under_way.begin(call)
                try:
                    request = admit(request, call)
                except CredentialInvalid:
                    # One that was made in another process may not be known here yet.
                    if not call.peer or not await caught_up():
                        raise
                    request = admit(request, call)
                alarm = new_alarm(call)
                if client_streaming:
                    call.end = alarm.ring
                with alarm:
                    if not call.validated and not client_streaming:
                        validate(spec, request)
                    response = await handler(request, call)
                if response.__class__ is not response_class:
                    raise wrong_answer(spec, response)
                return response
            except BaseException as error:
                failure = outward(error, call)
                if failure is error:
                    raise
                raise failure from None
            finally:
                if alarm is not None:
                    alarm.off()
                if peer is not None:
                    under_way.end(peer, call, failure)
                current_call.reset(token)
                metrics.ended(_code(failure), perf_counter() - started)
                if span is not None:
                    span.end(_code(failure), failed=failure is not None)
                # An error knows this frame, and the frame the error: together they would keep
                # the call, and its place on the connection, until garbage is looked for.
                failure = None

        return answer

    def _stream(
        self, spec: MethodSpec, handler: Handler, admit: Callable[[Any, Call], Any]
    ) -> Handler:
        metrics = self._metrics.method(spec.service, spec.name, streams=True)
        under_way, new_alarm = self._streams, self._deadlines.alarm
        response_class = spec.response_class
        caught_up = self._edge.authenticator.caught_up

        async def answers(request: Any, call: Call) -> AsyncGenerator[Any, None]:
            peer = alarm = failure = None
            span = open_span(spec, call) if traces.active() else None
            started = perf_counter()
            metrics.in_flight += 1
            try:
                if call.peer:
                    peer = under_way.begin(call)
                try:
                    request = admit(request, call)
                except CredentialInvalid:
                    # One that was made in another process may not be known here yet.
                    if not call.peer or not await caught_up():
                        raise
                    request = admit(request, call)
                call.alarm = alarm = new_alarm(call)
                call.end = alarm.ring
                with alarm:
                    if not call.validated and not spec.client_streaming:
                        validate(spec, request)
                async with aclosing(InCall(call, handler(request, call))) as messages:
                    while True:
                        with alarm:
                            message = await anext(messages, _END)
                        if message is _END:
                            return
                        if message.__class__ is not response_class:
                            raise wrong_answer(spec, message)
                        yield message
            except BaseException as error:
                failure = outward(error, call)
                if failure is error:
                    raise
                raise failure from None
            finally:
                if alarm is not None:
                    alarm.off()
                if peer is not None:
                    under_way.end(peer, call, failure)
                metrics.ended(_code(failure), perf_counter() - started)
                if span is not None:
                    span.end(_code(failure), failed=failure is not None)
                # An error knows this frame, and the frame the error: together they would keep
                # the call, and its place on the connection, until garbage is looked for.
                failure = None

        return answers


_END = object()


def _code(failure: BaseException | None) -> str:
    return "OK" if failure is None else code_of(failure).name


def bind(
    handlers: Mapping[str, object], pipeline: Pipeline, settings: RpcSettings
) -> dict[str, Endpoint]:
    """The endpoints of all methods of `handlers`, by path.

    `handlers` maps a contract's full name to the object that implements it. A method
    that the object lacks answers UNIMPLEMENTED. Raises LookupError for a contract that
    isn't known, TypeError for a method of the wrong kind.
    """
    endpoints: dict[str, Endpoint] = {}
    for full_name, implementation in handlers.items():
        for spec in methods_of(service_of(full_name)):
            invoke = pipeline.around(spec, _innermost(spec, implementation))
            endpoints[spec.path] = Endpoint(spec, invoke, default_deadline(spec, settings))
    return endpoints


def default_deadline(spec: MethodSpec, settings: RpcSettings) -> float:
    """Seconds that a call of the method gets when its caller sets no deadline."""
    if spec.server_streaming or spec.client_streaming:
        return settings.stream_deadline_seconds
    if spec.policy.effect == options_pb2.EFFECT_READ:
        return settings.read_deadline_seconds
    return settings.write_deadline_seconds


def _innermost(spec: MethodSpec, implementation: object) -> Handler:
    handler: Handler | None = getattr(implementation, spec.attribute, None)
    if handler is None:
        return _unimplemented_stream if spec.server_streaming else _unimplemented
    if spec.server_streaming:
        if not inspect.isasyncgenfunction(handler):
            raise TypeError(f"{spec.attribute} must be an async generator")
        return handler
    if not inspect.iscoroutinefunction(handler):
        raise TypeError(f"{spec.attribute} must be a coroutine function")
    return handler


async def _unimplemented(request: Any, call: Call) -> Any:
    raise Unimplemented("this server doesn't offer the method")


async def _unimplemented_stream(request: Any, call: Call) -> AsyncGenerator[Any, None]:
    raise Unimplemented("this server doesn't offer the method")
    yield
