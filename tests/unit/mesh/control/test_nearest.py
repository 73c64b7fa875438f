"""Which instance a call goes to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mesh.clock import Clock
from mesh.control.nearest import AVOIDED_SECONDS, Nearest
from weft.control.v1.instances_pb2 import (
    INSTANCE_STATE_DRAINING,
    INSTANCE_STATE_SERVING,
    Instance,
    InstanceState,
)

CONTRACT = "weft.state.v1.StateService"
SERVICES = {CONTRACT: "state"}


@dataclass
class Known:
    """A registry of what it is given."""

    there: list[Instance] = field(default_factory=list)

    def instances(self, service: str = "") -> Sequence[Instance]:
        return [each for each in self.there if not service or service in each.services]

    def on_change(self, callback: Callable[[], None]) -> None:
        """It doesn't change by itself."""

    @property
    def draining(self) -> bool:
        return False

    async def register(self, target: str) -> None:
        """Nobody registers."""

    async def drain(self) -> None:
        """Nobody drains."""


def instance(
    target: str,
    zone: str = "",
    service: str = "state",
    state: "InstanceState.ValueType" = INSTANCE_STATE_SERVING,
) -> Instance:
    return Instance(target=target, zone=zone, services=[service], state=state)


def named(nearest: Nearest, times: int = 10) -> set[str | None]:
    return {nearest(CONTRACT) for _ in range(times)}


def test_those_of_the_own_zone_take_turns_and_others_come_in_only_without_them() -> None:
    known = Known([instance("a1", "a"), instance("a2", "a"), instance("b1", "b")])
    nearest = Nearest(known, "a", SERVICES)
    assert named(nearest) == {"a1", "a2"}
    del known.there[:2]
    assert named(nearest) == {"b1"}


def test_nobody_is_named_who_drains_or_serves_something_else() -> None:
    known = Known([instance("a", state=INSTANCE_STATE_DRAINING), instance("b", service="agents")])
    nearest = Nearest(known, "", SERVICES)
    assert named(nearest) == {None}
    assert nearest("weft.nothing.v1.Nothing") is None


def test_who_could_not_be_reached_is_not_named_for_a_moment() -> None:
    now = 100.0
    clock = Clock(monotonic=lambda: now)
    known = Known([instance("one"), instance("two")])
    nearest = Nearest(known, "", SERVICES, clock)
    nearest.avoid("one")
    assert named(nearest) == {"two"}
    nearest.avoid("two")
    assert named(nearest) == {None}
    now += AVOIDED_SECONDS
    assert named(nearest) == {"one", "two"}


def test_a_target_is_known_while_an_instance_has_it() -> None:
    nearest = Nearest(Known([instance("one")]), "", SERVICES)
    assert nearest.knows("one")
    assert not nearest.knows("two")
