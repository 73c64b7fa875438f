"""The commits that were opened last: several read models and watchers of a process want
the same ones within a moment."""

from collections import OrderedDict

from mesh.events.store import StoredCommit

COMMITS_MAX = 512
BYTES_MAX = 8_000_000


class OpenedCommits:
    """Keeps opened commits by position, the least used ones only until there are more than
    512 or 8 MB of them."""

    def __init__(self) -> None:
        self._commits: OrderedDict[int, tuple[StoredCommit, int]] = OrderedDict()
        self._bytes = 0

    def get(self, stream: str, position: int) -> StoredCommit | None:
        """The commit of that stream, if it is kept."""
        found = self._commits.get(position)
        if found is None or found[0].commit.stream != stream:
            return None
        self._commits.move_to_end(position)
        return found[0]

    def keep(self, stored: StoredCommit, size_bytes: int) -> None:
        """Keeps a commit that takes so much memory, unless it alone is more than all may."""
        self._drop(stored.position)
        if size_bytes > BYTES_MAX:
            return
        self._commits[stored.position] = (stored, size_bytes)
        self._bytes += size_bytes
        while len(self._commits) > COMMITS_MAX or self._bytes > BYTES_MAX:
            self._drop(next(iter(self._commits)))

    def forget(self, stream: str) -> None:
        """Drops all commits of a stream."""
        kept = list(self._commits.items())
        for position in [p for p, (stored, _) in kept if stored.commit.stream == stream]:
            self._drop(position)

    def _drop(self, position: int) -> None:
        dropped = self._commits.pop(position, None)
        if dropped is not None:
            self._bytes -= dropped[1]
