"""Splits on a log in memory: the real service, with one version of everything."""

from typing import Any

from mesh.call import current_call
from mesh.clock import SYSTEM
from mesh.control.registry import Registry
from mesh.events.aggregate import Repository
from mesh.events.memory import MemoryEventStore
from services.control.domain import SPLIT_FOLD
from services.control.traffic import Traffic
from tests.support.memory_catalogues import MemoryAgents
from weft.agents.v1 import agent_service_pb2

SERVICES = ("agents", "scheduler")


class _Agents:
    """The agents as a stub has them."""

    def __init__(self, agents: MemoryAgents) -> None:
        self._agents = agents

    async def GetAgent(  # noqa: N802 - gRPC's name
        self, request: agent_service_pb2.GetAgentRequest
    ) -> agent_service_pb2.GetAgentResponse:
        call = current_call.get()
        assert call is not None
        return await self._agents.get_agent(request, call)


def memory_traffic(agents: MemoryAgents, registry: Registry) -> Traffic:
    """The service; it is to be started."""
    events = MemoryEventStore()
    stub: Any = _Agents(agents)
    return Traffic(events, Repository(events, SPLIT_FOLD), registry, stub, SERVICES, SYSTEM)
