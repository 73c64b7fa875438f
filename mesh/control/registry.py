"""Which instances there are, what each serves and where it listens."""

from collections.abc import Callable, Sequence
from typing import Protocol

from weft.control.v1.instances_pb2 import Instance, InstanceLoad


class Registry(Protocol):
    """A view of all instances, in memory.

    An instance says of itself what it is with each renewal of its lease, so it is there as
    long as its lease is: one that was killed is gone within about a second, one that ends
    in order says so before. In doubt an instance stays, so two processes may have different
    views for a moment: what must be decided once is decided by the log, not by this.
    """

    def instances(self, service: str = "") -> Sequence[Instance]:
        """The instances that serve a service of the catalogue, or all; by name. Also those
        that drain. The caller changes none of them."""
        ...

    def serving(self, service: str = "") -> Sequence[Instance]:
        """Those of them that take calls."""
        ...

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after an instance came, went, or said something else of itself
        than how busy it is."""
        ...

    def on_say(self, callback: Callable[[InstanceLoad], None]) -> None:
        """Calls `callback` with how busy this instance is each time before it says so, to add
        what a service of it has to say. It raises nothing: the lease is renewed with it."""
        ...

    @property
    def draining(self) -> bool:
        """Whether this instance takes nothing new."""
        ...

    async def register(self, target: str, xds_target: str = "") -> None:
        """Says that this instance takes calls at `target`, as gRPC dials it, and questions of
        xDS clients at `xds_target`, where it does."""
        ...

    async def drain(self) -> None:
        """Says that this instance takes nothing new, until it registers again; does nothing
        where it never took any."""
        ...
