"""Streams of instances that are lost, which are real servers here."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from mesh.control.xds.mesh_view import MeshView
from mesh.rpc.retries import Losses
from mesh.rpc.transport import PLAIN
from mesh.runtime import lost_instances
from mesh.runtime.lost_instances import LostInstances
from tests.support.eventually import eventually
from tests.support.health_server import NOT_SERVING, Server, instances, server
from weft.control.v1.instances_pb2 import Instance

__all__ = ["server"]

CHECKS_MIN = 5
"""So many words say that it would go on for ever."""


class Mesh:
    """What is known of it, with a stream to the instance `a`."""

    def __init__(self) -> None:
        self.view = MeshView(())
        self.losses = Losses()
        self.cut = 0
        self._lost = LostInstances(self.losses, lambda: self.view, PLAIN)

    def lose(self, instance: Instance, *others: Instance, is_registered: bool = False) -> None:
        registered = (instance, *others) if is_registered else others
        unhealthy = frozenset({instance.name} if is_registered else ())
        self.view = replace(self.view, instances=registered, unhealthy=unhealthy)
        self._lost.tell([instance])

    def ends(self) -> None:
        self.cut += 1

    async def stop(self) -> None:
        await self._lost.stop()


@pytest.fixture
async def mesh(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(lost_instances, "DOUBT_SECONDS", 0.02)
    made = Mesh()
    with made.losses.under_way("a", made.ends):
        yield made
    await made.stop()


def at(server: Server, name: str = "a") -> Instance:
    (made,) = instances(**{f"instances/{name}": server.target})
    return made


async def test_one_whose_lease_ran_out_and_that_has_a_word_keeps_its_streams(
    mesh: Mesh, server: Server
) -> None:
    mesh.lose(at(server))
    await eventually(lambda: server.said.checked >= CHECKS_MIN)
    # Also where it says that it takes no new calls.
    await server.said.set("", NOT_SERVING)
    before = server.said.checked
    await eventually(lambda: server.said.checked >= before + CHECKS_MIN)
    assert mesh.cut == 0
    await server.stop()
    await eventually(lambda: mesh.cut > 0)


async def test_one_that_is_there_again_is_asked_no_more(mesh: Mesh, server: Server) -> None:
    mesh.lose(at(server))
    await eventually(lambda: server.said.checked > 0)
    mesh.view = replace(mesh.view, instances=(at(server),))
    await eventually(lambda: not mesh._lost._following)
    await server.stop()
    assert mesh.cut == 0


async def test_one_that_hangs_is_left_once_others_serve_what_it_does(
    mesh: Mesh, server: Server
) -> None:
    hung = at(server)
    server.said.failing = 10_000
    mesh.lose(hung, is_registered=True)
    await eventually(lambda: server.said.checked >= CHECKS_MIN)
    assert mesh.cut == 0
    (other,) = instances(b="127.0.0.1:1")
    mesh.view = replace(mesh.view, instances=(hung, other))
    await eventually(lambda: mesh.cut > 0)


async def test_what_has_no_streams_is_asked_nothing_and_forgotten(
    mesh: Mesh, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_instances, "QUIET_MAX", 3)
    mesh.lose(at(server, "b"))
    await eventually(lambda: not mesh._lost._following)
    assert server.said.checked == 0
