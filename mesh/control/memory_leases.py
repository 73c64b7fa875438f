"""Leases of a process that shares its event store with nobody."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryLeases:
    """The lease of the only instance there can be: always held, everybody else is gone."""

    instance: str

    def held(self) -> bool:
        return True

    def expired(self, instance: str) -> bool:
        return instance != self.instance

    async def start(self) -> None:
        """Nothing to do; here so that both kinds are started alike."""

    async def stop(self) -> None:
        """Nothing to do."""
