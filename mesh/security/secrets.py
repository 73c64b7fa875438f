"""The port of the secrets that all processes of a deployment share."""

from typing import Protocol


class Secrets(Protocol):
    """Random secrets by name, such as `pepper` or `signing.<kid>`. `Keyring` implements
    it: they are kept wrapped by the master key, outside the event log."""

    async def secret(self, name: str) -> bytes:
        """The 32 random bytes of that name, the same in every process; made at the first
        use. May raise EventStoreUnavailable."""
        ...

    async def destroy(self, name: str) -> None:
        """Destroys the secret of that name for good; harmless where there is none."""
        ...
