"""The order in which a process starts its services."""

import pytest

from mesh.runtime.call_order import in_call_order
from mesh.runtime.service import Mesh, Service, ServiceEntry
from services.catalog import CATALOGUE


def entry(name: str, *calls: str) -> ServiceEntry:
    def build(mesh: Mesh) -> Service:
        raise AssertionError("nothing is built here")

    return ServiceEntry(name, f"the {name}", (), calls, build)


def test_a_service_starts_behind_all_that_it_calls() -> None:
    entries = [entry("top", "left", "right"), entry("left", "base"), entry("right"), entry("base")]
    names = [ordered.name for ordered in in_call_order(entries)]
    assert names == ["base", "left", "right", "top"]


def test_services_that_call_each_other_in_a_circle_are_refused() -> None:
    with pytest.raises(ValueError, match="circle: a -> b -> a"):
        in_call_order([entry("a", "b"), entry("b", "a")])


def test_a_call_of_an_unknown_service_is_refused() -> None:
    with pytest.raises(ValueError, match="a calls missing"):
        in_call_order([entry("a", "missing")])


def test_the_catalogue_has_an_order_with_the_edge_at_its_end() -> None:
    names = [ordered.name for ordered in in_call_order(CATALOGUE)]
    assert sorted(names) == sorted(entry.name for entry in CATALOGUE)
    assert names[-1] == "gateway"


def test_every_contract_stands_in_the_catalogue_once() -> None:
    contracts = [contract.full_name for entry in CATALOGUE for contract in entry.contracts]
    assert len(contracts) == len(set(contracts))
    assert all(name.startswith("weft.") for name in contracts)
