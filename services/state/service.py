"""Puts the state service together."""

from collections.abc import Mapping, Sequence

from mesh.events.store import StoredCommit, StreamName
from mesh.runtime.service import Mesh
from services.control.domain import SPLIT_FOLD
from services.state.domain import SESSION_FOLD
from services.state.erasing import Erasures, Sweeper
from services.state.history import StateHistory
from services.state.importing import Imports
from services.state.read_model import SessionsReadModel, erases
from services.state.revisions import Revisions
from services.state.sessions import Sessions
from services.state.settings import StateSettings
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub


class StateService:
    """Sessions and what their log says of them."""

    def __init__(self, mesh: Mesh, settings: StateSettings) -> None:
        self._repository = mesh.repository(SESSION_FOLD)
        self._read_model = SessionsReadModel(
            mesh.events,
            mesh.data_dir / "state.sqlite3",
            mesh.keyring,
            self._observe,
            mesh.clock,
        )
        revisions = Revisions(mesh.stub(AgentServiceStub), mesh.repository(SPLIT_FOLD))
        erasures = Erasures(
            self._repository, self._read_model, mesh.keyring, mesh.tokens, mesh.cache
        )
        imports = Imports(self._repository, revisions, settings, mesh.clock)
        self._sweeper = Sweeper(erasures, settings, mesh.clock)
        self._sessions = Sessions(self._repository, self._read_model, revisions, erasures, imports)
        self._history = StateHistory(self._repository, mesh.heads)

    @property
    def handlers(self) -> Mapping[str, object]:
        """What implements each contract."""
        return {
            "weft.state.v1.SessionService": self._sessions,
            "weft.state.v1.StateService": self._history,
        }

    async def start(self) -> None:
        """Catches up with the log, then finishes what a crash left half done."""
        await self._read_model.start()
        self._sweeper.start()

    async def stop(self) -> None:
        """Closes the read model."""
        await self._sweeper.stop()
        await self._read_model.stop()

    def _observe(self, batch: Sequence[StoredCommit]) -> None:
        """What was erased, here or elsewhere, isn't kept in memory either."""
        for stored in batch:
            if erases(stored):
                self._repository.forget(StreamName.parse(stored.commit.stream))
