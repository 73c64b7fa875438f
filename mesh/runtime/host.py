"""A process: its event store, its leases and the services that live in it.

Services are started in the order in which they call each other and stopped in reverse,
after the last call was drained.
"""

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog
from grpc import aio
from prometheus_client import CollectorRegistry

from mesh.clock import SYSTEM, Clock
from mesh.control.leases import Leases
from mesh.control.nats_leases import NatsLeases
from mesh.errors import DataDamaged
from mesh.events.aggregate import Fold, Repository
from mesh.events.codec import Codecs
from mesh.events.head_ledger import Followed, HeadLedger
from mesh.events.jetstream.key_store import JetStreamKeyStore
from mesh.events.jetstream.store import JetStreamEventStore, connect_prepared, log_end
from mesh.events.jetstream.tokens import JetStreamTokenStream
from mesh.ids import new_id
from mesh.rpc.channel import MeshChannel
from mesh.rpc.pipeline import Endpoint, bind, server_interceptors
from mesh.rpc.settings import RpcSettings
from mesh.runtime.data_dir import DataDirectory
from mesh.runtime.nats_server import EmbeddedNats
from mesh.runtime.service import Service, ServiceEntry
from mesh.runtime.settings import RuntimeSettings
from mesh.security.keyring import Keyring
from mesh.security.master_key import open_master_key
from mesh.security.sealing import SealedCodec
from mesh.security.settings import SecuritySettings
from mesh.telemetry import traces
from mesh.telemetry.http import TelemetryServer
from mesh.telemetry.metrics import new_registry

S = TypeVar("S")
T = TypeVar("T")
_log = structlog.get_logger()
TRACE_FLUSH_SECONDS = 2.0


class Host:
    """Starts the services of `catalogue` in this process; the `Mesh` that they get.

    Raises what the parts raise: a data folder in use or damaged, no nats-server to be
    had, NATS out of reach. What was started by then is stopped again.
    """

    def __init__(
        self,
        catalogue: Sequence[ServiceEntry],
        settings: RuntimeSettings,
        security: SecuritySettings | None = None,
    ) -> None:
        self.settings = settings
        self.rpc_settings = RpcSettings()
        self.registry: CollectorRegistry = new_registry()
        self.endpoints: dict[str, Endpoint] = {}
        self.addresses: dict[str, str] = {}
        self.notes: list[str] = []
        self._interceptors = server_interceptors(self.registry)
        self._catalogue = in_call_order(catalogue)
        self._instance = new_id()
        self._repositories: dict[int, Repository[Any]] = {}
        self._nats: EmbeddedNats | None = None
        # Read at once, so that no process that is started from here inherits it.
        self._master_key = open_master_key(security or SecuritySettings())
        self._keyring: Keyring
        self._store: JetStreamEventStore
        self._heads: HeadLedger
        self._leases: NatsLeases
        self._tokens: JetStreamTokenStream
        self._channels = {
            validated: MeshChannel(
                self.endpoints, lambda service: None, self.rpc_settings, validated=validated
            )
            for validated in (False, True)
        }
        self._ready: dict[str, bool] = {entry.name: False for entry in self._catalogue}
        self._stopping = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Host":
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._stopping = True
        self._ready = dict.fromkeys(self._ready, False)
        await self._stack.aclose()

    @property
    def instance(self) -> str:
        """Id of this process's run."""
        return self._instance

    @property
    def stopping(self) -> bool:
        """Whether this process is ending."""
        return self._stopping

    @property
    def events(self) -> JetStreamEventStore:
        """The event store."""
        return self._store

    @property
    def heads(self) -> HeadLedger:
        """Where the streams of the log end, kept outside it."""
        return self._heads

    @property
    def tokens(self) -> JetStreamTokenStream:
        """The token stream."""
        return self._tokens

    @property
    def keyring(self) -> Keyring:
        """The keys and secrets of this deployment."""
        return self._keyring

    @property
    def leases(self) -> Leases:
        """The leases of all instances."""
        return self._leases

    @property
    def data_dir(self) -> Path:
        """Folder for what this instance keeps."""
        return self.settings.data_dir

    @property
    def clock(self) -> Clock:
        """The system's clock."""
        return SYSTEM

    def repository(self, fold: Fold[S]) -> Repository[S]:
        """The process's one repository of a fold."""
        if id(fold) not in self._repositories:
            self._repositories[id(fold)] = Repository(self._store, fold, clock=self.clock)
        return self._repositories[id(fold)]

    def stub(self, stub_class: Callable[[aio.Channel], T], *, validated: bool = False) -> T:
        """A generated stub over the channel that finds the nearest handler."""
        return stub_class(cast(aio.Channel, self._channels[validated]))

    def announce(self, name: str, wanted_port: int, port: int) -> None:
        """Says where a part of this process listens, and so that it isn't the port that
        was asked for."""
        self.addresses[name] = f"{self.settings.host}:{port}"
        if wanted_port not in (0, port):
            self.notes.append(f"port {wanted_port} ({name}) is in use; using {port}")

    def readiness(self) -> Mapping[str, bool]:
        """Which parts are ready: each service, and what they stand on."""
        return {
            **self._ready,
            "events": self._store.connection.connected and not self._disk_full(),
            "lease": self._leases.held(),
        }

    async def _start(self) -> None:
        # Last in, first out: what is started later is stopped earlier.
        directory = self._stack.enter_context(DataDirectory(self.settings.data_dir, self._instance))
        if traces.start(self._instance):
            self._stack.push_async_callback(asyncio.to_thread, traces.stop, TRACE_FLUSH_SECONDS)
        await self._connect(directory.previous_instance)
        for channel in self._channels.values():
            self._stack.push_async_callback(channel.close)
        telemetry = TelemetryServer(self.registry, self.readiness)
        for entry in self._catalogue:
            await self._start_service(entry)
        self._stack.push_async_callback(telemetry.stop)
        port = await telemetry.start(self.settings.host, self.settings.http_port)
        self.announce("http", self.settings.http_port, port)
        self._write_addresses()

    async def _connect(self, predecessor: str | None) -> None:
        settings = self.settings
        url, seed_file = settings.nats_url, settings.nats_seed_file
        if not url:
            self._nats = EmbeddedNats(
                settings.data_dir, binary=settings.nats_binary, port=settings.nats_port
            )
            self._stack.push_async_callback(self._nats.stop)
            endpoint = await self._nats.start()
            url, seed_file = endpoint.url, endpoint.seed_file
            if endpoint.port_taken is not None:
                self.notes.append(f"port {endpoint.port_taken} (nats) is in use; using {url}")
        self.addresses["nats"] = url.rpartition("@")[2].removeprefix("nats://")
        connection = await connect_prepared(
            url,
            name=f"weft-{self._instance}",
            seed_file=seed_file,
            replicas=settings.nats_replicas,
        )
        self._stack.push_async_callback(connection.close)
        self._keyring = Keyring(JetStreamKeyStore(connection, self._disk_full), self._master_key)
        await self._keyring.start()
        # What was stored before there were seals stays readable.
        sealed_after = await self._keyring.sealed_after(await log_end(connection))
        codecs = Codecs(SealedCodec(self._keyring), sealed_after=sealed_after)
        self._store = JetStreamEventStore(
            connection,
            replicas=settings.nats_replicas,
            codecs=codecs,
            disk_full=self._disk_full,
        )
        self._stack.push_async_callback(self._store.close)
        await self._check_log()
        self._tokens = JetStreamTokenStream(connection, codecs)
        self._leases = NatsLeases(
            connection, self._instance, predecessor=predecessor, clock=self.clock
        )
        self._stack.push_async_callback(self._leases.stop)
        await self._leases.start()

    async def _check_log(self) -> None:
        """Raises DataDamaged where commits are gone, unless that is accepted. What is
        remembered of a log that isn't ours alone may be of another one: that is told, and
        `weft verify` says it too."""
        accept_loss = self.settings.accept_loss
        folder = self.settings.data_dir
        lacking = await self._store.lacking()
        self._heads = HeadLedger(self._store, folder / "heads.sqlite3")
        self._stack.push_async_callback(self._heads.stop)
        mark = folder / "log_mark"
        await self._heads.start(lacking=lacking, accept_loss=accept_loss, before=_read_mark(mark))
        problem = self._heads.problem
        if problem:
            _log.error("event_log_differs", problem=problem)
        if problem and (lacking or self._nats is not None):
            raise DataDamaged(
                f"{problem}: it was damaged or restored from an older backup (data folder"
                f" {folder}); `weft up --accept-loss` starts on what is there"
            )
        mark.unlink(missing_ok=True)
        if accept_loss:
            # Those of commits that are gone would pass for the present.
            await self._store.forget_snapshots()

    def _disk_full(self) -> bool:
        return self._nats is not None and self._nats.disk_full

    async def _start_service(self, entry: ServiceEntry) -> None:
        service: Service = entry.build(self)
        self.endpoints.update(bind(service.handlers, self._interceptors, self.rpc_settings))
        self._stack.push_async_callback(self._stop_service, entry.name, service)
        await service.start()
        self._ready[entry.name] = True

    async def _stop_service(self, name: str, service: Service) -> None:
        self._ready[name] = False
        await service.stop()
        _log.debug("service stopped", service=name)

    def _write_addresses(self) -> None:
        """For commands of the same data folder: where this process listens."""
        folder = self.settings.data_dir / "run"
        folder.mkdir(exist_ok=True)
        path = folder / "address.json"
        self._stack.callback(path.unlink, missing_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({**self.addresses, "pid": os.getpid()}))
        temporary.replace(path)


def _read_mark(path: Path) -> Followed | None:
    """What an earlier version noted of the event log, in place of the ledger; None where
    there is nothing, or nothing that can be read."""
    try:
        kept = json.loads(path.read_bytes())
        return Followed(str(kept["log"]), int(kept["position"]), b"", int(kept["lacking"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def in_call_order(catalogue: Sequence[ServiceEntry]) -> list[ServiceEntry]:
    """The entries, each behind those that it calls. ValueError where calls go in a
    circle or name a service that isn't in the catalogue."""
    entries = {entry.name: entry for entry in catalogue}
    ordered: dict[str, ServiceEntry] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(f"services call each other in a circle: {' -> '.join((*path, name))}")
        if name not in entries:
            raise ValueError(f"{path[-1]} calls {name}, which isn't in the catalogue")
        for called in entries[name].calls:
            visit(called, (*path, name))
        ordered.setdefault(name, entries[name])

    for name in entries:
        visit(name, ())
    return list(ordered.values())
