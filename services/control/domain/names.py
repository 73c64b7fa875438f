"""Names of splits, and the streams that hold them."""

from mesh.events.store import StreamName
from weft.control.v1 import events_pb2 as facts
from weft.control.v1 import splits_pb2

AREA = "control"
PLATFORM = "_system"
"""Stands for a tenant in the streams of what is the platform's; no tenant's id begins so."""
SERVICES = "services"
AGENTS = "agents"


def split_stream(name: str) -> StreamName:
    """Stream of `services/{s}/split` or `tenants/{t}/agents/{a}/split`."""
    collection, first, *rest = name.split("/")
    if collection == SERVICES:
        return StreamName(AREA, PLATFORM, (SERVICES, first))
    return StreamName(AREA, first, (AGENTS, rest[1]))


def is_split_stream(stream: StreamName) -> bool:
    """Whether a stream of the area holds a split."""
    return len(stream.key) == 2 and stream.key[0] in (SERVICES, AGENTS)


def split_name(stream: StreamName) -> str:
    """Name of the split that the stream holds."""
    collection, subject = stream.key
    parent = "" if stream.tenant == PLATFORM else f"tenants/{stream.tenant}/"
    return f"{parent}{collection}/{subject}/split"


def parent_of(name: str) -> str:
    """What the split of that name is listed under: `services/-`, `tenants/{t}/agents/-`."""
    return name.removesuffix("/split").rpartition("/")[0] + "/-"


def service_of(name: str) -> str:
    """The service whose split has that name; empty for an agent's."""
    collection, service, *_ = name.split("/")
    return service if collection == SERVICES else ""


def agent_of(name: str) -> str:
    """Name of the agent whose split has that name; empty for a service's."""
    return "" if service_of(name) else name.removesuffix("/split")


def taker_of(what: splits_pb2.Portion | facts.FailureCount) -> str:
    """The version that it is of, or the agent's revision."""
    return what.version or str(what.agent_revision)
