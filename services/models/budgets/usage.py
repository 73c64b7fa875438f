"""What calls used, counted in memory and stored every few seconds."""

import asyncio
from typing import NamedTuple

import structlog

from mesh.clock import Clock
from mesh.errors import WeftError
from mesh.events.aggregate import Repository
from mesh.principal import SYSTEM_NAME
from services.models import domain
from weft.models.v1 import budgets_pb2, models_pb2
from weft.models.v1 import events_pb2 as facts

RECORD_SECONDS = 5.0
ENTRIES_MAX = 500
"""Entries of one record."""
COUNTED_MAX = 20_000
"""Entries that wait to be stored, as while the store is away. Past that they are counted by
hour, tenant and model only."""

_log = structlog.get_logger(__name__)


class Caller(NamedTuple):
    """For whom a model is called: a tenant, a session of its where that isn't empty; and the
    model, by its id."""

    parent: str
    session: str
    model: str


class _Key(NamedTuple):
    hour_ns: int
    caller: Caller


class UsageRecorder:
    """Counts what calls used, and records it in the log, for `GetUsage`. What a process
    hadn't recorded when it was killed is lost; budgets know of it."""

    def __init__(
        self, repository: Repository[domain.UsageState], instance: str, clock: Clock
    ) -> None:
        self._repository = repository
        self._instance = instance
        self._clock = clock
        self._counted: dict[_Key, budgets_pb2.UsageEntry] = {}
        self._pending: dict[str, facts.UsageRecorded] = {}
        self._numbers = 0
        self._recording = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Records from now on."""
        self._task = asyncio.create_task(self._record_always(), name="usage")

    async def stop(self) -> None:
        """Records what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._record_quietly()

    def add(self, caller: Caller, usage: models_pb2.Usage) -> None:
        """A call used that."""
        entry = self._entry(caller)
        entry.calls += 1
        entry.estimated_calls += usage.estimated
        entry.unpriced_calls += not usage.HasField("cost_micro_usd")
        entry.input_tokens += usage.input_tokens
        entry.cached_input_tokens += usage.cached_input_tokens
        entry.output_tokens += usage.output_tokens
        entry.cost_micro_usd += usage.cost_micro_usd

    async def record(self) -> None:
        """Stores what was counted by now. Raises EventStoreUnavailable."""
        async with self._recording:
            while self._pending or self._counted:
                if not self._pending:
                    self._gather()
                for tenant, record in list(self._pending.items()):
                    await self._store(tenant, record)
                    del self._pending[tenant]

    def _entry(self, caller: Caller) -> budgets_pb2.UsageEntry:
        hour_ns = self._clock.now_ns() // domain.HOUR_NS * domain.HOUR_NS
        key = _Key(hour_ns, caller)
        entry = self._counted.get(key)
        if entry is None and len(self._counted) >= COUNTED_MAX:
            key = _Key(hour_ns, Caller(caller.parent, "", caller.model))
            entry = self._counted.get(key)
        if entry is None:
            entry = self._counted[key] = budgets_pb2.UsageEntry(
                agent=domain.agent_of(key.caller.session),
                session=key.caller.session,
                model=key.caller.model,
            )
            entry.start_time.FromNanoseconds(hour_ns)
        return entry

    def _gather(self) -> None:
        """Makes a record for each tenant of what was counted. A record keeps its number until
        it is known to be stored: so it is stored once."""
        for key in list(self._counted):
            tenant = key.caller.parent.rpartition("/")[2]
            record = self._pending.get(tenant)
            if record is None:
                self._numbers += 1
                record = self._pending[tenant] = facts.UsageRecorded(
                    instance=self._instance, number=self._numbers
                )
            if len(record.entries) < ENTRIES_MAX:
                record.entries.append(self._counted.pop(key))

    async def _store(self, tenant: str, record: facts.UsageRecorded) -> None:
        aggregate = self._repository.open(domain.usage_stream(tenant))
        await aggregate.execute(lambda state: domain.decide_usage(state, record), actor=SYSTEM_NAME)

    async def _record_always(self) -> None:
        while True:
            await asyncio.sleep(RECORD_SECONDS)
            await self._record_quietly()

    async def _record_quietly(self) -> None:
        try:
            await self.record()
        except WeftError as error:
            # It stays counted, and is recorded with the next ones.
            _log.warning("usage not recorded", error=error.message)
