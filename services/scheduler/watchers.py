"""Who waits for something to happen to a task."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Watchers:
    """Events by the name of a task."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    @contextmanager
    def watching(self, task: str) -> Iterator[asyncio.Event]:
        """An event that is set each time that something happens to the task."""
        changed = asyncio.Event()
        self._events.setdefault(task, set()).add(changed)
        try:
            yield changed
        finally:
            self._events[task].discard(changed)
            if not self._events[task]:
                del self._events[task]

    def tell(self, task: str) -> None:
        """Something happened to the task."""
        for changed in self._events.get(task, ()):
            changed.set()
