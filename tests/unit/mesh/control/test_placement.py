"""Which instances the calls of a session name."""

from base64 import b64decode
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.control.xds.mesh_view import MeshView
from mesh.control.xds.placement import KEYS_MAX, Placement
from tests.support.xds_mesh import SERVICES, instance_at
from weft.control.v1 import instances_pb2

KEYS = [f"tenants/acme/agents/bot/sessions/talk-{number}" for number in range(3_000)]


def at(port: int, **fields: Any) -> instances_pb2.Instance:
    return instance_at(f"i{port}", f"127.0.0.1:{port}", **fields)


def view(*instances: instances_pb2.Instance, **fields: Any) -> MeshView:
    return MeshView(SERVICES, instances, **fields)


def places(placement: Placement, key: str) -> list[str]:
    """The ports of a key's places, best first."""
    cookie = placement.cookie("state", key)
    name, _, value = cookie.partition("=")
    assert name == "weft-place"
    return [each.rpartition(":")[2] for each in b64decode(value).decode().split(",")]


def firsts(seen: MeshView, zone: str = "") -> list[str]:
    placement = Placement(lambda: seen, zone)
    return [places(placement, key)[0] for key in KEYS]


def test_each_instance_has_its_share_of_the_keys_by_its_weight() -> None:
    counts = Counter(firsts(view(at(1), at(2), at(3, weight=200))))
    assert [counts[port] / len(KEYS) for port in "123"] == pytest.approx(
        [0.25, 0.25, 0.5], abs=0.03
    )


@given(st.sets(st.integers(1, 60), min_size=2, max_size=8), st.data())
def test_who_goes_takes_only_its_own_keys_with_it_and_to_their_second_place(
    ports: set[int], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(ports)))
    before = Placement(lambda: all_of_them)
    after = Placement(lambda: without)
    all_of_them = view(*map(at, sorted(ports)))
    without = view(*map(at, sorted(ports - {gone}, reverse=True)))
    for key in KEYS[:20]:
        best, second = places(before, key)
        assert places(after, key)[0] == (second if best == str(gone) else best)


def test_all_who_know_the_same_agree_and_what_changes_is_seen() -> None:
    known = [view(at(1), at(2))]
    placement = Placement(lambda: known[0])
    assert [places(placement, key)[0] for key in KEYS] == firsts(view(at(2), at(1)))
    known[0] = view(at(2))
    assert {places(placement, key)[0] for key in KEYS} == {"2"}
    known[0] = view()
    assert placement.cookie("state", KEYS[0]) == ""


def test_only_the_nearest_that_take_calls_are_named() -> None:
    draining = instances_pb2.INSTANCE_STATE_DRAINING
    east = [at(1, zone="east"), at(2, zone="east"), at(3, zone="east", state=draining)]
    west = [at(4, zone="west"), at(5, zone="west")]
    vectors = at(6, zone="east")
    vectors.services.remove("state")
    seen = view(*east, *west, vectors)
    assert set(firsts(seen, "east")) == {"1", "2"}
    assert set(firsts(seen, "north")) == {"1", "2", "4", "5"}
    unhealthy = frozenset({"instances/i1"})
    assert set(firsts(view(*east, *west, unhealthy=unhealthy), "east")) == {"2"}
    lost = frozenset({"instances/i1", "instances/i2"})
    assert set(firsts(view(*east, *west, unhealthy=lost), "east")) == {"4", "5"}


def test_each_version_of_a_split_has_its_places() -> None:
    old = [at(port, version="1") for port in range(1, 5)]
    seen = Placement(lambda: view(*old, at(9, version="2")))
    for key in KEYS[:50]:
        named = places(seen, key)
        assert len(named) == 3
        assert "9" in named


def test_what_is_remembered_is_bounded() -> None:
    seen = view(at(1))
    placement = Placement(lambda: seen)
    for number in range(KEYS_MAX + 10):
        placement.cookie("state", str(number))
    assert len(placement._cookies) <= KEYS_MAX
