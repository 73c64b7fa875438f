"""A TCP relay whose connections can be broken in the midst of what passes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.eventually import eventually

READ_BYTES = 1 << 12


class Relay:
    """Passes on what comes to `port`, and counts what clients send."""

    def __init__(self, behind: int) -> None:
        self.port = 0
        self.bytes_passed = 0
        self._behind = behind
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Breaks all connections now, as the end of a process or of its machine does."""
        for writer in self._writers:
            writer.transport.abort()

    async def until_passed(self, count: int) -> None:
        """Returns once clients have sent more than `count` bytes."""
        await eventually(lambda: self.bytes_passed > count)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side of it ends."""
        from_behind, to_behind = await asyncio.open_connection("127.0.0.1", self._behind)
        ours = {writer, to_behind}
        self._writers |= ours
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, to_behind, counted=True))
                both.create_task(self._pass(from_behind, writer, counted=False))
        except* OSError:
            pass  # It was cut, or one side ended.
        finally:
            self._writers -= ours
            for each in ours:
                each.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
            if counted:
                self.bytes_passed += len(data)
        raise ConnectionResetError


@asynccontextmanager
async def relayed(behind: int) -> AsyncIterator[Relay]:
    """A relay before the server at port `behind` of this machine."""
    relay = Relay(behind)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        relay.cut()
        await server.wait_closed()
