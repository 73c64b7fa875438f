"""A process: its event store, its leases and the services that live in it.

Services are started in the order in which they call each other and stopped in reverse,
after the last call was drained.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import structlog
from grpc import aio
from prometheus_client import CollectorRegistry

from mesh.cache.cache import Cache
from mesh.cache.opening import opened_cache
from mesh.clock import SYSTEM, Clock
from mesh.control.leases import Leases
from mesh.control.nats_leases import NatsLeases
from mesh.control.nats_registry import NatsRegistry
from mesh.control.xds.control_plane import ControlPlane
from mesh.errors import WeftError
from mesh.events.aggregate import Repository
from mesh.events.codec import Codecs
from mesh.events.fold import Fold
from mesh.events.head_ledger import HeadLedger
from mesh.events.jetstream.connection import Login, NotPermitted
from mesh.events.jetstream.key_store import JetStreamKeyStore
from mesh.events.jetstream.store import JetStreamEventStore, connect_prepared, log_end
from mesh.events.jetstream.tokens import JetStreamTokenStream
from mesh.ids import cluster_id, new_instance_id
from mesh.rpc.channel import MeshChannel
from mesh.rpc.forwarding import forwarded
from mesh.rpc.pipeline import Edge, Endpoint, Pipeline, bind
from mesh.rpc.rate_limiter import RateLimiter, RedisCounters
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RateLimitSettings, RpcSettings, TlsSettings
from mesh.rpc.transport import transport_of
from mesh.runtime.bus_access import union
from mesh.runtime.call_order import in_call_order, served
from mesh.runtime.data_dir import DataDirectory, write_addresses
from mesh.runtime.elsewhere import Elsewhere
from mesh.runtime.log_check import check_log, heads_folder
from mesh.runtime.nats_server import EmbeddedNats, is_full
from mesh.runtime.nats_users import ADMIN, bus_users, external_user, no_admin, process_user
from mesh.runtime.operations import Operations
from mesh.runtime.redis_client import LazyRedis, client_of_url
from mesh.runtime.registration import LoadMeter, own_instance, targets
from mesh.runtime.seat import Seat
from mesh.runtime.service import Access, Follower, Mesh, Service, ServiceEntry, callers_of
from mesh.runtime.settings import RuntimeSettings
from mesh.runtime.valkey_server import EmbeddedValkey
from mesh.security.keyring import Keyring
from mesh.security.master_key import open_master_key
from mesh.security.sealing import SealedCodec
from mesh.security.settings import SecuritySettings
from mesh.sockets import dialled_host
from mesh.telemetry import traces
from mesh.telemetry.http import TelemetryServer
from mesh.telemetry.metrics import new_registry

if TYPE_CHECKING:
    from redis.asyncio import Redis

S = TypeVar("S")
T = TypeVar("T")
_log = structlog.get_logger()
TRACE_FLUSH_SECONDS = 2.0


class Host:
    """Starts those services of `catalogue` in this process that `serves` names, or all; the
    `Mesh` that they get. `access` makes what knows who may call, and `splits` what tells the
    control plane how calls are split between versions.

    Raises what the parts raise: a data folder in use or damaged, no nats-server to be
    had, NATS out of reach, a certificate that can't be used, an address beyond this machine
    without one. What was started by then is stopped again.
    """

    def __init__(
        self,
        catalogue: Sequence[ServiceEntry],
        settings: RuntimeSettings,
        access: Callable[[Mesh], Access],
        security: SecuritySettings | None = None,
        *,
        splits: Callable[[Mesh], Follower] | None = None,
        serves: Collection[str] = (),
    ) -> None:
        self.settings = settings
        self.rpc_settings = RpcSettings()
        self.transport = transport_of(TlsSettings())
        self.transport.check_listening(settings.host)
        self.metrics: CollectorRegistry = new_registry()
        self.endpoints: dict[str, Endpoint] = {}
        self._forwarded: dict[str, Endpoint] = {}
        self.addresses: dict[str, str] = {}
        self.notes: list[str] = []
        self.cluster = ""
        """Id of the deployment: that of its event log."""
        self._make_access = access
        self._make_splits = splits
        self._access: Access
        self._pipeline: Pipeline
        self._catalogue = in_call_order(catalogue)
        self._served = served(self._catalogue, serves)
        self._bus = union(entry.bus for entry in self._served)
        self.transport.check_serving([entry.name for entry in self._served])
        # Who it is on NATS, its id says.
        self._user = (
            external_user(settings.nats_user, self._catalogue)
            if settings.nats_url
            else process_user(self._served)
        )
        self._instance = new_instance_id(self._user.name)
        self._repositories: dict[int, Repository[Any]] = {}
        self._redis: LazyRedis | None = None
        self._nats: EmbeddedNats | None = None
        # Read at once, so that no process that is started from here inherits it.
        self._master_key = open_master_key(security or SecuritySettings())
        self._keyring: Keyring
        self._valkey: EmbeddedValkey | None = None
        self._store: JetStreamEventStore
        self._heads: HeadLedger
        self._leases: NatsLeases
        self.registry: NatsRegistry
        self._elsewhere: Elsewhere
        self._tokens: JetStreamTokenStream
        self.cache: Cache
        self._ready: dict[str, bool] = {entry.name: False for entry in self._served}
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
    def redis(self) -> "Redis | None":
        """A client for counters and cached values that processes share; its keys begin
        with `weft:`, and each call ends within a moment. None where there is no server,
        and in the moment after it was first asked for."""
        return self._redis.client() if self._redis is not None else None

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

    @property
    def control_plane(self) -> ControlPlane:
        """See Mesh."""
        return self._elsewhere.control_plane

    @property
    def pipeline(self) -> Pipeline:
        """See Mesh."""
        return self._pipeline

    @property
    def access(self) -> Access:
        """Who may call."""
        return self._access

    def stub(self, stub_class: Callable[[aio.Channel], T], *, validated: bool = False) -> T:
        """A generated stub by which Weft itself calls the nearest handler."""
        return stub_class(cast(aio.Channel, self._channel("", None, validated)))

    def channel_of(self, entry: ServiceEntry, validated: bool, relays: bool = False) -> MeshChannel:
        """The channel by which a service calls those that the catalogue lets it call."""
        called = [other for other in self._catalogue if other.name in entry.calls]
        callees = {contract.full_name for other in called for contract in other.contracts}
        return self._channel(entry.name, callees, validated, relays)

    def _channel(
        self, caller: str, callees: Collection[str] | None, validated: bool, relays: bool = False
    ) -> MeshChannel:
        return MeshChannel(
            self.endpoints,
            self._elsewhere.channel(caller, self._access.sign, relays=relays),
            self._elsewhere.is_served,
            self.rpc_settings,
            validated=validated,
            caller=caller,
            callees=callees,
            losses=self._elsewhere.losses,
        )

    def forwards(self, entry: ServiceEntry) -> Mapping[str, object]:
        """What answers for the contracts that a service calls and that aren't served here."""
        channel = self.channel_of(entry, validated=False, relays=True)
        return {
            contract.full_name: forwarded(contract, channel)
            for other in self._catalogue
            if other.name in entry.calls and other not in self._served
            for contract in other.contracts
        }

    def announce(self, name: str, wanted_port: int, port: int) -> None:
        """Says where a part of this process listens, and so that it isn't the port that
        was asked for."""
        self.addresses[name] = f"{dialled_host(self.settings.host)}:{port}"
        if wanted_port not in (0, port):
            self.notes.append(f"port {wanted_port} ({name}) is in use; using {port}")

    def readiness(self) -> Mapping[str, bool]:
        """Which parts are ready: each service, and what they stand on."""
        return {
            **self._ready,
            "events": self._store.connection.connected and not self._disk_full(),
            "access": self._access.ready,
            "calls": not self.registry.draining,
            "lease": self._leases.held(),
        }

    async def _start(self) -> None:
        # Last in, first out: what is started later is stopped earlier.
        directory = self._stack.enter_context(DataDirectory(self.settings.data_dir, self._instance))
        if traces.start(self._instance):
            self._stack.push_async_callback(asyncio.to_thread, traces.stop, TRACE_FLUSH_SECONDS)
        redis = asyncio.create_task(self._start_redis(), name="redis start")
        self._stack.push_async_callback(self._stop_redis, redis)
        await self._connect(directory.previous_instance)
        await self._open_edge()
        if self._make_splits is not None:
            splits = self._make_splits(cast(Mesh, self))
            self._stack.push_async_callback(splits.stop)
            await splits.start()
        telemetry = TelemetryServer(self.metrics, self.readiness)
        for entry in self._served:
            await self._start_service(entry)
        await self._start_server()
        self._stack.push_async_callback(telemetry.stop)
        port = await telemetry.start(self.settings.host, self.settings.http_port)
        self.announce("http", self.settings.http_port, port)
        self.cluster = cluster_id(await self._store.log_id())
        await redis
        self._write_addresses()

    async def _start_redis(self) -> None:
        """Beside everything else. Without it Weft does its work: limits are then counted
        in this process alone."""
        settings = self.settings
        if settings.redis_url:
            url, password_file = settings.redis_url, settings.redis_password_file
            self._redis = LazyRedis(lambda: client_of_url(url, password_file))
        else:
            self._valkey = EmbeddedValkey(settings.data_dir, binary=settings.valkey_binary)
            try:
                await self._valkey.start()
            except (WeftError, OSError) as error:
                _log.warning("valkey_missing", error=type(error).__name__)
                fault = "valkey-server can't start"
                fault = error.message if isinstance(error, WeftError) else fault
                self.notes.append(f"{fault}; limits are counted in this process alone")
                return
            self._redis = LazyRedis(self._valkey.client)
        # Before the first call asks for it.
        self._redis.client()

    async def _stop_redis(self, starting: asyncio.Task[None]) -> None:
        starting.cancel()
        await asyncio.wait({starting})
        redis, self._redis = self._redis, None
        if redis is not None:
            await redis.close()
        if self._valkey is not None:
            await self._valkey.stop()

    async def _connect(self, predecessor: str | None) -> None:
        settings, replicas = self.settings, self.settings.nats_replicas
        url, admin, login = await self._find_nats()
        servers = (each.rpartition("@")[2].removeprefix("nats://") for each in url.split(","))
        self.addresses["nats"] = ",".join(servers)
        try:
            await self._prepare(url, admin)
        except NotPermitted as error:
            # Else what is said is of the user that did what isn't its to do.
            raise no_admin() if admin is login else error from None
        connection = await connect_prepared(
            url,
            name=f"weft-{self._instance}",
            login=login,
            replicas=replicas,
            makes_streams=False,
            uses_tokens=self._bus.tokens,
        )
        self._stack.push_async_callback(connection.close)
        self._keyring = Keyring(JetStreamKeyStore(connection, self._disk_full), self._master_key)
        await self._keyring.start()
        sealed_after = await self._keyring.sealed_after(await log_end(connection))
        codecs = Codecs(SealedCodec(self._keyring), sealed_after=sealed_after)
        self._store = JetStreamEventStore(
            connection, replicas=replicas, codecs=codecs, disk_full=self._disk_full
        )
        self._stack.push_async_callback(self._store.close)
        self._heads = HeadLedger(self._store, heads_folder(settings) / "heads.sqlite3")
        self._stack.push_async_callback(self._heads.stop)
        await check_log(self._store, self._heads, settings, embedded=self._nats is not None)
        self._tokens = JetStreamTokenStream(connection, codecs)
        if self._bus.caches:
            cache = opened_cache(
                self._keyring, connection, lambda: self.redis, self.data_dir, self.metrics
            )
            self.cache = await self._stack.enter_async_context(cache)
        self._leases = NatsLeases(
            connection,
            self._instance,
            predecessor=predecessor,
            replicas=replicas,
            clock=self.clock,
        )
        own = own_instance(settings, self._instance, list(self._ready))
        own.spiffe_id = self.transport.spiffe_id
        load = LoadMeter(lambda: self._pipeline.under_way, lambda: self._pipeline.served)
        self.registry = NatsRegistry(connection, self._leases, own, load.read)
        self._stack.push_async_callback(self._leases.stop)
        await self._leases.start()
        await self.registry.start()
        self._elsewhere = Elsewhere(cast(Mesh, self), self._catalogue, self._served)
        self._stack.push_async_callback(self._elsewhere.stop)
        await self._elsewhere.start()

    async def _open_edge(self) -> None:
        self._access = self._make_access(cast(Mesh, self))
        self._stack.push_async_callback(self._access.stop)
        await self._access.start()
        counters = RedisCounters(lambda: self.redis)
        limiter = RateLimiter(RateLimitSettings(), counters, self.clock)
        edge = Edge(self._access, self._access, limiter, callers_of(self._catalogue))
        self._pipeline = Pipeline(self.metrics, self.rpc_settings, edge)

    async def _find_nats(self) -> tuple[str, Login, Login]:
        """Where NATS is, embedded or not, and how to log in: as who makes the streams,
        and as who works with them."""
        settings = self.settings
        if settings.nats_url:
            login = Login(settings.nats_seed_file, self._user.inbox, self._user.api)
            admin_seed = settings.nats_admin_seed_file
            return settings.nats_url, Login(admin_seed, ADMIN.inbox) if admin_seed else login, login
        users = bus_users(self._catalogue)
        self._nats = EmbeddedNats(
            settings.data_dir, users, binary=settings.nats_binary, port=settings.nats_port
        )
        self._stack.push_async_callback(self._nats.stop)
        endpoint = await self._nats.start()
        if endpoint.port_taken is not None:
            self.notes.append(f"port {endpoint.port_taken} (nats) is in use; using {endpoint.url}")
        return endpoint.url, endpoint.login(ADMIN), endpoint.login(self._user)

    async def _prepare(self, url: str, admin: Login) -> None:
        """Makes the streams or brings them up to date, and makes the keys that a deployment
        has once, as who alone may do so."""
        connection = await connect_prepared(
            url,
            name=f"weft-admin-{self._instance}",
            login=admin,
            replicas=self.settings.nats_replicas,
            uses_tokens=False,
        )
        try:
            keyring = Keyring(JetStreamKeyStore(connection, self._disk_full), self._master_key)
            # What was stored before there were seals stays readable.
            await keyring.found(await log_end(connection))
        finally:
            await connection.close()

    def _disk_full(self) -> bool:
        if self._nats is not None:
            return self._nats.disk_full
        folder = self.settings.nats_store_folder
        return folder is not None and is_full(folder)

    async def _start_service(self, entry: ServiceEntry) -> None:
        service: Service = entry.build(cast(Mesh, Seat(self, entry)))
        bound = bind(service.handlers, self._pipeline, self.rpc_settings)
        # Who calls from here what is elsewhere calls it there, and not through the gateway.
        (self.endpoints if entry.contracts else self._forwarded).update(bound)
        self._stack.push_async_callback(self._stop_service, entry.name, service)
        await service.start()
        self._ready[entry.name] = True

    async def _start_server(self) -> None:
        """Takes calls once all that is served here is ready, and ends with that first."""
        operations = Operations(cast(Mesh, self), self._catalogue, self.readiness)
        # Of itself each process tells itself.
        self.endpoints.update(bind(operations.handlers, self._pipeline, self.rpc_settings))
        endpoints = {**self._forwarded, **self.endpoints}
        settings = self.settings
        # Clients come to who answers for all, and has no contract of its own.
        answers_for_all = not all(each.contracts for each in self._served)
        shared = settings.shared_port if answers_for_all else 0
        server = RpcServer(
            endpoints,
            self.rpc_settings,
            self._pipeline,
            self.transport,
            shares=shared > 0,
            instance=self.instance,
        )
        operations.serve(server)
        self._stack.push_async_callback(self._stop_server, server)
        mesh_port = 0
        if self.transport.encrypted:
            mesh_port = server.listen_to_processes(settings.host, settings.mesh_port)
            self.announce("mesh", settings.mesh_port, mesh_port)
        port = await server.start(settings.host, settings.grpc_port, shared)
        self.announce("grpc", settings.grpc_port, port)
        if shared:
            # For clients; other instances dial this one's own port.
            self.addresses["grpc"] = f"{dialled_host(settings.host)}:{shared}"
        await self.registry.register(*await targets(settings, mesh_port or port, self.addresses))

    async def _stop_server(self, server: RpcServer) -> None:
        """Others learn of it, by health and by the registry, before it takes less."""
        await server.refuse()
        await self.registry.drain()
        await server.drain(self.settings.notice_seconds, self.settings.grace_seconds)

    async def _stop_service(self, name: str, service: Service) -> None:
        self._ready[name] = False
        await service.stop()
        _log.debug("service stopped", service=name)

    def _write_addresses(self) -> None:
        told = {**self.addresses, "cluster": self.cluster}
        if self.transport.bundle_file is not None:
            told["ca_file"] = str(self.transport.bundle_file)
        path = write_addresses(self.settings.data_dir, told)
        self._stack.callback(path.unlink, missing_ok=True)
