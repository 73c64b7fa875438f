"""A bounded memory of what is costly to make."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Keeps the `size_max` values that were used last."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The kept value, or the one that `make` returns; what raises isn't kept."""
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > self._size_max:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]
