"""Counts, in a process that runs turns, how those end of agents whose split has a rollback
policy, and says it with the process's lease.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from services.control import domain
from services.control.splits import Splits
from weft.control.v1 import instances_pb2, splits_pb2


@dataclass(frozen=True, slots=True)
class _Judged:
    """A split with a policy, at its revision, and the agent's revisions that it has."""

    key: bytes
    revision: int
    agent_revisions: frozenset[int]


class TurnCounts:
    """The turns of each revision since its split's last change; those of others aren't kept."""

    def __init__(self, splits: Splits) -> None:
        self._splits = splits
        self._judged: dict[str, _Judged] = {}
        self._counts: OrderedDict[tuple[str, int], instances_pb2.RevisionTurns] = OrderedDict()
        splits.on_change(self._learn)

    async def start(self) -> None:
        """Returns once all splits are known. Raises EventStoreUnavailable, DataDamaged."""
        await self._splits.start()

    async def stop(self) -> None:
        """Learns of no split any more."""
        await self._splits.stop()

    def count(self, agent: str, agent_revision: int, *, failed: bool) -> None:
        """A turn of the agent ended, of a session that is pinned to that revision."""
        judged = self._judged.get(agent)
        if judged is None or agent_revision not in judged.agent_revisions:
            return
        key = (agent, agent_revision)
        counted = self._counts.get(key)
        if counted is None:
            counted = self._counts[key] = instances_pb2.RevisionTurns(
                split=judged.key, split_revision=judged.revision, agent_revision=agent_revision
            )
        counted.turns += 1
        counted.failures += failed
        self._counts.move_to_end(key)

    def tell(self, load: instances_pb2.InstanceLoad) -> None:
        """Adds the counts to what the process says of itself: those that changed last, where
        there are too many."""
        load.turns.extend(islice(reversed(self._counts.values()), domain.REVISIONS_TOLD_MAX))

    def _learn(self, splits: Sequence[splits_pb2.Split]) -> None:
        for split in splits:
            agent = domain.agent_of(split.name)
            if agent:
                self._forget(agent)
                if split.HasField("rollback_policy"):
                    self._judged[agent] = _Judged(
                        domain.split_key(split.name),
                        split.changes[0].revision,
                        frozenset(each.agent_revision for each in split.portions),
                    )

    def _forget(self, agent: str) -> None:
        judged = self._judged.pop(agent, None)
        for agent_revision in judged.agent_revisions if judged is not None else ():
            self._counts.pop((agent, agent_revision), None)
