"""The contracts that this client knows: those of every generated service."""

import importlib
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.message import Message

_MODULES = (
    "weft.agents.v1.agent_service_pb2",
    "weft.agents.v1.events_pb2",
    "weft.agents.v1.stalled_turn_service_pb2",
    "weft.agents.v1.turn_service_pb2",
    "weft.auth.v1.api_key_service_pb2",
    "weft.auth.v1.audit_service_pb2",
    "weft.auth.v1.auth_service_pb2",
    "weft.auth.v1.events_pb2",
    "weft.auth.v1.role_service_pb2",
    "weft.auth.v1.tenant_service_pb2",
    "weft.blobs.v1.blob_service_pb2",
    "weft.blobs.v1.events_pb2",
    "weft.control.v1.events_pb2",
    "weft.control.v1.mesh_events_pb2",
    "weft.control.v1.mesh_service_pb2",
    "weft.control.v1.registry_service_pb2",
    "weft.control.v1.traffic_service_pb2",
    "weft.functions.v1.events_pb2",
    "weft.functions.v1.function_service_pb2",
    "weft.models.v1.budget_service_pb2",
    "weft.models.v1.events_pb2",
    "weft.models.v1.model_service_pb2",
    "weft.scheduler.v1.batch_service_pb2",
    "weft.scheduler.v1.dead_letter_service_pb2",
    "weft.scheduler.v1.events_pb2",
    "weft.scheduler.v1.queue_service_pb2",
    "weft.scheduler.v1.schedule_events_pb2",
    "weft.scheduler.v1.schedule_service_pb2",
    "weft.scheduler.v1.task_service_pb2",
    "weft.scheduler.v1.worker_service_pb2",
    "weft.state.v1.events_pb2",
    "weft.state.v1.export_events_pb2",
    "weft.state.v1.session_service_pb2",
    "weft.state.v1.state_service_pb2",
    "weft.tools.v1.events_pb2",
    "weft.tools.v1.mcp_events_pb2",
    "weft.tools.v1.mcp_server_service_pb2",
    "weft.tools.v1.tool_service_pb2",
    "weft.vectors.v1.vector_service_pb2",
)
_EVENT_PACKAGES = (
    *("weft.state.v1", "weft.agents.v1", "weft.tools.v1", "weft.auth.v1"),
    *("weft.scheduler.v1", "weft.control.v1", "weft.blobs.v1", "weft.models.v1"),
    "weft.functions.v1",
)


@cache
def load_contracts() -> "tuple[ServiceDescriptor, ...]":
    """Imports all contracts, so that payloads of their types can be opened, and returns
    their services by name."""
    services: list[ServiceDescriptor] = []
    for name in _MODULES:
        file = importlib.import_module(name).DESCRIPTOR
        services.extend(file.services_by_name.values())
    return tuple(sorted(services, key=lambda service: str(service.full_name)))


def event_type(text: str) -> str:
    """The full name of an event's type: `TurnCompleted` is `weft.state.v1.TurnCompleted`.
    A name with a dot, or one that no contract has, stays as it is."""
    if "." in text:
        return text
    names = [f"{package}.{text}" for package in _EVENT_PACKAGES]
    return next((name for name in names if message_class(name) is not None), text)


def message_class(name: str) -> "type[Message] | None":
    """The class of a message by its full name; None where no contract has it."""
    from google.protobuf import descriptor_pool, message_factory

    load_contracts()
    try:
        pool = descriptor_pool.Default()  # type: ignore[no-untyped-call]
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    except KeyError:
        return None


def reason_name(reason: int) -> str:
    """The reason of an error, as `google.rpc.ErrorInfo` has it: `MODEL_UNAVAILABLE`."""
    from weft.errors.v1 import errors_pb2

    value = errors_pb2.Reason.DESCRIPTOR.values_by_number.get(reason)
    return value.name.removeprefix("REASON_") if value is not None else str(reason)
