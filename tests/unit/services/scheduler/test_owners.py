"""Whose a queue is."""

from collections import Counter
from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.owners import Owners, owner_of
from weft.control.v1 import instances_pb2
from weft.control.v1.instances_pb2 import Instance

QUEUES = [f"queue-{number}" for number in range(2_000)]
names = st.lists(st.text("0123456789abcdef", min_size=1, max_size=8), min_size=1, unique=True)
SERVING = instances_pb2.INSTANCE_STATE_SERVING
DRAINING = instances_pb2.INSTANCE_STATE_DRAINING


class Registered:
    """A registry that says what it is told."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}
        self._callbacks: list[Callable[[], None]] = []

    def say(self, name: str, state: "instances_pb2.InstanceState.ValueType") -> None:
        """Has an instance in that state from now on."""
        self._instances[name] = Instance(name=name, services=["scheduler"], state=state)
        for callback in self._callbacks:
            callback()

    def instances(self, service: str = "") -> Sequence[Instance]:
        return [each for each in self._instances.values() if service in ("", *each.services)]

    def serving(self, service: str = "") -> Sequence[Instance]:
        return [each for each in self.instances(service) if each.state == SERVING]

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def on_say(self, callback: Callable[[instances_pb2.InstanceLoad], None]) -> None:
        raise NotImplementedError

    @property
    def draining(self) -> bool:
        return False

    async def register(self, target: str, xds_target: str = "") -> None:
        raise NotImplementedError

    async def drain(self) -> None:
        raise NotImplementedError


@given(names, st.randoms(use_true_random=False), st.sampled_from(QUEUES))
def test_everybody_finds_the_same_owner(instances: list[str], random: object, queue: str) -> None:
    shuffled = list(instances)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert owner_of(queue, shuffled) == owner_of(queue, instances)


@given(names, st.sampled_from(QUEUES))
def test_only_the_queues_of_one_that_goes_move(instances: list[str], queue: str) -> None:
    owner = owner_of(queue, instances)
    for gone in instances:
        left = [each for each in instances if each != gone]
        assert (owner_of(queue, left) == owner) == (gone != owner)


def test_queues_spread_and_one_more_instance_takes_its_share() -> None:
    instances = [f"instances/{number}" for number in range(4)]
    before = {queue: owner_of(queue, instances) for queue in QUEUES}
    assert all(400 < count < 600 for count in Counter(before.values()).values())
    after = {queue: owner_of(queue, [*instances, "instances/new"]) for queue in QUEUES}
    moved = [queue for queue in QUEUES if after[queue] != before[queue]]
    assert all(after[queue] == "instances/new" for queue in moved)
    assert 300 < len(moved) < 500


def test_where_nobody_takes_calls_a_queue_is_nobody_elses() -> None:
    assert owner_of("default", []) is None
    assert Owners(Registered(), "instances/own").elsewhere("default") is None


def test_an_instance_that_drains_owns_nothing() -> None:
    registry = Registered()
    owners = Owners(registry, "instances/own")
    changes: list[str] = []
    owners.on_change(lambda: changes.append("changed"))
    registry.say("instances/other", SERVING)
    found = owners.elsewhere("default")
    assert found is not None
    assert found.name == "instances/other"
    registry.say("instances/other", DRAINING)
    assert owners.elsewhere("default") is None
    assert owners.names() == {"instances/other"}
    assert len(changes) == 2
