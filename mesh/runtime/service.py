"""What a service is to the runtime, and what the runtime hands to a service."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio
from prometheus_client import CollectorRegistry

from mesh.cache.cache import Cache
from mesh.clock import Clock
from mesh.control.leases import Leases
from mesh.control.registry import Registry
from mesh.control.xds.control_plane import ControlPlane
from mesh.events.aggregate import Repository
from mesh.events.fold import Fold
from mesh.events.head_ledger import HeadLedger
from mesh.events.store import EventStore
from mesh.events.tokens import TokenStream
from mesh.rpc.pipeline import Endpoint, Pipeline
from mesh.rpc.settings import RpcSettings
from mesh.rpc.stages.identity import Identities
from mesh.rpc.transport import Transport
from mesh.runtime.bus_access import EVERY_PROCESS, BusAccess
from mesh.runtime.settings import RuntimeSettings
from mesh.security.authenticator import Authenticator
from mesh.security.identity import Sign
from mesh.security.keyring import Keyring

S = TypeVar("S")
T = TypeVar("T")


class Service(Protocol):
    """A running service.

    `handlers` maps a contract's full name (`weft.agents.v1.AgentService`) to the object
    that implements it: a method `GetAgent` of the contract is its coroutine
    `get_agent(request, call)`; a streaming one is an async generator.
    """

    @property
    def handlers(self) -> Mapping[str, object]: ...

    async def start(self) -> None:
        """Makes it ready; the services that it calls are ready already."""
        ...

    async def stop(self) -> None:
        """Ends its work in order; called once, after the last call was drained, and also
        where `start` failed in the middle."""
        ...


class Follower(Protocol):
    """What a process knows from the log, in memory."""

    async def start(self) -> None:
        """Returns once it knows all that is in the log by now."""
        ...

    async def stop(self) -> None:
        """Ends following."""
        ...


class Access(Authenticator, Identities, Follower, Protocol):
    """Who may call, as every process knows it: it follows the log in memory."""

    @property
    def ready(self) -> bool:
        """Whether it can say who calls; False once it is out of touch with the log."""
        ...

    @property
    def sign(self) -> Sign:
        """Signs identities for other processes of Weft's."""
        ...


class Mesh(Protocol):
    """What a service is built with."""

    @property
    def instance(self) -> str:
        """Id of this process's run."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether this process is ending: calls that are cut off now are cut off by it,
        not by their callers."""
        ...

    @property
    def events(self) -> EventStore: ...

    @property
    def heads(self) -> HeadLedger:
        """Where the streams of the log end, kept outside it."""
        ...

    @property
    def tokens(self) -> TokenStream: ...

    @property
    def keyring(self) -> Keyring:
        """The keys and secrets of this deployment."""
        ...

    def repository(self, fold: Fold[S]) -> Repository[S]:
        """The process's one repository of a fold: services that read what others write
        share it."""
        ...

    @property
    def leases(self) -> Leases: ...

    @property
    def registry(self) -> Registry:
        """All instances. A process without leases knows of none."""
        ...

    @property
    def control_plane(self) -> ControlPlane:
        """What this process tells xDS clients of the instances."""
        ...

    @property
    def cache(self) -> Cache:
        """What this process keeps of what was costly to make. Only for services of which the
        catalogue says that they cache: others may not hear of what is invalidated."""
        ...

    @property
    def metrics(self) -> CollectorRegistry:
        """What Prometheus scrapes of this process."""
        ...

    @property
    def data_dir(self) -> Path:
        """Folder for what this instance keeps; it exists."""
        ...

    @property
    def clock(self) -> Clock: ...

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """Every method that lives in this process, with its pipeline; still growing
        while services start."""
        ...

    @property
    def pipeline(self) -> Pipeline:
        """What stands around the handlers of this process."""
        ...

    @property
    def access(self) -> Access:
        """Who may call."""
        ...

    @property
    def settings(self) -> RuntimeSettings: ...

    @property
    def rpc_settings(self) -> RpcSettings: ...

    def elsewhere(self) -> Mapping[str, object]:
        """What implements the contracts that the service calls and this process doesn't
        serve, by calling them there."""
        ...

    @property
    def transport(self) -> Transport:
        """What this process listens with, and is reached by others with."""
        ...

    def announce(self, name: str, wanted_port: int, port: int) -> None:
        """Says where a part of this process listens."""
        ...

    def stub(self, stub_class: Callable[[aio.Channel], T], *, validated: bool = False) -> T:
        """A generated stub: `mesh.stub(ModelServiceStub)`. Nearest first: the handler in
        this process when the service lives here, else gRPC. Raises WeftError either way.

        With `validated` the requests are made of parts that were checked when they came
        in, such as a session's facts: the handler in this process doesn't check again."""
        ...


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A row of the catalogue: a service, what it serves, what it calls, how it is built,
    what it does on the bus. One calls itself that hands calls to other instances of it."""

    name: str
    summary: str
    contracts: tuple[ServiceDescriptor, ...]
    calls: tuple[str, ...]
    build: Callable[[Mesh], Service]
    bus: BusAccess = EVERY_PROCESS
    single: bool = False
    """What it keeps lies in a folder: one process of a deployment may have it."""


def callers_of(catalogue: Iterable[ServiceEntry]) -> dict[str, frozenset[str]]:
    """For each contract's full name the services that may call it."""
    entries = list(catalogue)
    return {
        contract.full_name: frozenset(each.name for each in entries if entry.name in each.calls)
        for entry in entries
        for contract in entry.contracts
    }
