"""Which instance owns a queue: it takes the calls and the workers of that queue, so that one
process alone writes its stream."""

from collections.abc import Callable, Iterable
from hashlib import blake2b

from mesh.control.registry import Registry
from weft.control.v1.instances_pb2 import Instance

SERVICE = "scheduler"
REMEMBERED_MAX = 10_000
"""Queue ids whose owner is remembered; callers name such as aren't there, too."""


def owner_of(queue_id: str, instances: Iterable[str]) -> str | None:
    """The one of the instances that owns the queues of that id; None where there is none.

    Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit
    rates", 1998): each instance has a weight for each queue, and the heaviest owns it. So
    queues spread evenly, everybody comes to the same result without asking, and where an
    instance comes or goes, only the queues move that it gets or had.
    """
    return max(instances, key=lambda each: (_weight(queue_id, each), each), default=None)


def _weight(queue_id: str, instance: str) -> bytes:
    return blake2b(f"{instance}/{queue_id}".encode(), digest_size=8).digest()


class Owners:
    """The owners by the registry, as this instance, of the name `own`, sees them.

    Another one may see it differently for a moment. Then two write one queue, and the log's
    expected revision decides, as it does where an owner lost its lease and doesn't know yet.
    """

    def __init__(self, registry: Registry, own: str) -> None:
        self.own = own
        self._registry = registry
        self._elsewhere: dict[str, Instance | None] = {}
        self._callbacks: list[Callable[[], None]] = []
        registry.on_change(self._changed)

    def elsewhere(self, queue_id: str) -> Instance | None:
        """The instance that owns the queues of that id; None where it is this one, or where
        nobody takes calls."""
        try:
            return self._elsewhere[queue_id]
        except KeyError:
            pass
        serving = {each.name: each for each in self._registry.serving(SERVICE)}
        owner = owner_of(queue_id, serving)
        found = serving[owner] if owner not in (None, self.own) else None
        if len(self._elsewhere) >= REMEMBERED_MAX:
            self._elsewhere.clear()
        self._elsewhere[queue_id] = found
        return found

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after the owners may have changed."""
        self._callbacks.append(callback)

    def names(self) -> set[str]:
        """The names of all instances that are there, whether they take calls or not."""
        return {each.name for each in self._registry.instances()}

    def _changed(self) -> None:
        self._elsewhere.clear()
        for callback in self._callbacks:
            callback()
