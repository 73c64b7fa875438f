"""How many tasks of each batch run, or are about to."""

from collections import Counter


class BatchSlots:
    """Tasks by batch, from when they are set aside for a worker until they run no more."""

    def __init__(self) -> None:
        self._batch_of: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def take(self, task: str, batch: str) -> None:
        """Counts a task that isn't counted yet."""
        self._batch_of[task] = batch
        self._counts[batch] += 1

    def free(self, task: str) -> None:
        """Counts a task no more; nothing where it isn't counted."""
        batch = self._batch_of.pop(task, None)
        if batch is None:
            return
        self._counts[batch] -= 1
        if not self._counts[batch]:
            del self._counts[batch]

    def taken(self, batch: str) -> int:
        """How many of the batch are counted."""
        return self._counts[batch]
