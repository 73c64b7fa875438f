"""How many calls of a version failed of late, and when that is too many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.control.domain import FailureWindow, Served, failing
from weft.control.v1 import splits_pb2


def split(over_base: bool = False, **weights: int) -> splits_pb2.Split:
    policy = splits_pb2.RollbackPolicy(
        failures_per_million_max=100_000, calls_min=10, over_base=over_base
    )
    portions = [splits_pb2.Portion(version=name, weight=w) for name, w in weights.items()]
    return splits_pb2.Split(name="services/agents/split", portions=portions, rollback_policy=policy)


def test_only_what_ended_within_the_window_counts() -> None:
    window = FailureWindow(10)
    window.observe(0, {"a": ("v1", Served(1_000, 900))})
    assert window.totals == {}
    window.observe(1, {"a": ("v1", Served(1_010, 905)), "b": ("v1", Served(50, 0))})
    assert window.totals == {"v1": Served(10, 5)}
    window.observe(5, {"a": ("v1", Served(1_010, 905)), "b": ("v1", Served(60, 1))})
    assert window.totals == {"v1": Served(20, 6)}
    window.observe(11, {"b": ("v1", Served(60, 1))})
    assert window.totals == {"v1": Served(10, 1)}
    window.observe(15, {})
    assert window.totals == {}


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 5), st.integers(0, 9)),
        max_size=40,
    )
)
def test_the_window_holds_what_a_count_by_hand_gives(
    steps: list[tuple[str, int, int, int]],
) -> None:
    window, now, seen = FailureWindow(10), 0, dict.fromkeys("abc", Served())
    ended: list[tuple[int, str, Served]] = []
    said = {name: (f"v{name}", served) for name, served in seen.items()}
    window.observe(now, said)
    for name, good, bad, waited in steps:
        now += waited
        seen[name] += Served(good + bad, bad)
        ended.append((now, f"v{name}", Served(good + bad, bad)))
        window.observe(now, {each: (f"v{each}", served) for each, served in seen.items()})
        expected: dict[str, Served] = {}
        for at, version, served in ended:
            if at > now - 10 and served.calls:
                expected[version] = expected.get(version, Served()) + served
        assert window.totals == expected


@pytest.mark.parametrize(
    ("totals", "found"),
    [
        ({}, None),
        ({"v2": Served(9, 9)}, None),
        ({"v2": Served(10, 1)}, None),
        ({"v2": Served(10, 2)}, "v2"),
        ({"v1": Served(10, 3), "v2": Served(10, 2)}, "v1"),
        ({"v3": Served(10, 10)}, None),
        ({"elsewhere": Served(10, 10)}, None),
    ],
)
def test_what_fails_more_often_than_allowed(totals: dict[str, Served], found: str | None) -> None:
    count = failing(split(v1=90, v2=10, v3=0), totals)
    assert (count.version if count is not None else None) == found


@pytest.mark.parametrize(
    ("over_base", "totals", "found"),
    [
        (False, {"1": Served(10, 0), "2": Served(10, 2)}, 2),
        (False, {"1": Served(10, 3), "2": Served(10, 2)}, 1),
        (False, {"2": Served(9, 9), "3": Served(10, 10)}, None),
        (True, {"1": Served(10, 3), "2": Served(10, 3)}, None),
        (True, {"1": Served(10, 3), "2": Served(10, 5)}, 2),
    ],
)
def test_revisions_are_judged_as_versions_are(
    over_base: bool, totals: dict[str, Served], found: int | None
) -> None:
    judged = split(over_base)
    judged.portions.extend(
        splits_pb2.Portion(agent_revision=number, weight=weight)
        for number, weight in ((1, 90), (2, 10), (3, 0))
    )
    count = failing(judged, totals)
    assert (count.agent_revision if count is not None else None) == found
    assert count is None or not count.version


def test_what_is_added_counts_for_as_long_as_the_window() -> None:
    window = FailureWindow(10)
    window.add(0, {"1": Served(3, 1)})
    window.add(5, {"1": Served(2, 2), "2": Served(1, 0)})
    assert window.totals == {"1": Served(5, 3), "2": Served(1, 0)}
    window.add(10, {})
    assert window.totals == {"1": Served(2, 2), "2": Served(1, 0)}
    window.add(15, {})
    assert window.totals == {}


def test_over_the_base_only_what_is_worse_than_it_counts() -> None:
    both = {"v1": Served(100, 30), "v2": Served(100, 35)}
    assert failing(split(v1=90, v2=10), both) is not None
    assert failing(split(over_base=True, v1=90, v2=10), both) is None
    worse = both | {"v2": Served(100, 45)}
    count = failing(split(over_base=True, v1=90, v2=10), worse)
    assert count is not None
    assert (count.version, count.failures) == ("v2", 45)
