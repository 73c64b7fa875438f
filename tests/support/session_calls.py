"""The calls on sessions that tests make of a server, all in one place."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc.aio

from mesh.ids import new_id
from weft.agents.v1 import agent_pb2, agent_service_pb2, turn_service_pb2
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub
from weft.auth.v1.audit_service_pb2_grpc import AuditServiceStub
from weft.state.v1 import session_service_pb2, state_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub
from weft.state.v1.state_service_pb2_grpc import StateServiceStub

TENANT = "tenants/default"
SECONDS = 20.0
PART_RECORDS = 50
Records = list[session_service_pb2.SessionRecord]


class SessionCalls:
    """Calls over one channel; each raises AioRpcError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.agents: Any = AgentServiceStub(channel)
        self.turns: Any = TurnServiceStub(channel)
        self.sessions: Any = SessionServiceStub(channel)
        self.audit: Any = AuditServiceStub(channel)
        self.state: Any = StateServiceStub(channel)

    async def agent(self, name: str = "bot") -> str:
        """Makes an agent; returns its name."""
        spec = agent_pb2.AgentSpec()
        request = agent_service_pb2.CreateAgentRequest(parent=TENANT, agent_id=name, spec=spec)
        return str((await self.agents.CreateAgent(request, timeout=SECONDS)).agent.name)

    async def create(self, agent: str, session_id: str = "") -> str:
        """Makes a session; returns its name."""
        request = session_service_pb2.CreateSessionRequest(parent=agent, session_id=session_id)
        return str((await self.sessions.CreateSession(request, timeout=SECONDS)).session.name)

    async def run(self, session: str, question: str) -> str:
        """Runs a turn to its end, or until it waits; returns its name."""
        request = turn_service_pb2.RunTurnRequest(
            session=session, input=question, request_id=new_id()
        )
        turn = ""
        async for response in self.turns.RunTurn(request, timeout=SECONDS):
            for event in response.events:
                turn = turn or event.accepted.turn
        return turn

    async def fork(self, session: str, session_id: str = "") -> str:
        """Forks a session; returns the fork's name."""
        request = session_service_pb2.ForkSessionRequest(name=session, session_id=session_id)
        return str((await self.sessions.ForkSession(request, timeout=SECONDS)).session.name)

    async def erase(
        self, session: str, *, cascade: bool = False, request_id: str = ""
    ) -> list[str]:
        """Erases a session; returns the names of all that were erased."""
        request = session_service_pb2.EraseSessionRequest(
            name=session, cascade=cascade, request_id=request_id
        )
        response = await self.sessions.EraseSession(request, timeout=SECONDS)
        return list(response.erased_sessions)

    async def export(self, session: str) -> Records:
        """The session's records."""
        request = session_service_pb2.ExportSessionRequest(name=session)
        responses = self.sessions.ExportSession(request, timeout=SECONDS)
        return [response.record async for response in responses]

    async def import_(self, agent: str, records: Sequence[Any], session_id: str = "") -> str:
        """Imports records; returns the session's name."""

        async def parts() -> AsyncIterator[session_service_pb2.ImportSessionRequest]:
            for start in range(0, len(records), PART_RECORDS):
                yield session_service_pb2.ImportSessionRequest(
                    parent=agent,
                    session_id="" if start else session_id,
                    records=records[start : start + PART_RECORDS],
                )

        response = await self.sessions.ImportSession(parts(), timeout=SECONDS)
        return str(response.session.name)

    async def listed(self, agent: str = f"{TENANT}/agents/-") -> list[str]:
        """Names of the sessions that are listed."""
        request = session_service_pb2.ListSessionsRequest(parent=agent, page_size=1000)
        response = await self.sessions.ListSessions(request, timeout=SECONDS)
        return [session.name for session in response.sessions]

    async def verify(self) -> list[state_service_pb2.VerifyLogResponse]:
        """What the check of the tenant's log says."""
        request = state_service_pb2.VerifyLogRequest(parent=TENANT)
        return [response async for response in self.state.VerifyLog(request, timeout=SECONDS)]

    def readings(self, session: str, turns: Iterable[str]) -> dict[str, Any]:
        """Every call that would tell of a session, or go on with it, each not made yet."""
        service, state = session_service_pb2, state_service_pb2
        calls: dict[str, Any] = {
            "GetSession": self.sessions.GetSession(service.GetSessionRequest(name=session)),
            "ForkSession": self.sessions.ForkSession(service.ForkSessionRequest(name=session)),
            "ExportSession": self.sessions.ExportSession(
                service.ExportSessionRequest(name=session)
            ),
            "GetState": self.state.GetState(state.GetStateRequest(name=session)),
            "GetState of old": self.state.GetState(state.GetStateRequest(name=session, revision=1)),
            "ListEvents": self.state.ListEvents(state.ListEventsRequest(parent=session)),
            "VerifyReplay": self.state.VerifyReplay(state.VerifyReplayRequest(name=session)),
            "WatchEvents": self.state.WatchEvents(
                state.WatchEventsRequest(name=session, after_position=0)
            ),
            "RunTurn": self.turns.RunTurn(
                turn_service_pb2.RunTurnRequest(session=session, input="again?")
            ),
        }
        for number, turn in enumerate(turns):
            calls[f"GetTurn {number}"] = self.turns.GetTurn(
                turn_service_pb2.GetTurnRequest(name=turn)
            )
            calls[f"WatchTurn {number}"] = self.turns.WatchTurn(
                turn_service_pb2.WatchTurnRequest(name=turn)
            )
            calls[f"CancelTurn {number}"] = self.turns.CancelTurn(
                turn_service_pb2.CancelTurnRequest(name=turn)
            )
        return calls
