"""The call that is being answered: what a handler may know of it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field

from mesh.clock import SYSTEM, Clock
from mesh.errors import WeftError
from mesh.principal import Principal


@dataclass(slots=True, weakref_slot=True, eq=False)
class Call:
    """One call, in the local path and over the wire alike.

    `method` is `/package.Service/Method`. `deadline` is on the monotonic clock, in
    seconds; every call has one. `request_id` is in the log and in errors. `principal` is
    who calls; None until they are authenticated. `caller` is the service that calls on
    the principal's behalf, as the catalogue names it; empty for a call from outside.
    `relayed_by` is the service that hands on such a call.
    `peer` is the other end of the connection, empty for a call within the process.
    `traceparent` is W3C trace context, empty where there is none. `metadata` holds the
    caller's text metadata, keys in lower case. `validated` says that the request is made
    of parts which were checked when they came in. `end` ends a stream under way with an
    error; None where the call isn't one. `alarm` is a stream's: what is done for it outside
    its handler is done within `with call.alarm`, which ends it at its deadline too. `acts_as`
    says whether the certificate of the other end is of a process in which a service runs; None
    where no certificates are used.
    """

    method: str
    deadline: float
    request_id: str
    principal: Principal | None = None
    caller: str = ""
    relayed_by: str = field(default="", kw_only=True)
    peer: str = ""
    traceparent: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    clock: Clock = SYSTEM
    validated: bool = False
    end: Callable[[WeftError], None] | None = None
    alarm: AbstractContextManager[None] | None = None
    acts_as: Callable[[str], bool] | None = None

    @property
    def actor(self) -> str:
        """What the log calls who did it: the principal's name."""
        return self.principal.name if self.principal is not None else "anonymous"

    def remaining_seconds(self) -> float:
        """Seconds until the deadline; negative once it passed."""
        return self.deadline - self.clock.monotonic()


current_call: ContextVar[Call | None] = ContextVar("weft_call", default=None)
"""The call that this task answers; outgoing calls take deadline, ids and trace from it."""
