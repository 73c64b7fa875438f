"""Puts the state service together."""

from collections.abc import Mapping

from mesh.runtime.service import Mesh
from services.state.domain import SESSION_FOLD
from services.state.history import StateHistory
from services.state.read_model import SessionsReadModel
from services.state.sessions import Sessions
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub


class StateService:
    """Sessions and what their log says of them."""

    def __init__(self, mesh: Mesh) -> None:
        repository = mesh.repository(SESSION_FOLD)
        self._read_model = SessionsReadModel(mesh.events, mesh.data_dir / "state.sqlite3")
        self._sessions = Sessions(repository, self._read_model, mesh.stub(AgentServiceStub))
        self._history = StateHistory(repository, mesh.heads)

    @property
    def handlers(self) -> Mapping[str, object]:
        """What implements each contract."""
        return {
            "weft.state.v1.SessionService": self._sessions,
            "weft.state.v1.StateService": self._history,
        }

    async def start(self) -> None:
        """Catches up with the log."""
        await self._read_model.start()

    async def stop(self) -> None:
        """Closes the read model."""
        await self._read_model.stop()
