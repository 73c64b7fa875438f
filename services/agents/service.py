"""Puts the agents service together."""

import asyncio
from collections.abc import Mapping, Sequence

from mesh.errors import WeftError
from mesh.events.aggregate import Repository
from mesh.events.store import StoredCommit, StreamName
from mesh.runtime.service import Mesh
from services.agents.definitions import AgentDefinitions
from services.agents.domain import AGENT_FOLD
from services.agents.effects import Effects
from services.agents.feeds import TurnFeeds
from services.agents.outcomes import Outcomes
from services.agents.read_model import ERASED, AgentsReadModel
from services.agents.recovery import Recovery
from services.agents.running import RunningTurns
from services.agents.settings import AgentsSettings
from services.agents.stalled_turns import StalledTurns
from services.agents.turn_tasks import TurnTasks
from services.agents.turn_worker import TurnWorker
from services.agents.turns import Turns
from services.state.domain import SESSION_FOLD
from weft.models.v1.model_service_pb2_grpc import ModelServiceStub
from weft.scheduler.v1.task_service_pb2_grpc import TaskServiceStub
from weft.scheduler.v1.worker_service_pb2_grpc import WorkerServiceStub
from weft.tools.v1.tool_service_pb2_grpc import ToolServiceStub


class AgentsService:
    """Agents, their turns, and the recovery of turns whose process died."""

    def __init__(self, mesh: Mesh, settings: AgentsSettings, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._agents = Repository(mesh.events, AGENT_FOLD, clock=mesh.clock)
        self._sessions = mesh.repository(SESSION_FOLD)
        path = mesh.data_dir / "agents.sqlite3"
        self._read_model = AgentsReadModel(mesh.events, path, self._observe, mesh.keyring)
        self._definitions = AgentDefinitions(
            self._agents, self._read_model, mesh.stub(ToolServiceStub)
        )
        # What goes to models and tools is in the log already, and was checked before.
        effects = Effects(
            mesh.stub(ModelServiceStub, validated=True),
            mesh.stub(ToolServiceStub, validated=True),
            settings,
            mesh.clock,
        )
        feeds = TurnFeeds(self._sessions)
        self._running = RunningTurns(
            self._sessions,
            self._definitions,
            feeds,
            effects,
            mesh.leases,
            mesh.tokens,
            outcomes,
            settings,
            mesh.clock,
        )
        tasks = TurnTasks(mesh.stub(TaskServiceStub), mesh.keyring)
        self._turns = Turns(
            self._sessions,
            self._definitions,
            effects,
            self._read_model,
            self._running,
            feeds,
            tasks,
            mesh.leases,
            mesh.tokens,
            settings,
            mesh.clock,
            lambda: mesh.stopping,
        )
        self._recovery = Recovery(
            self._read_model, self._running, mesh.leases, settings.recovery_interval_seconds
        )
        self._worker = TurnWorker(
            self._turns,
            tasks,
            mesh.stub(WorkerServiceStub),
            mesh.instance,
            settings,
            mesh.clock,
            lambda: mesh.stopping,
        )
        # An instance that was drained takes no background turns either.
        mesh.registry.on_change(lambda: self._worker.pause(mesh.registry.draining))
        self._stalled = StalledTurns(
            self._sessions,
            self._read_model,
            self._turns,
            self._running,
            mesh.leases,
            settings,
            mesh.clock,
        )
        self._refreshing: set[asyncio.Task[None]] = set()

    @property
    def handlers(self) -> Mapping[str, object]:
        """What implements each contract."""
        return {
            "weft.agents.v1.AgentService": self._definitions,
            "weft.agents.v1.TurnService": self._turns,
            "weft.agents.v1.StalledTurnService": self._stalled,
        }

    async def start(self) -> None:
        """Catches up with the log, then looks for turns to resume."""
        await self._outcomes.start()
        await self._read_model.start()
        self._recovery.start()
        self._stalled.start()
        self._worker.start()

    async def stop(self) -> None:
        """Leaves what still runs for others to resume."""
        await self._worker.stop()
        await self._stalled.stop()
        await self._recovery.stop()
        await self._running.drain()
        await self._read_model.stop()
        await self._outcomes.stop()

    def _observe(self, batch: Sequence[StoredCommit]) -> None:
        """Aggregates that this process keeps learn what other processes wrote."""
        erased = [
            StreamName.parse(stored.commit.stream)
            for stored in batch
            if any(event.type == ERASED for event in stored.commit.events)
        ]
        for stream in erased:
            self._sessions.forget(stream)
            self._turns.forget(stream)
        if erased:
            self._read_model.scrub()
        for stored in batch:
            self._refresh(stored)

    def _refresh(self, stored: StoredCommit) -> None:
        stream = StreamName.parse(stored.commit.stream)
        repository: Repository[object] = (
            self._agents if stream.area == "agents" else self._sessions  # type: ignore[assignment]
        )
        aggregate = repository.hot(stream)
        if aggregate is None or aggregate.head.position >= stored.position:
            return

        async def load() -> None:
            try:
                await aggregate.load()
            except WeftError:
                # Whoever uses it next reads it again and hears of the error.
                return

        task = asyncio.create_task(load())
        self._refreshing.add(task)
        task.add_done_callback(self._refreshing.discard)
