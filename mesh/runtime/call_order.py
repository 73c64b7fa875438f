"""Which services of a catalogue a process starts, and in which order."""

from collections.abc import Collection, Sequence

from mesh.errors import FailedPrecondition
from mesh.runtime.service import ServiceEntry


def served(catalogue: Sequence[ServiceEntry], names: Collection[str]) -> list[ServiceEntry]:
    """The entries of those names, all where there are none. FailedPrecondition for a name that
    isn't in the catalogue."""
    unknown = set(names) - {entry.name for entry in catalogue}
    if unknown:
        there = ", ".join(sorted(entry.name for entry in catalogue))
        raise FailedPrecondition(
            f"there is no service {', '.join(sorted(unknown))}; there are {there}"
        )
    return [entry for entry in catalogue if not names or entry.name in names]


def in_call_order(catalogue: Sequence[ServiceEntry]) -> list[ServiceEntry]:
    """The entries, each behind those that it calls. ValueError where calls go in a
    circle or name a service that isn't in the catalogue."""
    entries = {entry.name: entry for entry in catalogue}
    ordered: dict[str, ServiceEntry] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(f"services call each other in a circle: {' -> '.join((*path, name))}")
        if name not in entries:
            raise ValueError(f"{path[-1]} calls {name}, which isn't in the catalogue")
        for called in entries[name].calls:
            if called != name:
                visit(called, (*path, name))
        ordered.setdefault(name, entries[name])

    for name in entries:
        visit(name, ())
    return list(ordered.values())
