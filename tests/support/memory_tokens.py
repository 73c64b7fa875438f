"""A token stream in memory, of one process."""

from collections.abc import AsyncIterator

from mesh.events.store import StreamName


class MemoryTokens:
    """Keeps what is published; `forget` deletes it."""

    def __init__(self) -> None:
        self.kept: dict[str, list[bytes]] = {}

    def publish(self, stream: StreamName, turn: str, data: bytes) -> None:
        """See TokenStream."""
        self.kept.setdefault(f"{stream}.{turn}", []).append(data)

    async def follow(self, stream: StreamName, turn: str) -> AsyncIterator[bytes]:
        """See TokenStream; ends where nothing more is kept."""
        for data in self.kept.get(f"{stream}.{turn}", []):
            yield data

    async def forget(self, stream: StreamName) -> None:
        """See TokenStream."""
        for key in [key for key in self.kept if key.startswith(f"{stream}.")]:
            del self.kept[key]
