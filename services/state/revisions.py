"""Which revision of its agent a new session is pinned to."""

from typing import TYPE_CHECKING

from mesh.events.aggregate import Repository
from services.control.domain import State, drawn, split_stream
from weft.agents.v1 import agent_service_pb2

if TYPE_CHECKING:
    from weft.agents.v1.agent_service_pb2_grpc import AgentServiceAsyncStub


class Revisions:
    """Asks the agents, and draws where the agent's split says so."""

    def __init__(self, agents: "AgentServiceAsyncStub", splits: Repository[State]) -> None:
        self._agents = agents
        self._splits = splits

    async def of_new(self, session: str, wanted: int) -> int:
        """The revision for the new session of that name: the one that is wanted, else the one
        that is drawn by the name, else the latest. NotFound where there is none."""
        agent = session.rsplit("/sessions/", 1)[0]
        # The latest revision is asked for first: a deleted agent has none.
        request = agent_service_pb2.GetAgentRequest(name=agent)
        latest = (await self._agents.GetAgent(request)).agent.revision
        revision = wanted or await self._drawn(agent, session) or latest
        if revision != latest:
            request.revision = revision
            await self._agents.GetAgent(request)
        return revision

    async def _drawn(self, agent: str, session: str) -> int:
        """0 where the agent has no split."""
        split = (await self._splits.open(split_stream(f"{agent}/split")).load()).split
        return drawn(split.portions, session).agent_revision if split.portions else 0
