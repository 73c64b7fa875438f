"""What may be done to a split, and what comes of it."""

from collections import Counter

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound, RequestIdReused
from mesh.events.fold import Place
from services.control import domain
from services.control.domain.evolve import CHANGES_MAX, PAST_MAX, REQUESTS_MAX
from weft.control.v1 import events_pb2 as facts
from weft.control.v1 import splits_pb2

NAME = "services/agents/split"
AGENT = "tenants/acme/agents/bot/split"
RUNNING = frozenset({"v1", "v2", "v3"})


class Told:
    """A split in memory, and the requests that it gets."""

    def __init__(self, name: str = NAME) -> None:
        self.name = name
        self.state = domain.State()
        self.count = 0

    def request(self, **fields: str) -> domain.Request:
        self.count += 1
        given = {"id": f"r{self.count}", "actor": "me", "reason": "", "etag": "", **fields}
        return domain.Request(name=self.name, hash=b"h", **given)

    def do(self, command: domain.Command) -> list[object]:
        events = domain.decide(self.state, command)
        for event in events:
            place = Place(self.state.revision + 1, Timestamp(seconds=self.state.revision))
            self.state = domain.SPLIT_FOLD.evolve(self.state, event, place)
        return list(events)

    def set(self, *weights: tuple[str, int], **fields: str) -> list[object]:
        portions = [splits_pb2.Portion(version=name, weight=weight) for name, weight in weights]
        return self.do(domain.SetSplit(self.request(**fields), portions, None))

    def promote(self, version: str, running: frozenset[str] | None = None) -> None:
        self.do(domain.Promote(self.request(), version, 0, running))

    def roll_back(self, running: frozenset[str] | None = RUNNING) -> None:
        self.do(domain.RollBack(self.request(), running))

    def fails(self, version: str, running: frozenset[str] = RUNNING) -> list[object]:
        count = facts.FailureCount(version=version, calls=100, failures=50)
        return self.do(domain.RollBackFailing(NAME, self.state.revision, count, running))

    @property
    def weights(self) -> dict[str, int]:
        return {each.version: each.weight for each in self.state.split.portions}

    @property
    def since(self) -> dict[str, int]:
        return {each.version: each.since_revision for each in self.state.split.portions}


@pytest.fixture
def split() -> Told:
    return Told()


def portion(**fields: object) -> splits_pb2.Portion:
    return splits_pb2.Portion(**fields)  # type: ignore[arg-type]


def test_what_was_set_is_there_with_who_and_why(split: Told) -> None:
    split.set(("v1", 90), ("v2", 10), reason="canary")
    change = split.state.split.changes[0]
    assert split.weights == {"v1": 90, "v2": 10}
    assert (change.actor, change.reason, change.revision) == ("me", "canary", 1)
    assert change.action == splits_pb2.SPLIT_ACTION_SET
    assert split.state.split.etag == "r1"


@pytest.mark.parametrize(
    ("name", "portions"),
    [
        (NAME, [portion(weight=1)]),
        (NAME, [portion(agent_revision=1, weight=1)]),
        (NAME, [portion(version="v1", agent_revision=1, weight=1)]),
        (NAME, [portion(version="v1", weight=1), portion(version="v1", weight=2)]),
        (NAME, [portion(version="v1"), portion(version="v2")]),
        (AGENT, [portion(version="v1", weight=1)]),
        (AGENT, [portion(weight=1)]),
    ],
)
def test_portions_that_mean_nothing_are_refused(
    name: str, portions: list[splits_pb2.Portion]
) -> None:
    split = Told(name)
    with pytest.raises(InvalidArgument):
        split.do(domain.SetSplit(split.request(), portions, None))


@pytest.mark.parametrize("name", [NAME, AGENT])
def test_a_policy_is_for_what_is_split(name: str) -> None:
    policy = splits_pb2.RollbackPolicy(failures_per_million_max=1)
    split = Told(name)
    with pytest.raises(InvalidArgument):
        split.do(domain.SetSplit(split.request(), [], policy))


def test_a_revision_that_fails_goes_to_the_portions_before_it_with_their_policy() -> None:
    split = Told(AGENT)
    policies = [splits_pb2.RollbackPolicy(failures_per_million_max=n) for n in (1, 2)]
    for policy, weights in zip(policies, ((100, 0), (90, 10)), strict=True):
        portions = [portion(agent_revision=n, weight=w) for n, w in enumerate(weights, 1)]
        split.do(domain.SetSplit(split.request(), portions, policy))
    count = facts.FailureCount(agent_revision=2, calls=100, failures=50)
    failing = domain.RollBackFailing(AGENT, split.state.revision, count, None)
    assert len(split.do(failing)) == 1
    assert split.do(failing) == []
    back = split.state.split
    assert [(each.agent_revision, each.weight) for each in back.portions] == [(1, 100), (2, 0)]
    assert back.rollback_policy == policies[0]
    change = back.changes[0]
    assert change.action == splits_pb2.SPLIT_ACTION_ROLLED_BACK_BY_POLICY
    assert (change.actor, change.reason) == ("system", "50 of 100 turns of revision 2 failed")


def test_an_agents_base_that_fails_has_nowhere_to_go() -> None:
    split = Told(AGENT)
    portions = [portion(agent_revision=n, weight=1) for n in (1, 2)]
    split.do(domain.SetSplit(split.request(), portions, splits_pb2.RollbackPolicy()))
    count = facts.FailureCount(agent_revision=1, calls=100, failures=50)
    with pytest.raises(FailedPrecondition, match="without 1"):
        split.do(domain.RollBackFailing(AGENT, split.state.revision, count, None))


def test_promoting_gives_all_to_one_and_ends_the_policy(split: Told) -> None:
    portions = [portion(version="v1", weight=90), portion(version="v2", weight=10)]
    policy = splits_pb2.RollbackPolicy(failures_per_million_max=1)
    split.do(domain.SetSplit(split.request(), portions, policy))
    split.promote("v2")
    assert split.weights == {"v2": 100}
    assert not split.state.split.HasField("rollback_policy")
    split.roll_back()
    assert split.weights == {"v1": 90, "v2": 10}
    assert split.state.split.rollback_policy == policy


def test_what_has_no_portion_can_not_be_promoted(split: Told) -> None:
    with pytest.raises(NotFound):
        split.promote("v1")
    split.set(("v1", 1))
    with pytest.raises(FailedPrecondition):
        split.promote("v2")


def test_rolling_back_goes_step_by_step_to_the_base(split: Told) -> None:
    split.set(("v1", 99), ("v2", 1))
    split.set(("v1", 50), ("v2", 50))
    split.roll_back()
    assert split.weights == {"v1": 99, "v2": 1}
    split.roll_back()
    assert split.weights == {"v1": 100}
    with pytest.raises(FailedPrecondition):
        split.roll_back()


def test_versions_that_do_not_run_are_passed(split: Told) -> None:
    split.set(("v1", 1))
    split.set(("v0", 1))
    split.set(("v2", 1))
    split.roll_back()
    assert split.weights == {"v1": 1}
    split = Told()
    split.set(("v0", 1))
    split.set(("v2", 1))
    with pytest.raises(FailedPrecondition):
        split.roll_back()
    split.roll_back(None)
    assert split.weights == {"v0": 1}


def test_an_ended_split_can_be_taken_back(split: Told) -> None:
    split.set(("v1", 1), ("v2", 1))
    split.set()
    assert split.weights == {}
    split.roll_back()
    assert split.weights == {"v1": 1, "v2": 1}


def test_what_fails_goes_to_where_it_takes_nothing(split: Told) -> None:
    split.set(("v1", 99), ("v2", 1))
    split.set(("v1", 50), ("v2", 50))
    split.fails("v2")
    assert split.weights == {"v1": 100}
    change = split.state.split.changes[0]
    assert change.action == splits_pb2.SPLIT_ACTION_ROLLED_BACK_BY_POLICY
    assert (change.actor, change.reason) == ("system", "50 of 100 calls of v2 failed")


def test_a_whole_flip_that_fails_goes_back_to_the_version_before(split: Told) -> None:
    split.set(("v1", 1))
    split.set(("v2", 1))
    split.fails("v2")
    assert split.weights == {"v1": 1}


def test_a_base_that_fails_has_nowhere_to_go(split: Told) -> None:
    split.set(("v1", 99), ("v2", 1))
    with pytest.raises(FailedPrecondition):
        split.fails("v1")
    with pytest.raises(FailedPrecondition):
        split.fails("v2", frozenset({"v2"}))


def test_several_that_see_it_fail_take_it_back_once(split: Told) -> None:
    split.set(("v1", 99), ("v2", 1))
    seen = split.state.revision
    count = facts.FailureCount(version="v2", calls=100, failures=50)
    again = domain.RollBackFailing(NAME, seen, count, RUNNING)
    assert len(split.do(again)) == 1
    assert split.do(again) == []


def test_the_same_request_changes_nothing_more(split: Told) -> None:
    assert len(split.set(("v1", 1), id="same")) == 1
    assert split.set(("v1", 1), id="same") == []
    command = domain.Promote(domain.Request(NAME, "same", b"other", "me", "", ""), "v1", 0, None)
    with pytest.raises(RequestIdReused):
        split.do(command)


def test_a_stale_etag_is_refused(split: Told) -> None:
    split.set(("v1", 1), etag="")
    with pytest.raises(Conflict):
        split.set(("v2", 1), etag="r7")
    assert split.set(("v2", 1), etag="r1")


def test_what_comes_back_is_another_one(split: Told) -> None:
    split.set(("v1", 90), ("v2", 10))
    split.set(("v1", 50), ("v2", 50))
    assert split.since == {"v1": 1, "v2": 1}
    split.set(("v1", 100), ("v2", 0))
    assert split.since == {"v1": 1, "v2": 0}
    split.set(("v1", 50), ("v2", 50))
    assert split.since == {"v1": 1, "v2": 4}
    split.promote("v2")
    split.roll_back()
    assert split.since == {"v1": 6, "v2": 4}


Steps = st.lists(
    st.one_of(
        st.dictionaries(st.sampled_from(["v1", "v2", "v3"]), st.integers(0, 3), max_size=3),
        st.sampled_from(["promote v1", "promote v2", "back", "v1 fails", "v2 fails"]),
    ),
    max_size=60,
)


@given(Steps)
def test_whatever_is_done_somebody_takes_the_calls_and_all_is_bounded(
    steps: list[dict[str, int] | str],
) -> None:
    split = Told()
    taken: Counter[tuple[str, int]] = Counter()
    for step in steps:
        before = dict(split.since)
        try:
            match step:
                case "back":
                    split.roll_back()
                case str() if step.startswith("promote"):
                    split.promote(step.split()[1])
                case str():
                    split.fails(step.split()[0])
                    assert not split.weights.get(step.split()[0])
                case _:
                    split.set(*step.items())
        except (FailedPrecondition, InvalidArgument, NotFound):
            continue
        assert not split.weights or any(split.weights.values())
        for version, since in split.since.items():
            assert bool(since) == bool(split.weights[version])
            if since and before.get(version) != since:
                taken[version, since] += 1
        assert len(split.state.past) <= PAST_MAX
        assert len(split.state.split.changes) <= CHANGES_MAX
        assert len(split.state.requests) <= REQUESTS_MAX
        encoded = domain.SPLIT_FOLD.encode(split.state)
        assert domain.SPLIT_FOLD.decode(encoded) == split.state
    assert all(count == 1 for count in taken.values())


@pytest.mark.parametrize("name", [NAME, AGENT])
def test_a_name_and_its_stream_are_one(name: str) -> None:
    stream = domain.split_stream(name)
    assert domain.is_split_stream(stream)
    assert domain.split_name(stream) == name


def test_what_is_listed_under_what() -> None:
    assert domain.parent_of(NAME) == "services/-"
    assert domain.parent_of(AGENT) == "tenants/acme/agents/-"


def test_a_key_gets_the_same_portion_and_each_portion_its_share() -> None:
    portions = [portion(agent_revision=n, weight=w) for n, w in ((1, 90), (2, 0), (3, 10))]
    names = [f"tenants/t/agents/a/sessions/{n}" for n in range(10_000)]
    counts = Counter(domain.drawn(portions, name).agent_revision for name in names)
    assert counts[2] == 0
    assert 900 <= counts[3] <= 1_100
    assert domain.drawn(portions, names[0]) == domain.drawn(portions, names[0])


@given(st.lists(st.integers(0, 1_000_000), min_size=1, max_size=16), st.text())
def test_nothing_is_drawn_that_has_no_weight(weights: list[int], key: str) -> None:
    portions = [portion(agent_revision=n + 1, weight=weight) for n, weight in enumerate(weights)]
    if any(weights):
        assert domain.drawn(portions, key).weight > 0
    else:
        with pytest.raises(ValueError, match="nothing"):
            domain.drawn(portions, key)
