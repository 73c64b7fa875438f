"""Takes splits back whose calls, or agents' turns, fail too often, by what instances say with
their leases.

Each instance of this service looks; the log lets one of them take a split back, once.
"""

import asyncio
from collections.abc import Mapping

import structlog

from mesh.clock import Clock
from mesh.control.registry import Registry
from mesh.errors import FailedPrecondition, WeftError
from mesh.events.aggregate import Repository
from services.control import domain
from services.control.splits import Splits

LOOK_SECONDS = 1.0
"""How often it looks; instances say three times as often how many calls failed."""
COMMIT_SECONDS_MAX = 10.0
AGENTS = "agents"
"""The service whose instances run turns."""

_log = structlog.get_logger(__name__)


class Rollbacks:
    """Looks at all splits with a policy."""

    def __init__(
        self,
        splits: Splits,
        repository: Repository[domain.State],
        registry: Registry,
        clock: Clock,
    ) -> None:
        self._splits = splits
        self._repository = repository
        self._registry = registry
        self._clock = clock
        self._windows: dict[str, _Watched] = {}
        self._new_turns = domain.NewTurns()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Looks from here on."""
        self._task = asyncio.create_task(self._run(), name="rollbacks")

    async def stop(self) -> None:
        """Ends looking."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                async with asyncio.timeout(COMMIT_SECONDS_MAX):
                    await self._look()
            except (WeftError, TimeoutError) as error:
                _log.warning("splits_not_looked_at", error=str(error))
            except Exception:  # noqa: BLE001 - nobody awaits this task; the log has the fault
                _log.exception("splits_not_looked_at")

    async def _look(self) -> None:
        looked_at = [state for state in self._splits if state.split.HasField("rollback_policy")]
        names = {state.split.name for state in looked_at}
        self._windows = {name: each for name, each in self._windows.items() if name in names}
        for state in looked_at:
            watched = self._windows.get(state.split.name)
            if watched is None or watched.revision != state.revision:
                # What was before the split's last change says nothing of it.
                self._windows[state.split.name] = _Watched(state)
        self._count()
        for state in looked_at:
            await self._judge(state, self._windows[state.split.name])

    def _count(self) -> None:
        """Takes in what ended since the last look, of all before any is judged: that may
        fail, or take long."""
        now = self._clock.monotonic()
        turns = self._new_turns.observe(
            {each.name: each.load.turns for each in self._registry.instances(AGENTS)},
            {each.split for each in self._windows.values() if not each.service},
        )
        for watched in self._windows.values():
            if watched.service:
                watched.window.observe(now, served(self._registry, watched.service))
            else:
                watched.window.add(now, turns.get(watched.split, {}))

    async def _judge(self, state: domain.State, watched: "_Watched") -> None:
        failures = domain.failing(state.split, watched.window.totals)
        if failures is None:
            return
        # All revisions of an agent are there for ever.
        running = running_versions(self._registry, watched.service) if watched.service else None
        # The state goes on while others are judged; what was counted is of this revision.
        command = domain.RollBackFailing(state.split.name, watched.revision, failures, running)
        aggregate = self._repository.open(domain.split_stream(state.split.name))
        try:
            stored = await aggregate.execute(lambda present: domain.decide(present, command))
        except FailedPrecondition as error:
            # Another version may come to run; it is said once all the same.
            if not watched.complained:
                watched.complained = True
                _log.error("split_not_rolled_back", split=state.split.name, error=error.message)
            return
        if stored is not None:
            _log.warning(
                "split_rolled_back",
                split=state.split.name,
                version=domain.taker_of(failures),
                calls=failures.calls,
                failures=failures.failures,
            )


class _Watched:
    """A split at one revision, and what its versions, or the agent's revisions, did since."""

    def __init__(self, state: domain.State) -> None:
        self.revision = state.revision
        self.service = domain.service_of(state.split.name)
        """Empty where it is an agent's split."""
        self.split = (domain.split_key(state.split.name), state.revision)
        self.window = domain.FailureWindow(domain.window_seconds(state.split.rollback_policy))
        self.complained = False


def served(registry: Registry, service: str) -> Mapping[str, tuple[str, domain.Served]]:
    """The version of each instance of the service, and the calls that it answered."""
    said = {}
    for instance in registry.instances(service):
        calls = next((each for each in instance.load.served if each.service == service), None)
        count = domain.Served(calls.calls, calls.failures) if calls else domain.Served()
        said[instance.name] = (instance.version, count)
    return said


def running_versions(registry: Registry, service: str) -> frozenset[str]:
    """Versions of the instances that take calls of the service."""
    return frozenset(instance.version for instance in registry.serving(service))
