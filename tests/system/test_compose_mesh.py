"""The deployment of `deploy/compose.mesh.yaml`, run on this machine: two zones on three NATS
servers, by mutual TLS, and what is left when one server or a zone is gone."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.composed import NATS, ZONES, Composed, eventually

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    made = Composed(tmp_path_factory.mktemp("composed"))
    try:
        made.start()
        yield made
    finally:
        made.close()


def serving(composed: Composed) -> dict[str, int]:
    """How many take calls of each service, as the south sees it."""
    status: Any = composed.weft("edge-south", "mesh", "status", "-o", "json").data
    return {each["name"]: each["serving"] for each in status["services"]}


def test_a_client_of_a_zone_is_sent_there_first(composed: Composed) -> None:
    told = composed.weft("edge-north", "mesh", "routes", "--zone", "south", "-o", "json").data
    assert told["left_out"] == []
    for route in told["routes"]:
        (cluster,) = route["clusters"]
        zones = [(each["priority"], each["zone"]) for each in cluster["endpoints"]]
        single = route["service"] in ("blobs", "functions", "vectors")
        wanted = [(0, "north")] if single else [(0, "south"), (1, "north")]
        assert zones == wanted


def test_calls_and_commits_go_on_without_one_nats_server(composed: Composed) -> None:
    composed.signal(signal.SIGKILL, NATS[0])
    try:
        for number in range(3):
            # R3 has no leader for some seconds; a command waits no longer than its deadline.
            options = ("task", "submit", "resize", "--payload", str(number))
            eventually(lambda: composed.weft("edge-south", *options).code == 0)  # noqa: B023
    finally:
        composed.start_nats(NATS[0])
    eventually(lambda: serving(composed)["agents"] == 2)


def test_calls_go_on_without_a_zone_and_it_comes_back(composed: Composed) -> None:
    composed.signal(signal.SIGKILL, *ZONES["north"])
    for arguments in (("agent", "list"), ("task", "list"), ("tool", "list"), ("whoami",)):
        ran = composed.weft("edge-south", *arguments)
        assert ran.code == 0, ran.err
    eventually(lambda: serving(composed)["agents"] == 1)
    assert serving(composed)["vectors"] == 0
    composed.start_zone("north")
    eventually(lambda: set(serving(composed).values()) == {1, 2})
    assert composed.weft("edge-north", "task", "list").code == 0
