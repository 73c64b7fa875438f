"""Which instances the calls of a session name."""

from base64 import b64decode
from collections import Counter
from hashlib import blake2b
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.control.xds import placement as placement_module
from mesh.control.xds.mesh_view import MeshView, Portion
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
    split = {"state": (Portion("1", 90), Portion("2", 10))}
    for known in ({"splits": split}, {"kept": split}):
        seen = Placement(lambda: view(*old, at(9, version="2"), **known))  # noqa: B023
        for key in KEYS[:50]:
            named = places(seen, key)
            assert len(named) == 3
            assert "9" in named


def test_a_version_that_only_runs_in_another_zone_has_its_places_there() -> None:
    blue = [at(port, version="1", zone="east") for port in (1, 2, 3)]
    green = [at(port, version="2", zone="west") for port in (7, 8, 9)]
    split = {"state": (Portion("1", 0), Portion("2", 100))}
    seen = Placement(lambda: view(*blue, *green, splits=split), "east")
    assert {port for key in KEYS[:50] for port in places(seen, key)} == set("123789")


def test_whom_a_versions_checks_can_no_more_be_believed_of_is_named() -> None:
    blue = [at(port, version="1") for port in range(1, 7)]
    green = [at(port, version="2") for port in (8, 9)]
    lost = frozenset({"instances/i8", "instances/i9"})
    split = {"state": (Portion("1", 90), Portion("2", 10))}
    seen = Placement(lambda: view(*blue, *green, splits=split, unhealthy=lost))
    for key in KEYS[:50]:
        assert {"8", "9"} < set(places(seen, key))


def test_without_a_split_two_places_are_named_however_many_versions_there_are() -> None:
    seen = view(*(at(port, version=str(port)) for port in range(1, 300)))
    assert {len(places(Placement(lambda: seen), key)) for key in KEYS[:20]} == {2}


def test_instances_are_ranked_anew_only_where_those_of_the_service_changed() -> None:
    def of_vectors(port: int) -> instances_pb2.Instance:
        instance = at(port)
        instance.services.remove("state")
        return instance

    known = [view(at(1), at(2), of_vectors(3))]
    placement = Placement(lambda: known[0])
    ranked = mock.Mock(wraps=placement_module.placed)
    with mock.patch.object(placement_module, "placed", ranked):
        first = places(placement, KEYS[0])
        known[0] = view(at(1), at(2), of_vectors(4))
        assert places(placement, KEYS[0]) == first
        assert ranked.call_count == 1
        known[0] = view(at(1), at(2), at(4))
        places(placement, KEYS[0])
        assert ranked.call_count == 2


def test_a_new_session_is_placed_among_a_thousand_instances_without_a_look_at_each() -> None:
    # What each of a thousand is asked for takes its time from all other calls.
    seen = view(*(at(port) for port in range(1, 1_001)))
    placement = Placement(lambda: seen)
    placement.cookie("state", KEYS[0])
    with mock.patch.object(placement_module, "blake2b", wraps=blake2b) as hashed:
        placement.cookie("state", KEYS[1])
    assert hashed.call_count == 1


def test_what_is_remembered_is_bounded() -> None:
    seen = view(at(1))
    placement = Placement(lambda: seen)
    for number in range(KEYS_MAX + 10):
        placement.cookie("state", str(number))
    assert len(placement._served["state"].cookies) <= KEYS_MAX
