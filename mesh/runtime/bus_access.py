"""What a service does on the bus; its NATS user's permissions follow from it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class KeyUse(IntEnum):
    """What a service does with the key store; each holds those before it."""

    NONE = 0
    READ = 1
    """Reads all keys, and makes those that seal the areas which it appends to."""
    DESTROY = 2
    KEEP = 3
    """Makes and changes every entry: the master key's mark, secrets, tenants' keys."""


@dataclass(frozen=True, slots=True)
class BusAccess:
    """Nothing is granted that isn't named here, but the lease that each process has.

    `appends` are the areas whose streams it writes, with their snapshots and blobs;
    `reads` is the whole log, live too, with its snapshots and blobs, and goes with
    `appends`; `erases` purges snapshots, tokens and blobs; `caches` says that it keeps
    values in the cache, or has some forgotten.
    """

    appends: tuple[str, ...] = ()
    reads: bool = False
    tokens: bool = False
    keys: KeyUse = KeyUse.NONE
    erases: bool = False
    caches: bool = False

    @property
    def reads_log(self) -> bool:
        """Whether it reads the log: who appends settles by it what became of an append."""
        return self.reads or bool(self.appends)


EVERY_PROCESS = BusAccess(reads=True, keys=KeyUse.READ)
"""What any process of Weft does: it knows from the log who may call, and opens what is
sealed there."""


def union(accesses: Iterable[BusAccess]) -> BusAccess:
    """What a process with all of them does, and nothing more."""
    each = [EVERY_PROCESS, *accesses]
    return BusAccess(
        appends=tuple(sorted({area for access in each for area in access.appends})),
        reads=any(access.reads for access in each),
        tokens=any(access.tokens for access in each),
        keys=max(access.keys for access in each),
        erases=any(access.erases for access in each),
        caches=any(access.caches for access in each),
    )
