"""A deployment's processes on one machine: started, started again, and ended in order.

The supervisor has NATS, Valkey and the data folder's lock, and runs no service: whatever
a service does, the others and what is stored go on. Each part is `weft serve` with a folder
of its own in `processes/`. A part that dies is started again, at once, then after growing
pauses, for as long as the supervisor lives; Linux ends the parts when it dies.
"""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import Counter

from mesh.errors import FailedPrecondition, Unavailable, WeftError
from mesh.ids import new_id
from mesh.runtime.child_process import ChildProcess
from mesh.runtime.data_dir import DataDirectory, write_addresses
from mesh.runtime.nats_server import EmbeddedNats
from mesh.runtime.nats_users import ADMIN, HOST, bus_users
from mesh.runtime.service import ServiceEntry
from mesh.runtime.settings import RuntimeSettings
from mesh.runtime.valkey_server import EmbeddedValkey
from mesh.security.master_key import VARIABLE
from mesh.sockets import bind_first_free, dialled_host
from mesh.telemetry.http import TelemetryServer
from mesh.telemetry.metrics import new_registry

PARTS_MAX = 64
READY_SECONDS_MAX = 60.0
STOP_SECONDS = 5.0
"""What a part gets to end beyond its own notice and grace."""
PAUSE_SECONDS_MIN = 0.1
PAUSE_SECONDS_MAX = 10.0
STEADY_SECONDS = 5.0
LOOK_SECONDS = 1.0
"""How often each part is asked whether it is ready, and how long it has to answer."""
_ANSWER_BYTES_MAX = 64

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Part:
    """One of the processes: the services that it runs, and what it said when it was ready."""

    number: int
    services: tuple[str, ...]
    said: Mapping[str, Any] = field(default_factory=dict)
    child: ChildProcess | None = None
    ready: bool = False
    starting: bool = False

    @property
    def name(self) -> str:
        """Names it in logs, metrics and `/readyz`."""
        return f"process {self.number}"


class Supervisor:
    """Runs one process for each of `groups`, which name the services of the catalogue that
    it serves. `command` is what takes such names and the options of `weft serve`.

    The first part is started alone: it makes the streams and the first key. Raises what the
    host raises for a data folder or NATS, and FailedPrecondition or Unavailable where a part
    doesn't get ready; what was started by then is ended again.
    """

    def __init__(
        self,
        catalogue: Sequence[ServiceEntry],
        settings: RuntimeSettings,
        groups: Sequence[Sequence[str]],
        command: Sequence[str],
        *,
        secrets_dir: Path | None = None,
    ) -> None:
        if not 1 <= len(groups) <= PARTS_MAX:
            raise FailedPrecondition(f"there can be 1 to {PARTS_MAX} processes")
        self.settings = settings
        self.parts = [Part(number, tuple(each)) for number, each in enumerate(groups, start=1)]
        self.addresses: dict[str, str] = {}
        self.notes: list[str] = []
        self._nats: EmbeddedNats | None = None
        self._catalogue = catalogue
        self._command = command
        self._environment: dict[str, str] = {}
        # For the parts alone: NATS and Valkey have no use for it.
        self._secrets = {VARIABLE: key} if (key := os.environ.pop(VARIABLE, "")) else {}
        if secrets_dir is not None:
            self._secrets["WEFT_SECURITY_SECRETS_DIR"] = str(secrets_dir)
        self._accept_loss = settings.accept_loss
        self._tasks: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()
        registry = new_registry()
        self._restarts = Counter(
            "weft_process_restarts",
            "Parts that were started again.",
            ["process"],
            registry=registry,
        )
        self._telemetry = TelemetryServer(registry, self.readiness)

    async def __aenter__(self) -> "Supervisor":
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._stack.aclose()

    @property
    def first(self) -> Mapping[str, Any]:
        """What the first part said: the deployment's id, and the first key where it was made."""
        return self.parts[0].said

    def readiness(self) -> Mapping[str, bool]:
        """Which parts are ready, and whether what they append has room."""
        events = self._nats is None or not self._nats.disk_full
        return {part.name: part.ready for part in self.parts} | {"events": events}

    async def _start(self) -> None:
        # Last in, first out: the parts end before what they stand on.
        self._stack.enter_context(DataDirectory(self.settings.data_dir, new_id()))
        await self._start_nats()
        await self._start_valkey()
        self._share_port()
        self._stack.push_async_callback(self._stop_parts)
        first, *others = self.parts
        await self._launch(first)
        # What was accepted once isn't accepted again at the next restart.
        self._accept_loss = False
        await asyncio.gather(*(self._launch(part) for part in others))
        for part in self.parts:
            for watching, what in ((self._supervise, "supervisor"), (self._look, "liveness")):
                task = asyncio.create_task(watching(part), name=f"{part.name} {what}")
                self._tasks.add(task)
        self._stack.push_async_callback(self._telemetry.stop)
        wanted = self.settings.http_port
        port = await self._telemetry.start(self.settings.host, wanted)
        self._announce("http", wanted, port)
        self._write_addresses()

    async def _start_nats(self) -> None:
        settings, environment = self.settings, self._environment
        if settings.nats_url:
            # The parts find it, and how to log in, as we do.
            self.addresses["nats"] = settings.nats_url.rpartition("@")[2].removeprefix("nats://")
            return
        nats = EmbeddedNats(
            settings.data_dir,
            bus_users(self._catalogue),
            binary=settings.nats_binary,
            port=settings.nats_port,
        )
        self._nats = nats
        self._stack.push_async_callback(nats.stop)
        endpoint = await nats.start()
        if endpoint.port_taken is not None:
            self.notes.append(f"port {endpoint.port_taken} (nats) is in use; using {endpoint.url}")
        self.addresses["nats"] = endpoint.url.removeprefix("nats://")
        environment["NATS_URL"] = endpoint.url
        environment["WEFT_RUNTIME_NATS_USER"] = HOST
        environment["WEFT_RUNTIME_NATS_SEED_FILE"] = str(endpoint.folder / f"{HOST}.nkey")
        environment["WEFT_RUNTIME_NATS_ADMIN_SEED_FILE"] = str(
            endpoint.folder / f"{ADMIN.name}.nkey"
        )
        environment["WEFT_RUNTIME_OWN_LOG"] = "true"
        environment["WEFT_RUNTIME_NATS_STORE_FOLDER"] = str(endpoint.folder)

    async def _start_valkey(self) -> None:
        if self.settings.redis_url:
            return
        binary = self.settings.valkey_binary
        valkey = EmbeddedValkey(self.settings.data_dir, binary=binary, shared=True)
        self._stack.push_async_callback(valkey.stop)
        try:
            await valkey.start()
        except (WeftError, OSError) as error:
            _log.warning("valkey_missing", error=type(error).__name__)
            self.notes.append("valkey-server can't start; limits are counted in each process")
            return
        self._environment["REDIS_URL"] = valkey.url
        self._environment["WEFT_RUNTIME_REDIS_PASSWORD_FILE"] = str(valkey.password_file)

    def _share_port(self) -> None:
        """Finds the port that the parts share, and keeps it from others while none is there."""
        host, wanted = self.settings.host, self.settings.grpc_port
        with bind_first_free(host, wanted) as probe:
            port: int = probe.getsockname()[1]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        kept = self._stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # It doesn't listen, so that no connection comes to it.
        kept.bind((host, port))
        self._announce("grpc", wanted, port)
        self._environment["WEFT_RUNTIME_SHARED_PORT"] = str(port)
        self._environment["WEFT_RUNTIME_HOST"] = host
        # Each part has its own, where there are certificates.
        self._environment["WEFT_RUNTIME_MESH_PORT"] = "0"

    async def _launch(self, part: Part) -> None:
        """Starts a part, and returns once it is ready; leaves none where it raises."""
        folder = self.settings.data_dir.absolute() / "processes" / str(part.number)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = {**self._environment, **self._secrets}
        if self._accept_loss:
            environment["WEFT_RUNTIME_ACCEPT_LOSS"] = "true"
        # Where they lie for a single process, too.
        data_dir = str(self.settings.data_dir.absolute())
        environment["WEFT_VECTORS_FOLDER"] = data_dir
        if part.number == 1:
            environment["WEFT_RUNTIME_HEADS_FOLDER"] = data_dir
        # Who scrapes it, or asks where calls go, finds it again after a restart.
        first_xds_port = self.settings.xds_port if part.number == 1 else 0
        xds = str(part.said.get("xds", f":{first_xds_port}"))
        environment["WEFT_RUNTIME_XDS_PORT"] = xds.rpartition(":")[2]
        http_port = str(part.said.get("http", ":0")).rpartition(":")[2]
        options = ("--port", "0", "--http-port", http_port, "-o", "json")
        level = ("--log-level", self.settings.log_level)
        part.starting = True
        part.child = child = await ChildProcess.start(
            [*self._command, *part.services, *options, *level, "--data-dir", folder],
            lock_file=folder.with_suffix(".lock"),
            output_file=None,
            environment=environment,
        )
        try:
            async with asyncio.timeout(READY_SECONDS_MAX):
                line = await child.line()
            if not line:
                code = await child.wait()
                raise FailedPrecondition(
                    f"{part.name} ended at its start, with {code}: see its errors"
                )
            part.said = json.loads(line)
        except BaseException as error:
            await child.stop()
            if isinstance(error, TimeoutError):
                raise Unavailable(f"{part.name} wasn't ready in {READY_SECONDS_MAX:g} s") from None
            raise
        finally:
            part.starting = False
        part.ready = True

    async def _supervise(self, part: Part) -> None:
        clock = asyncio.get_running_loop().time
        pause_seconds = 0.0
        while True:
            launched = clock()
            if part.child is not None:
                code = await part.child.wait()
                part.ready = False
                _log.warning("process_ended", process=part.number, exit_code=code)
            if clock() - launched >= STEADY_SECONDS:
                pause_seconds = 0.0
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(max(pause_seconds * 2, PAUSE_SECONDS_MIN), PAUSE_SECONDS_MAX)
            try:
                await self._launch(part)
            except (WeftError, OSError, ValueError) as error:
                part.child = None
                _log.error("process_start_failed", process=part.number, message=str(error))
            else:
                self._restarts.labels(str(part.number)).inc()
                _log.info("process_restarted", process=part.number)

    async def _look(self, part: Part) -> None:
        """Knows whether the part is ready, and ends one that says nothing at all: new
        connections go on coming to it, since the system spreads them over who listens."""
        clock = asyncio.get_running_loop().time
        answered = clock()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            child = part.child
            if child is None or not child.alive or part.starting:
                # A start has a bound of its own.
                answered = clock()
                continue
            ready = await _is_ready(str(part.said.get("http", "")))
            if part.child is not child:
                answered = clock()
                continue
            part.ready = ready is True
            if ready is not None:
                answered = clock()
            elif clock() - answered >= self.settings.hung_seconds:
                _log.error("process_hangs", process=part.number, pid=child.pid)
                # The one that supervises starts the next.
                os.kill(child.pid, signal.SIGKILL)
                answered = clock()

    async def _stop_parts(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        settings = self.settings
        seconds = settings.notice_seconds + settings.grace_seconds + STOP_SECONDS
        children = [part.child for part in self.parts if part.child is not None]
        await asyncio.gather(*(child.stop(seconds) for child in children))

    def _announce(self, name: str, wanted_port: int, port: int) -> None:
        self.addresses[name] = f"{dialled_host(self.settings.host)}:{port}"
        if wanted_port not in (0, port):
            self.notes.append(f"port {wanted_port} ({name}) is in use; using {port}")

    def _write_addresses(self) -> None:
        keys = ("cluster", "ca_file", "xds")
        shared = {key: self.first[key] for key in keys if key in self.first}
        path = write_addresses(self.settings.data_dir, {**self.addresses, **shared})
        self._stack.callback(path.unlink, missing_ok=True)


async def _is_ready(address: str) -> bool | None:
    """What `/readyz` says at the address; None where nobody answers in time."""
    host, _, port = address.rpartition(":")
    writer = None
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: weft\r\nConnection: close\r\n\r\n")
            status = await reader.read(_ANSWER_BYTES_MAX)
    except (OSError, ValueError, TimeoutError):
        return None
    finally:
        if writer is not None:
            writer.close()
    return status.startswith(b"HTTP/1.1 200") if status else None
