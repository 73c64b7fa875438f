"""In which order a control plane tells its clients of a change."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from mesh.control.xds import control_plane
from mesh.control.xds.control_plane import ControlPlane
from mesh.control.xds.mesh_view import MeshView, Portion
from mesh.control.xds.messages import CLUSTER_TYPE
from mesh.control.xds.resources import resources_of
from mesh.rpc.transport import PLAIN
from tests.support.eventually import eventually
from tests.support.xds_mesh import SERVICES, instance_at

FIRST = (Portion("1", 90), Portion("2", 10))
SECOND = (Portion("1", 0), Portion("2", 100))


@pytest.fixture
async def plane(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ControlPlane]:
    monkeypatch.setattr(control_plane, "KEPT_SECONDS", 0.05)
    made = ControlPlane(MeshView(SERVICES), PLAIN)
    made.set_instances(instance_at(each, f"127.0.0.1:{each}", version=each) for each in "12")
    yield made
    await made.stop()


def known(plane: ControlPlane) -> set[str]:
    clusters = resources_of(plane.view, "").by_type[CLUSTER_TYPE]
    return {name for name in clusters if name.startswith("vectors")}


async def test_versions_are_known_before_calls_go_there_and_for_a_while_behind(
    plane: ControlPlane,
) -> None:
    every = {"vectors", "vectors/1/1", "vectors/2/1"}
    plane.set_splits({"vectors": FIRST})
    assert plane.view.splits == {}
    assert known(plane) == every
    await eventually(lambda: plane.view.splits == {"vectors": FIRST})
    assert known(plane) == every
    await eventually(lambda: known(plane) == every - {"vectors"})
    plane.set_splits({})
    assert known(plane) == every
    await eventually(lambda: plane.view.splits == {})
    await eventually(lambda: known(plane) == {"vectors"})


async def test_the_last_of_many_splits_is_the_one_that_stays(plane: ControlPlane) -> None:
    for _ in range(20):
        plane.set_splits({"vectors": FIRST})
        plane.set_splits({"vectors": SECOND})
        await asyncio.sleep(0.02)
    await eventually(lambda: plane.view.splits == {"vectors": SECOND})
    await eventually(lambda: not plane.view.kept)
    assert plane.view.splits == {"vectors": SECOND}


async def test_what_is_split_before_anybody_asks_is_so_at_once() -> None:
    plane = ControlPlane(MeshView(SERVICES), PLAIN)
    plane.set_splits({"vectors": FIRST})
    assert plane.view.splits == {"vectors": FIRST}
    await plane.stop()
