"""A stream of ADS: what is told when, and what is forgotten."""

import pytest

from mesh.control.xds.messages import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    LISTENER_TYPE,
    RESOURCE_TYPES,
    ROUTE_TYPE,
)
from mesh.control.xds.resources import Resources
from mesh.control.xds.subscriptions import NAMES_MAX, Subscriptions
from mesh.errors import LimitExceeded
from weft.xds.v1 import discovery_pb2

Told = list[tuple[str, list[bytes]]]
NAMES = {
    LISTENER_TYPE: ["weft"],
    ROUTE_TYPE: ["weft"],
    CLUSTER_TYPE: ["one", "two"],
    ENDPOINT_TYPE: ["one", "two"],
}


def known(**data: dict[str, str]) -> Resources:
    """Resources by type, named for the last part of their name, `clusters=` and so on."""
    types = {
        "listeners": LISTENER_TYPE,
        "routes": ROUTE_TYPE,
        "clusters": CLUSTER_TYPE,
        "endpoints": ENDPOINT_TYPE,
    }
    return Resources(
        {
            kind: {name: text.encode() for name, text in data.get(word, {}).items()}
            for word, kind in types.items()
        }
    )


class Client:
    """A client that takes everything, and knows the nonces of what it took."""

    def __init__(self) -> None:
        self.subscriptions = Subscriptions()
        self.nonces: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def wants(self, kind: str, *names: str, **fields: object) -> None:
        request = discovery_pb2.DiscoveryRequest(
            type_url=kind,
            resource_names=names,
            response_nonce=self.nonces.get(kind, ""),
            version_info=self.versions.get(kind, ""),
            **fields,  # type: ignore[arg-type]
        )
        self.refusal = self.subscriptions.take(request)

    def told(self, resources: Resources) -> Told:
        """What it is told, in order."""
        told = []
        for response in self.subscriptions.due(resources):
            self.nonces[response.type_url] = response.nonce
            self.versions[response.type_url] = response.version_info
            told.append((response.type_url, [each.value for each in response.resources]))
            assert all(each.type_url == response.type_url for each in response.resources)
        return told


ALL = known(
    listeners={"weft": "listener"},
    routes={"weft": "routes"},
    clusters={"one": "cluster 1", "two": "cluster 2"},
    endpoints={"one": "endpoints 1", "two": "endpoints 2"},
)


def subscribed() -> Client:
    client = Client()
    for kind, names in NAMES.items():
        client.wants(kind, *names)
    return client


def test_clusters_come_before_what_routes_to_them() -> None:
    assert [kind for kind, _ in subscribed().told(ALL)] == list(RESOURCE_TYPES)
    assert RESOURCE_TYPES == (CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE)


def test_only_what_changed_is_told_again() -> None:
    client = subscribed()
    client.told(ALL)
    assert client.told(ALL) == []
    changed = known(
        listeners={"weft": "listener"},
        routes={"weft": "routes"},
        clusters={"one": "cluster 1", "two": "other 2"},
        endpoints={"one": "endpoints 1", "two": "other 2"},
    )
    # A response of clusters says what there is; one of endpoints says what is new.
    assert client.told(changed) == [
        (CLUSTER_TYPE, [b"cluster 1", b"other 2"]),
        (ENDPOINT_TYPE, [b"other 2"]),
    ]


def test_a_client_that_comes_back_is_told_whatever_version_it_had() -> None:
    client = subscribed()
    client.told(ALL)
    again = Client()
    again.versions = client.versions
    again.wants(CLUSTER_TYPE, "one")
    assert again.told(ALL) == [(CLUSTER_TYPE, [b"cluster 1"])]


@pytest.mark.parametrize("kind", [CLUSTER_TYPE, ENDPOINT_TYPE])
def test_what_a_client_lets_go_of_is_told_anew_when_it_asks_again(kind: str) -> None:
    client = subscribed()
    client.told(ALL)
    client.wants(kind, "one")
    assert client.told(ALL) == []
    client.wants(kind, "one", "two")
    [(_, told)] = client.told(ALL)
    assert told[-1] == ALL.by_type[kind]["two"]


def test_a_client_that_lets_go_of_all_is_told_nothing() -> None:
    client = subscribed()
    client.told(ALL)
    for kind in NAMES:
        client.wants(kind)
    assert client.told(known()) == []


def test_a_name_that_is_added_brings_all_clusters_and_only_its_own_endpoints() -> None:
    client = Client()
    client.wants(CLUSTER_TYPE, "one")
    client.wants(ENDPOINT_TYPE, "one")
    client.told(ALL)
    client.wants(CLUSTER_TYPE, "one", "two")
    client.wants(ENDPOINT_TYPE, "one", "two")
    assert client.told(ALL) == [
        (CLUSTER_TYPE, [b"cluster 1", b"cluster 2"]),
        (ENDPOINT_TYPE, [b"endpoints 2"]),
    ]


def test_a_refused_response_is_not_told_again_until_something_changes() -> None:
    client = Client()
    client.wants(CLUSTER_TYPE, "one")
    client.told(ALL)
    client.wants(CLUSTER_TYPE, "one", error_detail={"code": 3, "message": "no such policy"})
    assert client.refusal is not None
    assert client.refusal.message == "no such policy"
    assert client.refusal.version == client.versions[CLUSTER_TYPE]
    assert client.told(ALL) == []
    assert client.told(known(clusters={"one": "better"})) == [(CLUSTER_TYPE, [b"better"])]


def test_an_answer_to_an_older_response_says_nothing() -> None:
    client = Client()
    client.wants(CLUSTER_TYPE, "one")
    client.told(ALL)
    old = dict(client.nonces)
    client.told(known(clusters={"one": "newer"}))
    client.nonces = old
    client.wants(CLUSTER_TYPE, error_detail={"code": 3, "message": "no"})
    assert client.refusal is None
    assert client.told(known(clusters={"one": "newest"})) == [(CLUSTER_TYPE, [b"newest"])]


def test_a_cluster_that_is_gone_stays_until_the_client_lets_go_of_it() -> None:
    client = subscribed()
    client.told(ALL)
    fewer = known(
        listeners={"weft": "listener"},
        routes={"weft": "routes to 1"},
        clusters={"one": "cluster 1"},
        endpoints={"one": "endpoints 1"},
    )
    assert client.told(fewer) == [(ROUTE_TYPE, [b"routes to 1"])]
    fewer = known(clusters={"one": "changed 1"})
    assert client.told(fewer) == [(CLUSTER_TYPE, [b"changed 1", b"cluster 2"])]


def test_a_target_that_is_not_there_is_answered_at_once() -> None:
    client = Client()
    client.wants(LISTENER_TYPE, "other")
    assert client.told(ALL) == [(LISTENER_TYPE, [])]
    assert client.told(ALL) == []


def test_versions_are_those_of_the_content() -> None:
    one, another = subscribed(), subscribed()
    one.told(known(clusters={"one": "x", "two": "y"}))
    another.told(ALL)
    before = another.versions[CLUSTER_TYPE]
    another.told(known(clusters={"one": "x", "two": "y"}))
    assert one.versions[CLUSTER_TYPE] == another.versions[CLUSTER_TYPE] != before


def test_other_types_are_passed_over_and_names_are_bounded() -> None:
    client = Client()
    client.wants("type.googleapis.com/envoy.service.runtime.v3.Runtime", "x")
    assert client.told(ALL) == []
    client.wants(CLUSTER_TYPE, *map(str, range(NAMES_MAX)))
    with pytest.raises(LimitExceeded):
        client.wants(CLUSTER_TYPE, *map(str, range(NAMES_MAX + 1)))
