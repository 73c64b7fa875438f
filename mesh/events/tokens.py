"""The port of the token stream: what models write, for watchers in other processes.

Tokens aren't facts: they are kept for a short while in memory, may be lost with it, and
are whole again in the fact that ends their step.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from mesh.events.store import StreamName


class TokenStream(Protocol):
    """Publishes and follows the tokens of turns."""

    def publish(self, stream: StreamName, turn: str, data: bytes) -> None:
        """Sends a message to those who follow the turn; nobody waits for it."""
        ...

    def follow(self, stream: StreamName, turn: str) -> AsyncIterator[bytes]:
        """Messages of the turn that are kept, then those that come. Never ends by
        itself."""
        ...

    async def forget(self, stream: StreamName) -> None:
        """Deletes what is kept of all turns of the stream. May raise EventStoreUnavailable."""
        ...
