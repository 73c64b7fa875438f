"""Bounds how many calls a second a caller makes."""

from typing import Any

from mesh.call import Call
from mesh.rpc.methods import Handler, MethodSpec
from mesh.rpc.rate_limiter import RateLimiter
from weft.options.v1 import options_pb2


class RateLimit:
    """Counts calls from outside for their key and their tenant; raises RateLimited.

    What Weft's services call for a principal is part of a call that was counted. Without
    a principal a method is public, and bounded by what its peer may do.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        read = spec.policy.effect == options_pb2.EFFECT_READ
        take = self._limiter.take

        def limited(request: Any, call: Call) -> Any:
            if call.peer and not call.caller and call.principal is not None:
                take(call.principal, read=read)
            return inner(request, call)

        return limited

    stream = unary
