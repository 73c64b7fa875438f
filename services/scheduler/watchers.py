"""Who waits for something to happen to a task, or to a queue."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Watchers:
    """Events by the name of a task or queue."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    @contextmanager
    def watching(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set each time that something happens to what has that name."""
        changed = asyncio.Event()
        self._events.setdefault(name, set()).add(changed)
        try:
            yield changed
        finally:
            self._events[name].discard(changed)
            if not self._events[name]:
                del self._events[name]

    def tell(self, name: str) -> None:
        """Something happened to what has that name."""
        for changed in self._events.get(name, ()):
            changed.set()
