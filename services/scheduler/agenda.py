"""Keys by the time at which each is due, in a heap that is cleaned as it is read."""

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

SPARE = 1_024
"""Places of a heap beside those that count, before it is made anew."""

K = TypeVar("K", bound=Hashable)
W = TypeVar("W", int, float)

_orders = itertools.count(1)


class Agenda(Generic[K, W]):
    """Each key has one place: the last at which it was put. What is due at one time goes in
    the order in which it was put, over all agendas."""

    def __init__(self) -> None:
        self._heap: list[tuple[W, int, K]] = []
        self._places: dict[K, tuple[W, int, K]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def put(self, key: K, when: W) -> None:
        """Gives the key its place."""
        place = self._places[key] = (when, next(_orders), key)
        heapq.heappush(self._heap, place)
        if len(self._heap) > 2 * len(self._places) + SPARE:
            # What is left of keys that were dropped or put elsewhere, some for a far time.
            self._heap = list(self._places.values())
            heapq.heapify(self._heap)

    def drop(self, key: K) -> None:
        """Takes the key out, if it is there."""
        self._places.pop(key, None)

    def when(self, key: K) -> W | None:
        """When the key is due; None where it isn't there."""
        place = self._places.get(key)
        return place[0] if place is not None else None

    def head(self) -> tuple[W, int, K] | None:
        """What is due first: when, its order, the key; None where there is nothing."""
        heap, places = self._heap, self._places
        while heap and places.get(heap[0][2]) is not heap[0]:
            heapq.heappop(heap)
        return heap[0] if heap else None

    def pop(self, until: W) -> K | None:
        """Takes out the key that is due first, where it is by `until`; else None."""
        head = self.head()
        if head is None or head[0] > until:
            return None
        heapq.heappop(self._heap)
        del self._places[head[2]]
        return head[2]
