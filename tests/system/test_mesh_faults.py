"""Processes of a deployment that are killed, stopped and restarted under load: no call that may
run twice fails, no turn is lost. `make chaos` does more of each; how quick it was is
printed."""

import random
from collections.abc import AsyncIterator

import pytest

from tests.chaos import mesh
from tests.chaos.mesh_world import Load, MeshWorld, mesh_world

pytestmark = [pytest.mark.timeout(300), pytest.mark.alone]
PER_SECOND = 100.0
SEED = 20_261_127


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MeshWorld]:
    async with mesh_world(tmp_path_factory.mktemp("mesh")) as started:
        yield started


@pytest.fixture(scope="module")
async def load(world: MeshWorld) -> AsyncIterator[Load]:
    async with mesh.loaded(world, PER_SECOND) as calling:
        yield calling


def whole(seen: mesh.Seen) -> None:
    print(seen)
    assert seen["answered"] > 0
    assert seen["failed"] == {}
    assert seen.get("faults", []) == []


async def test_no_call_fails_when_backends_are_killed(world: MeshWorld, load: Load) -> None:
    whole(await mesh.kill_backends(world, load, 1))


async def test_no_call_fails_when_a_backend_hangs(world: MeshWorld, load: Load) -> None:
    whole(await mesh.stop_backend(world, load, 1))


async def test_no_call_fails_when_a_zone_is_lost_and_comes_back(
    world: MeshWorld, load: Load
) -> None:
    whole(await mesh.lose_zone(world, load, 1))


async def test_no_call_fails_without_a_control_plane_and_a_new_client_finds_the_other(
    world: MeshWorld, load: Load
) -> None:
    whole(await mesh.lose_control_plane(world, load, 2.0))


async def test_turns_go_on_when_their_processes_are_killed(world: MeshWorld, load: Load) -> None:
    seen = await mesh.kill_with_turns(world, load, 2, random.Random(SEED))
    assert seen["turns"] > 0
    whole(seen)


async def test_rolling_restarts_cost_no_call_and_no_turn(world: MeshWorld, load: Load) -> None:
    seen = await mesh.restart_all(world, load, 1, random.Random(SEED))
    assert seen["turns"] > 0
    whole(seen)
