"""The pipeline around every handler, the same for local calls and for the wire.

Per method the interceptors are composed once into one function. Of unary methods it
is a coroutine function, of streaming ones an async generator function; both take the
request (or an async iterator of requests) and the Call.
"""

import inspect
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from mesh.call import Call
from mesh.errors import Unimplemented
from mesh.rpc.interceptors.authorize import Authorize, Callers
from mesh.rpc.interceptors.deadline import Deadline
from mesh.rpc.interceptors.decode import Decode
from mesh.rpc.interceptors.errors import Errors
from mesh.rpc.interceptors.identity import Authenticate, Identities, PeerIdentity
from mesh.rpc.interceptors.limits import Limits
from mesh.rpc.interceptors.metrics import Metrics
from mesh.rpc.interceptors.rate_limit import RateLimit
from mesh.rpc.interceptors.trace import Trace
from mesh.rpc.interceptors.validate import Validate
from mesh.rpc.methods import Handler, MethodSpec, methods_of, service_of
from mesh.rpc.rate_limiter import RateLimiter
from mesh.rpc.settings import RpcSettings
from mesh.security.authenticator import Authenticator
from mesh.telemetry.metrics import RpcMetrics
from weft.options.v1 import options_pb2


class Interceptor(Protocol):
    """Wraps `inner`, the rest of the pipeline of one method. Called once per method."""

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler: ...

    def stream(self, spec: MethodSpec, inner: Handler) -> Handler: ...


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


def server_interceptors(
    registry: CollectorRegistry, settings: RpcSettings, edge: Edge
) -> tuple[Interceptor, ...]:
    """The interceptors of a server, outermost first: the project's one order."""
    return (
        Trace(),
        Metrics(RpcMetrics(registry)),
        Errors(),
        Limits(settings, edge.authenticator, edge.identities),
        PeerIdentity(edge.identities),
        Authenticate(edge.authenticator),
        RateLimit(edge.rate_limiter),
        Decode(),
        Authorize(edge.authenticator, edge.callers),
        Deadline(),
        Validate(),
    )


def bind(
    handlers: Mapping[str, object], interceptors: Sequence[Interceptor], settings: RpcSettings
) -> dict[str, Endpoint]:
    """The endpoints of all methods of `handlers`, by path.

    `handlers` maps a contract's full name to the object that implements it. A method
    that the object lacks answers UNIMPLEMENTED. Raises LookupError for a contract that
    isn't known, TypeError for a method of the wrong kind.
    """
    endpoints: dict[str, Endpoint] = {}
    for full_name, implementation in handlers.items():
        for spec in methods_of(service_of(full_name)):
            invoke = _composed(spec, _innermost(spec, implementation), interceptors)
            endpoints[spec.path] = Endpoint(spec, invoke, default_deadline(spec, settings))
    return endpoints


def default_deadline(spec: MethodSpec, settings: RpcSettings) -> float:
    """Seconds that a call of the method gets when its caller sets no deadline."""
    if spec.server_streaming or spec.client_streaming:
        return settings.stream_deadline_seconds
    if spec.policy.effect == options_pb2.EFFECT_READ:
        return settings.read_deadline_seconds
    return settings.write_deadline_seconds


def _composed(spec: MethodSpec, inner: Handler, interceptors: Sequence[Interceptor]) -> Handler:
    for interceptor in reversed(interceptors):
        wrap = interceptor.stream if spec.server_streaming else interceptor.unary
        inner = wrap(spec, inner)
    return inner


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
