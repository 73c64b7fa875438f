"""The catalogue: every service, what it serves, what it calls, how it is built, and what
it does on the bus.

Start order, channels, who may call whom and the users of NATS follow from it.
"""

from dataclasses import replace
from typing import cast

from mesh.runtime.bus_access import EVERY_PROCESS, BusAccess, KeyUse
from mesh.runtime.service import Access, Mesh, Service, ServiceEntry
from services.agents.service import AgentsService
from services.agents.settings import AgentsSettings
from services.auth.directory import AccessDirectory
from services.auth.service import AuthService
from services.blobs.service import BlobsService
from services.blobs.settings import BlobsSettings
from services.control.domain import SPLIT_FOLD
from services.control.service import ControlService
from services.control.splits import SERVICE_SPLITS, Splits
from services.control.traffic import Traffic
from services.control.turn_counts import TurnCounts
from services.functions.service import FunctionsService
from services.functions.settings import FunctionsSettings
from services.gateway.service import GatewayService
from services.models.budgets.budgets import Budgets
from services.models.charged import price_of
from services.models.domain import BUDGET_FOLD, USAGE_FOLD
from services.models.service import ModelsService
from services.models.settings import ModelsSettings
from services.scheduler.service import SchedulerService
from services.scheduler.settings import SchedulerSettings
from services.state.service import StateService
from services.state.settings import StateSettings
from services.tools.service import ToolsService
from services.tools.settings import ToolsSettings
from services.vectors.service import VectorsService
from services.vectors.settings import VectorsSettings
from weft.agents.v1 import agent_service_pb2, stalled_turn_service_pb2, turn_service_pb2
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.auth.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    auth_service_pb2,
    role_service_pb2,
    tenant_service_pb2,
)
from weft.blobs.v1 import blob_service_pb2
from weft.blobs.v1.blob_service_pb2_grpc import BlobServiceStub
from weft.control.v1 import mesh_service_pb2, registry_service_pb2, traffic_service_pb2
from weft.functions.v1 import function_service_pb2
from weft.functions.v1.function_service_pb2_grpc import FunctionServiceStub
from weft.models.v1 import budget_service_pb2, model_service_pb2
from weft.models.v1.model_service_pb2_grpc import ModelServiceStub
from weft.scheduler.v1 import (
    batch_service_pb2,
    dead_letter_service_pb2,
    queue_service_pb2,
    schedule_service_pb2,
    task_service_pb2,
    worker_service_pb2,
)
from weft.state.v1 import session_service_pb2, state_service_pb2
from weft.tools.v1 import mcp_server_service_pb2, tool_service_pb2
from weft.vectors.v1 import vector_service_pb2
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub


def access(mesh: Mesh) -> Access:
    """What knows, in every process, who may call."""
    return AccessDirectory(mesh.events, mesh.keyring, mesh.clock, instance=mesh.instance)


def splits(mesh: Mesh) -> Splits:
    """What tells, in every process, its control plane how the calls of services are split."""
    found = Splits(mesh.events, SERVICE_SPLITS)
    found.on_change(lambda _: mesh.control_plane.set_splits(found.portions()))
    return found


def _auth(mesh: Mesh) -> Service:
    directory = cast(AccessDirectory, mesh.access)
    return AuthService(mesh.events, directory, mesh.keyring, mesh.clock)


def _agents(mesh: Mesh) -> Service:
    counts = TurnCounts(Splits(mesh.events))
    mesh.registry.on_say(counts.tell)
    return AgentsService(mesh, AgentsSettings(), counts)


def _blobs(mesh: Mesh) -> Service:
    return BlobsService(mesh, BlobsSettings())


def _control(mesh: Mesh) -> Service:
    agents = mesh.stub(AgentServiceStub)
    traffic = Traffic(
        mesh.events,
        mesh.repository(SPLIT_FOLD),
        mesh.registry,
        agents,
        [entry.name for entry in CATALOGUE if entry.contracts],
        mesh.clock,
    )
    return ControlService(mesh, traffic)


def _functions(mesh: Mesh) -> Service:
    return FunctionsService(mesh, FunctionsSettings())


def _models(mesh: Mesh) -> Service:
    settings = ModelsSettings()
    budgets = Budgets(
        mesh.events,
        mesh.repository(BUDGET_FOLD),
        mesh.repository(USAGE_FOLD),
        mesh.data_dir,
        mesh.keyring,
        lambda model: price_of(settings, model),
        instance=mesh.instance,
        clock=mesh.clock,
        wait_seconds=settings.budget_wait_seconds,
    )
    return ModelsService(settings, mesh.cache, budgets, mesh.metrics)


def _scheduler(mesh: Mesh) -> Service:
    return SchedulerService(mesh, SchedulerSettings())


def _state(mesh: Mesh) -> Service:
    return StateService(mesh, StateSettings())


def _tools(mesh: Mesh) -> Service:
    vectors = mesh.stub(VectorServiceStub)
    blobs = mesh.stub(BlobServiceStub)
    functions = mesh.stub(FunctionServiceStub)
    return ToolsService(
        *(ToolsSettings(), mesh.events, mesh.clock, vectors, mesh.cache),
        *(mesh.keyring, mesh.data_dir),
        functions=functions,
        blobs=blobs,
        instance=mesh.instance,
    )


def _vectors(mesh: Mesh) -> Service:
    return VectorsService(VectorsSettings(), mesh.data_dir, mesh.stub(ModelServiceStub))


_BUS = {
    "agents": BusAccess(appends=("agents", "state"), tokens=True),
    "auth": BusAccess(appends=("auth",), keys=KeyUse.KEEP),
    # It notes who put and deleted what, and has a key for its area.
    "blobs": BusAccess(appends=("blobs",), keys=KeyUse.READ),
    # Who had an instance drained is noted by who was asked to.
    "control": BusAccess(appends=("control", "instances")),
    # What functions print is sealed with its own key, or that of the session they ran for.
    "functions": BusAccess(appends=("functions",), keys=KeyUse.READ),
    # It authenticates by what the log says, and notes there who was refused.
    "gateway": BusAccess(appends=("auth", "instances")),
    "models": BusAccess(appends=("budgets", "usage"), caches=True),
    "scheduler": BusAccess(appends=("scheduler", "schedules")),
    "state": BusAccess(
        # With a session what others keep of it is forgotten.
        appends=("exports", "state"),
        keys=KeyUse.DESTROY,
        erases=True,
        caches=True,
    ),
    "tools": BusAccess(appends=("mcp", "tools"), caches=True),
    "vectors": EVERY_PROCESS,
}
"""What each service does on the bus; one that isn't in here doesn't start."""

_SERVICES = (
    ServiceEntry(
        name="auth",
        summary="keeps tenants, API keys and roles; exchanges and revokes tokens",
        contracts=(
            auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
            tenant_service_pb2.DESCRIPTOR.services_by_name["TenantService"],
            api_key_service_pb2.DESCRIPTOR.services_by_name["ApiKeyService"],
            role_service_pb2.DESCRIPTOR.services_by_name["RoleService"],
            audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"],
        ),
        calls=(),
        build=_auth,
    ),
    ServiceEntry(
        name="blobs",
        summary="keeps blobs in files or a bucket, sealed",
        contracts=(blob_service_pb2.DESCRIPTOR.services_by_name["BlobService"],),
        calls=(),
        build=_blobs,
        single=True,
    ),
    ServiceEntry(
        name="control",
        summary="tells which processes the deployment has, and splits calls between versions",
        contracts=(
            registry_service_pb2.DESCRIPTOR.services_by_name["RegistryService"],
            mesh_service_pb2.DESCRIPTOR.services_by_name["MeshService"],
            traffic_service_pb2.DESCRIPTOR.services_by_name["TrafficService"],
        ),
        calls=("agents", "control"),
        build=_control,
    ),
    ServiceEntry(
        name="functions",
        summary="keeps functions and runs them, confined",
        contracts=(function_service_pb2.DESCRIPTOR.services_by_name["FunctionService"],),
        calls=(),
        build=_functions,
        single=True,
    ),
    ServiceEntry(
        name="models",
        summary="calls models of any provider, within budgets",
        contracts=(
            model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
            budget_service_pb2.DESCRIPTOR.services_by_name["BudgetService"],
        ),
        calls=(),
        build=_models,
    ),
    ServiceEntry(
        name="vectors",
        summary="keeps and searches collections of documents",
        contracts=(vector_service_pb2.DESCRIPTOR.services_by_name["VectorService"],),
        calls=("models",),
        build=_vectors,
        single=True,
    ),
    ServiceEntry(
        name="tools",
        summary="keeps the tool catalogue and runs tools",
        contracts=(
            tool_service_pb2.DESCRIPTOR.services_by_name["ToolService"],
            mcp_server_service_pb2.DESCRIPTOR.services_by_name["McpServerService"],
        ),
        calls=("blobs", "functions", "vectors"),
        build=_tools,
    ),
    ServiceEntry(
        name="scheduler",
        summary="keeps queues of tasks and gives them to workers; submits some by the clock",
        contracts=(
            task_service_pb2.DESCRIPTOR.services_by_name["TaskService"],
            batch_service_pb2.DESCRIPTOR.services_by_name["BatchService"],
            queue_service_pb2.DESCRIPTOR.services_by_name["QueueService"],
            dead_letter_service_pb2.DESCRIPTOR.services_by_name["DeadLetterService"],
            worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"],
            schedule_service_pb2.DESCRIPTOR.services_by_name["ScheduleService"],
        ),
        calls=("scheduler",),
        build=_scheduler,
    ),
    ServiceEntry(
        name="agents",
        summary="keeps agents and runs their turns",
        contracts=(
            agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"],
            turn_service_pb2.DESCRIPTOR.services_by_name["TurnService"],
            stalled_turn_service_pb2.DESCRIPTOR.services_by_name["StalledTurnService"],
        ),
        calls=("models", "scheduler", "tools"),
        build=_agents,
    ),
    ServiceEntry(
        name="state",
        summary="keeps sessions; rebuilds, forks, watches and verifies them",
        contracts=(
            session_service_pb2.DESCRIPTOR.services_by_name["SessionService"],
            state_service_pb2.DESCRIPTOR.services_by_name["StateService"],
        ),
        calls=("agents",),
        build=_state,
    ),
    ServiceEntry(
        name="gateway",
        summary="serves all of them on one gRPC port",
        contracts=(),
        calls=(
            "agents",
            "auth",
            "blobs",
            "control",
            "functions",
            "models",
            "scheduler",
            "state",
            "tools",
            "vectors",
        ),
        build=GatewayService,
    ),
)

CATALOGUE = tuple(replace(entry, bus=_BUS[entry.name]) for entry in _SERVICES)
