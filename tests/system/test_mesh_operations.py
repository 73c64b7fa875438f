"""Taking an instance out and back by the command line, while the other one goes on."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.weft_up import WeftUp, weft_up

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeftUp]:
    """Two replicas; the second one doesn't have vectors."""
    folder = tmp_path_factory.mktemp("operations")
    options = ("--processes", "2", "--port", "0", "--http-port", "0")
    with weft_up(folder / "log", *options, "--data-dir", folder / "data") as up:
        yield up


def data(up: WeftUp, *arguments: str) -> Any:
    ran = up.weft("mesh", *arguments, "-o", "json")
    assert ran.code == 0, ran.err
    return ran.data


def ids(up: WeftUp) -> list[str]:
    """Of the first replica, and the second."""
    said: Any = up.said["processes"]
    return [process["instance"] for process in said]


def health_of(up: WeftUp, service: str) -> dict[str, str]:
    """By instance, of those that clients are told of."""
    (route,) = data(up, "routes", "--service", service)["routes"]
    found = {each["instance"]: each["health"] for each in route["clusters"][0]["endpoints"]}
    return {name.removeprefix("instances/"): health for name, health in found.items()}


def test_an_instance_is_drained_and_taken_back(two: WeftUp) -> None:
    _, second = ids(two)
    # Whichever replica answers: it is handed to the one that is meant.
    for _ in range(3):
        drained = data(two, "drain", second)
        assert drained["state"] == "INSTANCE_STATE_DRAINING"
        assert drained["name"] == f"instances/{second}"
    status = {each["name"]: each for each in data(two, "status")["services"]}
    assert (status["agents"]["serving"], status["agents"]["draining"]) == (1, 1)
    assert health_of(two, "agents")[second] == "ENDPOINT_HEALTH_DRAINING"
    assert two.weft("agent", "list").code == 0
    assert data(two, "undrain", second[:-4])["state"] == "INSTANCE_STATE_SERVING"
    assert health_of(two, "agents")[second] == "ENDPOINT_HEALTH_HEALTHY"
    entries = two.weft("audit", "-o", "json").items
    done = [each["actions"] for each in entries if each["resource"].endswith(second)]
    assert done == [["weft.control.v1.InstanceDrained"]] * 3 + [
        ["weft.control.v1.InstanceUndrained"]
    ]


def test_the_last_one_of_a_service_stays_unless_it_is_forced(two: WeftUp) -> None:
    first, _ = ids(two)
    refused = two.weft("mesh", "drain", first)
    assert refused.code == 1
    assert "nobody else takes calls of blobs, functions, vectors" in refused.err
    assert data(two, "drain", first, "--force")["state"] == "INSTANCE_STATE_DRAINING"
    nobody = two.weft("mesh", "status")
    assert nobody.code == 1
    assert "nobody takes calls of blobs, functions, vectors" in nobody.err
    assert data(two, "undrain", first)["state"] == "INSTANCE_STATE_SERVING"


def test_only_who_may_operate_the_platform_does(two: WeftUp) -> None:
    made = two.weft("key", "create", "onlooker", "--role", "operator", "-o", "json")
    assert made.code == 0, made.err
    key = made.data["secret"]
    for arguments in (["status"], ["routes"], ["dump"]):
        assert two.weft("mesh", *arguments, WEFT_API_KEY=key).code == 4
    assert two.weft("mesh", "drain", ids(two)[1], WEFT_API_KEY=key).code == 4


def test_who_is_of_a_tenant_only_sees_its_splits_and_hears_of_the_others(two: WeftUp) -> None:
    made = two.weft("key", "create", "viewer", "--role", "viewer", "-o", "json")
    assert made.code == 0, made.err
    key = made.data["secret"]
    listed = two.weft("mesh", "splits", "-o", "json", WEFT_API_KEY=key)
    assert (listed.code, listed.data) == (0, []), listed.err
    assert "a permission for the platform" in listed.err
    assert two.weft("mesh", "splits", "-o", "json").err == ""


def test_a_dump_tells_of_the_instance_that_is_named(two: WeftUp) -> None:
    for each in ids(two):
        told = data(two, "dump", each)
        assert told["instance"]["name"] == f"instances/{each}"
        assert told["channelz"]["servers"]
        assert told["versions"]["weft"]
    assert str(two.said["api_key"]) not in two.weft("mesh", "dump").out


def test_an_instance_that_is_not_there(two: WeftUp) -> None:
    assert two.weft("mesh", "drain", "nobody").code == 3
    assert two.weft("mesh", "dump", "nobody").code == 3


def test_one_that_is_to_stop_ends_in_order(two: WeftUp) -> None:
    _, second = ids(two)
    data(two, "drain", second, "--stop")
    deadline = 200
    while any(each["name"].endswith(second) for each in data(two, "instances")):
        deadline -= 1
        assert deadline
    assert '"process":2,"exit_code":0' in two.log
