"""What instances say of the turns of agents whose split has a rollback policy."""

import hashlib
from collections.abc import Collection, Iterable, Mapping

from services.control.domain.failures import Served
from weft.control.v1 import instances_pb2

REVISIONS_TOLD_MAX = 64
"""Most revisions of agents whose turns one instance tells of at once."""
KEY_BYTES = 16

SplitRevision = tuple[bytes, int]
"""A split's key, and its revision."""


def split_key(name: str) -> bytes:
    """What stands for a split in what instances say, which isn't only for those who may know
    of its agent."""
    return hashlib.sha256(name.encode()).digest()[:KEY_BYTES]


class NewTurns:
    """Finds in what instances say of all turns so far those that ended since the last look.

    What an instance had to say when it was first seen ended at any time, and doesn't count.
    Of what it doesn't say this time nothing ended, or there was no room for it: that is said
    later.
    """

    def __init__(self) -> None:
        self._seen: dict[str, dict[tuple[bytes, int, int], Served]] = {}

    def observe(
        self,
        said: Mapping[str, Iterable[instances_pb2.RevisionTurns]],
        judged: Collection[SplitRevision],
    ) -> dict[SplitRevision, dict[str, Served]]:
        """What ended, by the agent's revision, of the splits in `judged`; `said` is what each
        instance that is there says."""
        ended: dict[SplitRevision, dict[str, Served]] = {}
        seen = {}
        for instance, turns in said.items():
            before = self._seen.get(instance)
            known = {key: served for key, served in (before or {}).items() if key[:2] in judged}
            for each in turns:
                split = (each.split, each.split_revision)
                if split not in judged:
                    continue
                key, served = (*split, each.agent_revision), Served(each.turns, each.failures)
                new = served - known.get(key, Served())
                if before is not None and new.calls > 0:
                    of_split = ended.setdefault(split, {})
                    revision = str(each.agent_revision)
                    of_split[revision] = of_split.get(revision, Served()) + new
                known[key] = served
            seen[instance] = known
        self._seen = seen
        return ended
