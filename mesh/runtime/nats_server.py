"""The nats-server that Weft starts, supervises and stops on one machine."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nats
import nats.errors
import structlog

from mesh.errors import DataDamaged, FailedPrecondition, Unavailable, WeftError
from mesh.events.jetstream.connection import Login
from mesh.ids import new_id
from mesh.private_files import write_private
from mesh.runtime.child_process import ChildProcess, end_left_behind
from mesh.runtime.nats_credentials import NatsCredentials
from mesh.runtime.nats_files import (
    NatsLimits,
    configuration,
    find_binary,
    last_complaint,
    store_bytes_max,
    stored_streams,
)
from mesh.runtime.nats_users import ADMIN, BusUser
from mesh.sockets import bind_first_free

PORT = 4222
_HOST = "127.0.0.1"
_LAUNCHES_MAX = 3
_READY_SECONDS_MAX = 10.0
_REQUEST_SECONDS_MAX = 2.0
_POLL_SECONDS = 0.02
_FAILED_STARTS_MAX = 5
_PAUSE_SECONDS_MIN = 0.1
_PAUSE_SECONDS_MAX = 5.0
_STEADY_SECONDS = 5.0
_LOOK_SECONDS = 1.0
# Well above the largest message, so that a full disk is known before or as writes fail;
# the second one further up, so that a disk at the edge doesn't mean a restart each second.
_FREE_BYTES_MIN = 16 * 1024 * 1024
_FREE_BYTES_AGAIN = 32 * 1024 * 1024

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NatsEndpoint:
    """Where a nats-server listens, and the folder that holds its users' seeds.

    `port_taken` is the port that was asked for, where another program had it.
    """

    url: str
    folder: Path
    port_taken: int | None = None

    def login(self, user: BusUser) -> Login:
        """How to log in as that user."""
        return Login(self.folder / f"{user.name}.nkey", user.inbox, user.api)


class EmbeddedNats:
    """One nats-server with its store under `data_dir`, which the caller has locked.

    It listens on loopback only, lets in nobody but `users`, `admin` among them, and
    subscribers, and is on disk before it acknowledges. One that a killed owner left
    behind is ended first.
    When it dies it is started again on the same port: at once, then after growing
    pauses; after five failed starts in a row, or with damaged data, it stays down.
    A stream that had no room for a message takes none until the server starts again, so
    it is restarted once a full disk has room again.
    """

    _binary: Path
    _port: int

    def __init__(
        self,
        data_dir: Path,
        users: Sequence[BusUser],
        *,
        binary: Path | None = None,
        port: int = PORT,
        limits: NatsLimits | None = None,
    ) -> None:
        self._folder = data_dir.absolute() / "nats"
        self._named_binary = binary
        self._wanted_port = port
        self._limits = limits or NatsLimits()
        self._credentials = NatsCredentials(self._folder, users)
        self._config_file = self._folder / "nats.conf"
        self._lock_file = self._folder / "server.lock"
        self._log_file = self._folder / "server.log"
        self._output_file = self._folder / "output.log"
        self._child: ChildProcess | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._room.set()

    async def start(self) -> NatsEndpoint:
        """Starts it, once; returns when it serves, and raises where it doesn't in 10 s.

        FailedPrecondition: no binary, no port, or it ended at once. DataDamaged: a
        stored stream wasn't recovered. Unavailable: it didn't get ready in time.
        LimitExceeded: the disk is full. They say what the server's log says.
        """
        self._binary = await find_binary(self._named_binary)
        (self._folder / "jetstream").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._credentials.renew()
        # Before a port is looked for: the server that was left behind has ours.
        await end_left_behind(self._lock_file, self._config_file)
        bytes_max = store_bytes_max(self._folder / "jetstream", self._limits)
        # Kept over restarts: one that follows a full disk mustn't be refused for that.
        self._limits = replace(self._limits, store_bytes_max=bytes_max)
        self._port = await self._launch_on_free_port()
        self._tasks = {
            asyncio.create_task(self._supervise(), name="nats-server supervisor"),
            asyncio.create_task(self._watch_room(), name="nats-server disk"),
        }
        taken = self._wanted_port if self._wanted_port not in (0, self._port) else None
        return NatsEndpoint(f"nats://{_HOST}:{self._port}", self._folder, taken)

    async def stop(self) -> None:
        """Ends it, by force once it had 10 s. Safe to call again, and without a start."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._child:
            await self._child.stop()

    def healthy(self) -> bool:
        """Whether it runs and got ready. False for good once its restarts were used up."""
        return self._child is not None and self._child.alive

    @property
    def disk_full(self) -> bool:
        """Whether the disk of its store was full a second ago, so that writes may fail."""
        return not self._room.is_set()

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while there is none that is ready."""
        return self._child.pid if self._child and self._child.alive else None

    async def _launch_on_free_port(self) -> int:
        for attempt in range(1, _LAUNCHES_MAX + 1):
            with bind_first_free(_HOST, self._wanted_port) as probe:
                port: int = probe.getsockname()[1]
            try:
                self._child = await self._launch(port)
                break
            except FailedPrecondition:
                # Unless somebody else was quicker to take the port, it is another fault.
                if attempt == _LAUNCHES_MAX or _is_free(port):
                    raise
        return port

    async def _launch(self, port: int) -> ChildProcess:
        """Starts the process and waits until it serves; leaves none where it raises."""
        server_name = f"weft-{new_id()}"
        text = configuration(self._folder, server_name=server_name, port=port, limits=self._limits)
        write_private(self._config_file, text)
        log_bytes = self._log_file.stat().st_size if self._log_file.exists() else 0
        stored = stored_streams(self._folder)
        child = await ChildProcess.start(
            [self._binary, "-c", self._config_file],
            lock_file=self._lock_file,
            output_file=self._output_file,
        )
        try:
            # Not wait_for, which can lose a cancellation (Python 3.11).
            async with asyncio.timeout(_READY_SECONDS_MAX):
                recovered = await self._serving(child, port, server_name)
            if lost := sorted(stored - recovered):
                raise DataDamaged(f"nats-server didn't recover {', '.join(lost)}")
        except (TimeoutError, OSError, nats.errors.Error, WeftError) as error:
            await child.stop()
            raise self._explained(error, log_bytes) from error
        except BaseException:
            await child.stop()
            raise
        return child

    async def _serving(self, child: ChildProcess, port: int, server_name: str) -> set[str]:
        """Waits until the server lets our user in; returns the names of its streams."""
        while await _server_name(port) != server_name:
            if not child.alive:
                raise FailedPrecondition("nats-server ended at its start")
            await asyncio.sleep(_POLL_SECONDS)
        connection = await nats.connect(
            f"nats://{_HOST}:{port}",
            nkeys_seed=str(self._credentials.seed_file(ADMIN.name)),
            inbox_prefix=ADMIN.inbox,
            allow_reconnect=False,
            connect_timeout=int(_REQUEST_SECONDS_MAX),
            error_cb=_log_error,
        )
        try:
            answer = await connection.request("$JS.API.STREAM.NAMES", timeout=_REQUEST_SECONDS_MAX)
        finally:
            await connection.close()
        return set(json.loads(answer.data)["streams"] or ())

    def _explained(self, error: Exception, log_bytes: int) -> WeftError:
        """The error with what the server's log says behind `log_bytes`, or where it lies."""
        said = last_complaint(self._log_file, log_bytes) or last_complaint(self._output_file, 0)
        said = f": {said} ({self._log_file})" if said else f"; see {self._log_file}"
        if isinstance(error, WeftError):
            return type(error)(error.message + said)
        return Unavailable(f"nats-server wasn't ready within {_READY_SECONDS_MAX:.0f} s{said}")

    async def _supervise(self) -> None:
        """Starts it again whenever it ends, until `_restart` gives up."""
        clock = asyncio.get_running_loop().time
        pause_seconds = 0.0
        while self._child:
            launched = clock()
            code = await self._child.wait()
            lived_seconds = round(clock() - launched, 3)
            _log.warning("nats_server_ended", exit_code=code, lived_seconds=lived_seconds)
            if lived_seconds >= _STEADY_SECONDS:
                pause_seconds = 0.0
            await asyncio.sleep(pause_seconds)
            pause_seconds = _longer(pause_seconds)
            self._child = await self._restart()

    async def _restart(self) -> ChildProcess | None:
        """The new process; None where five starts in a row failed or data is damaged."""
        pause_seconds = 0.0
        for attempt in range(1, _FAILED_STARTS_MAX + 1):
            self._look_at_disk()
            await self._room.wait()
            try:
                child = await self._launch(self._port)
            except DataDamaged as error:
                # Another try would change nothing, and must not pass for an empty store.
                _log.error("nats_server_given_up", message=error.message)
                return None
            except (WeftError, OSError) as error:
                _log.error("nats_server_start_failed", attempt=attempt, message=str(error))
                pause_seconds = _longer(pause_seconds)
                await asyncio.sleep(pause_seconds)
            else:
                _log.info("nats_server_restarted", pid=child.pid)
                return child
        _log.error("nats_server_given_up", attempts=_FAILED_STARTS_MAX)
        return None

    async def _watch_room(self) -> None:
        """Restarts the server when a full disk has room again."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            was_full = self.disk_full
            self._look_at_disk()
            if was_full and not self.disk_full and self._child and self._child.alive:
                # The supervisor starts the next one.
                await self._child.stop()

    def _look_at_disk(self) -> None:
        try:
            free_bytes = shutil.disk_usage(self._folder).free
        except OSError as error:
            _log.warning("nats_disk_unknown", folder=str(self._folder), message=error.strerror)
            return
        if free_bytes < _FREE_BYTES_MIN and not self.disk_full:
            _log.error("nats_disk_full", folder=str(self._folder), free_bytes=free_bytes)
            self._room.clear()
        elif free_bytes >= _FREE_BYTES_AGAIN and self.disk_full:
            _log.info("nats_disk_has_room", folder=str(self._folder), free_bytes=free_bytes)
            self._room.set()


def is_full(folder: Path) -> bool:
    """Whether a server whose store is there may find no room for what it is told to write."""
    try:
        return shutil.disk_usage(folder).free < _FREE_BYTES_MIN
    except OSError:
        return False


def _longer(pause_seconds: float) -> float:
    return min(max(pause_seconds * 2, _PAUSE_SECONDS_MIN), _PAUSE_SECONDS_MAX)


def _is_free(port: int) -> bool:
    with bind_first_free(_HOST, port) as probe:
        return bool(probe.getsockname()[1] == port)


async def _server_name(port: int) -> str:
    """The name that a nats-server on this port gives itself; empty where none answers.

    Its first line, `INFO {...}`, comes before any login."""
    try:
        reader, writer = await asyncio.open_connection(_HOST, port)
    except OSError:
        return ""
    try:
        line = await reader.readline()
        return str(json.loads(line.removeprefix(b"INFO "))["server_name"])
    except (OSError, ValueError, KeyError):
        return ""
    finally:
        writer.close()


async def _log_error(error: Exception) -> None:
    _log.debug("nats_client_error", error=type(error).__name__)
