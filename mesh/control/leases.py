"""Who is alive: each instance renews a lease, and everybody sees whose has expired."""

from typing import Protocol

LEASE_SECONDS = 1.0
"""How long a lease holds after its last renewal."""


class Leases(Protocol):
    """This instance's lease, and a view of everybody's.

    A lease is renewed every 0.3 s and expires 1 s after its last renewal. An instance
    that couldn't renew holds nothing from the moment that its own monotonic clock says
    so, which is never later than the moment that others may see it expired.
    """

    @property
    def instance(self) -> str:
        """Id of this instance."""
        ...

    def held(self) -> bool:
        """Whether this instance's lease certainly holds right now. Asked right before
        every effect."""
        ...

    def expired(self, instance: str) -> bool:
        """Whether `instance` is certainly gone: its lease expired while we watched, or
        this process succeeded it on its data folder. False while in doubt, and for one
        full lease after we (re)connected."""
        ...
