"""How turns ended of agents whose split has a policy: what a process says, and what is made of
it."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.events.aggregate import Repository
from mesh.events.memory import MemoryEventStore
from services.control import domain
from services.control.domain import NewTurns, Served, split_key
from services.control.splits import Splits
from services.control.turn_counts import TurnCounts
from weft.control.v1 import instances_pb2, splits_pb2

AGENT = "tenants/acme/agents/bot"
SPLIT = f"{AGENT}/split"
KEY = split_key(SPLIT)
POLICY = splits_pb2.RollbackPolicy(failures_per_million_max=1)


class Written:
    """A log that holds splits, and what follows it."""

    def __init__(self) -> None:
        store = MemoryEventStore()
        self._repository = Repository(store, domain.SPLIT_FOLD)
        self._count = 0
        self.splits = Splits(store)
        self.counts = TurnCounts(self.splits)

    async def set(
        self, name: str, *revisions: int, policy: splits_pb2.RollbackPolicy | None = POLICY
    ) -> None:
        """Splits an agent evenly between these revisions."""
        self._count += 1
        asked = domain.Request(name, f"r{self._count}", b"h", "me", "", "")
        portions = [splits_pb2.Portion(agent_revision=each, weight=1) for each in revisions]
        command = domain.SetSplit(asked, portions, policy)
        aggregate = self._repository.open(domain.split_stream(name))
        await aggregate.execute(lambda state: domain.decide(state, command))
        await self.splits.catch_up()

    def told(self) -> dict[tuple[bytes, int, int], tuple[int, int]]:
        """Turns and failures, by split, its revision and the agent's."""
        load = instances_pb2.InstanceLoad()
        self.counts.tell(load)
        return {
            (each.split, each.split_revision, each.agent_revision): (each.turns, each.failures)
            for each in load.turns
        }


@pytest.fixture
async def written() -> AsyncIterator[Written]:
    made = Written()
    await made.counts.start()
    yield made
    await made.counts.stop()


async def test_only_turns_of_a_split_with_a_policy_are_counted(written: Written) -> None:
    await written.set(SPLIT, 1, 2)
    await written.set("tenants/acme/agents/other/split", 1, policy=None)
    for agent in (AGENT, "tenants/acme/agents/other", "tenants/acme/agents/unsplit"):
        for revision in (1, 2, 3):
            written.counts.count(agent, revision, failed=revision == 2)
    written.counts.count(AGENT, 2, failed=False)
    assert written.told() == {(KEY, 1, 1): (1, 0), (KEY, 1, 2): (2, 1)}


async def test_nothing_that_is_said_names_an_agent(written: Written) -> None:
    await written.set(SPLIT, 1)
    written.counts.count(AGENT, 1, failed=True)
    load = instances_pb2.InstanceLoad()
    written.counts.tell(load)
    assert load.turns
    said = load.SerializeToString()
    assert not any(name in said for name in (b"acme", b"bot"))


async def test_a_split_that_changes_is_counted_anew(written: Written) -> None:
    await written.set(SPLIT, 1, 2)
    written.counts.count(AGENT, 2, failed=True)
    await written.set(SPLIT, 1, 2)
    assert written.told() == {}
    written.counts.count(AGENT, 2, failed=False)
    assert written.told() == {(KEY, 2, 2): (1, 0)}
    await written.set(SPLIT, 1, 2, policy=None)
    written.counts.count(AGENT, 2, failed=True)
    assert written.told() == {}


async def test_a_process_that_starts_knows_the_splits_that_are_there(written: Written) -> None:
    await written.set(SPLIT, 1)
    late = TurnCounts(written.splits)
    await late.stop()
    await late.start()
    late.count(AGENT, 1, failed=True)
    load = instances_pb2.InstanceLoad()
    late.tell(load)
    assert [each.failures for each in load.turns] == [1]


async def test_of_too_many_revisions_those_are_said_whose_turns_ended_last(
    written: Written,
) -> None:
    agents = [f"{AGENT}{number}" for number in range(domain.REVISIONS_TOLD_MAX + 1)]
    for agent in agents:
        await written.set(f"{agent}/split", 1)
        written.counts.count(agent, 1, failed=False)
    assert len(written.told()) == domain.REVISIONS_TOLD_MAX
    assert (split_key(f"{agents[0]}/split"), 1, 1) not in written.told()
    written.counts.count(agents[0], 1, failed=True)
    assert written.told()[split_key(f"{agents[0]}/split"), 1, 1] == (2, 1)
    assert (split_key(f"{agents[1]}/split"), 1, 1) not in written.told()


def turns(revision: int, ended: int, failures: int, at: int = 1) -> instances_pb2.RevisionTurns:
    return instances_pb2.RevisionTurns(
        split=KEY, split_revision=at, agent_revision=revision, turns=ended, failures=failures
    )


def test_what_was_said_at_first_sight_ended_at_any_time() -> None:
    seen, judged = NewTurns(), {(KEY, 1)}
    assert seen.observe({"a": [turns(2, 50, 50)], "b": []}, judged) == {}
    new = seen.observe({"a": [turns(2, 53, 51)], "b": [turns(2, 4, 0), turns(1, 1, 0)]}, judged)
    assert new == {(KEY, 1): {"2": Served(7, 1), "1": Served(1, 0)}}
    # One that is out of sight for a moment is new again.
    assert seen.observe({"b": [turns(2, 4, 0)]}, judged) == {}
    assert seen.observe({"a": [turns(2, 60, 60)], "b": [turns(2, 4, 0)]}, judged) == {}


def test_what_is_left_out_for_want_of_room_is_not_counted_twice() -> None:
    seen, judged = NewTurns(), {(KEY, 1)}
    seen.observe({"a": []}, judged)
    assert seen.observe({"a": [turns(2, 5, 5)]}, judged) == {(KEY, 1): {"2": Served(5, 5)}}
    assert seen.observe({"a": []}, judged) == {}
    assert seen.observe({"a": [turns(2, 6, 5)]}, judged) == {(KEY, 1): {"2": Served(1, 0)}}


def test_turns_of_another_revision_of_the_split_say_nothing() -> None:
    seen = NewTurns()
    seen.observe({"a": []}, {(KEY, 1)})
    assert seen.observe({"a": [turns(2, 5, 5, at=2)]}, {(KEY, 1)}) == {}
    # Once it is known here too, all that were since then count.
    new = seen.observe({"a": [turns(2, 7, 6, at=2)]}, {(KEY, 2)})
    assert new == {(KEY, 2): {"2": Served(7, 6)}}
    assert seen.observe({"a": [turns(2, 7, 6, at=2)]}, set()) == {}


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.booleans(), st.booleans()),
        max_size=40,
    )
)
def test_each_turn_is_found_once(ended: list[tuple[str, int, bool, bool]]) -> None:
    seen, judged = NewTurns(), {(KEY, 1)}
    seen.observe({"a": [], "b": []}, judged)
    all_of: dict[str, dict[int, Served]] = {"a": {}, "b": {}}
    found: dict[str, Served] = {}

    def look() -> None:
        said = {
            instance: [turns(n, each.calls, each.failures) for n, each in of.items()]
            for instance, of in all_of.items()
        }
        for revision, new in seen.observe(said, judged).get((KEY, 1), {}).items():
            found[revision] = found.get(revision, Served()) + new

    for instance, revision, failed, looks in ended:
        of = all_of[instance]
        of[revision] = of.get(revision, Served()) + Served(1, failed)
        if looks:
            look()
    look()
    expected: dict[str, Served] = {}
    for of in all_of.values():
        for revision, served in of.items():
            expected[str(revision)] = expected.get(str(revision), Served()) + served
    assert found == expected
