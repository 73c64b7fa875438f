"""Finds the attempts whose worker is gone: it was silent for a lease, or never came back
after its stream, or its instance of Weft, ended."""

from collections.abc import Callable, Mapping, MutableMapping

from mesh.clock import Clock
from mesh.control.leases import Leases
from services.scheduler.domain import names
from services.scheduler.domain.state import RUNNING, Entry
from services.scheduler.settings import SchedulerSettings
from services.scheduler.tenant_queue import TenantQueue
from services.scheduler.workers import Attempt, Worker, holder_of

LOOK_SECONDS = 0.1
"""How often all that runs is looked at, at most."""


class Losses:
    """`tenants` and `workers` are the dispatcher's own; `lose` ends an attempt."""

    def __init__(
        self,
        tenants: Mapping[str, TenantQueue],
        workers: MutableMapping[tuple[str, str], Worker],
        settings: SchedulerSettings,
        leases: Leases,
        clock: Clock,
        lose: Callable[[TenantQueue, str, int], None],
    ) -> None:
        self._tenants = tenants
        self._workers = workers
        self._lease_seconds = settings.lease_seconds
        self._leases = leases
        self._clock = clock
        self._lose = lose
        self._since: dict[Attempt, float] = {}
        self._looked = 0.0

    def goes_on(self, name: str, attempt: int) -> None:
        """A worker came back that has the task."""
        self._since.pop((name, attempt), None)

    def look(self) -> None:
        """Lets workers go that are silent, and ends what nobody has for a lease."""
        now = self._clock.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        lease = self._lease_seconds
        for key, worker in list(self._workers.items()):
            if now - worker.seen > lease:
                worker.leave()
                del self._workers[key]
                # It was silent for a whole lease already.
                self._since.update(dict.fromkeys(worker.held, now - 2 * lease))
        present = set()
        for queue in self._tenants.values():
            for task in queue.running:
                entry = queue.state.tasks.get(task)
                if entry is None or entry.task.state != RUNNING:
                    # Its end is on its way into the log.
                    continue
                attempt = (names.task_name(queue.stream, task), entry.attempt)
                if holder_of(self._workers, queue.tenant, entry.worker, attempt) is not None:
                    continue
                if self._is_elsewhere(entry):
                    continue
                present.add(attempt)
                if now - self._since.setdefault(attempt, now) > lease:
                    self._since[attempt] = now
                    self._lose(queue, task, entry.attempt)
        for gone in self._since.keys() - present:
            del self._since[gone]

    def _is_elsewhere(self, entry: Entry) -> bool:
        """Whether the worker is another instance's, which is alive."""
        instance = entry.task.attempts[-1].instance
        return instance != self._leases.instance and not self._leases.expired(instance)
