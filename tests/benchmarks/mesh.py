"""The control plane with 1,000 instances of all services: how long a change takes, and what
it costs."""

import asyncio
import time

import psutil

from mesh.control.xds.ads import AdsServer
from mesh.control.xds.mesh_view import MeshView, RoutedService
from mesh.control.xds.resources import resources_of
from services.catalog import CATALOGUE
from tests.benchmarks.results import Result
from tests.support.processes import line_of, running
from tests.support.xds_mesh import instance_at
from weft.control.v1 import instances_pb2

INSTANCES = 1_000
CLIENTS = 50
ROUNDS = 20
SERVICES = tuple(
    RoutedService(entry.name, entry.contracts) for entry in CATALOGUE if entry.contracts
)


def instances() -> list[instances_pb2.Instance]:
    """They serve everything, in three zones; nobody listens there."""
    names = [service.name for service in SERVICES]
    made = []
    for number in range(INSTANCES):
        target = f"127.1.{number // 250}.{number % 250 + 1}:8440"
        made.append(instance_at(f"i-{number}", target, zone=f"z{number % 3}"))
        made[-1].services[:] = names
    return made


def changed(everything: list[instances_pb2.Instance], number: int) -> MeshView:
    """Without one of them, each time another."""
    return MeshView(SERVICES, tuple(everything[:number] + everything[number + 1 :]))


async def run() -> list[Result]:
    """See the module."""
    everything = instances()
    made_ms = []
    for number in range(ROUNDS):
        view = changed(everything, number)
        started = time.perf_counter()
        resources_of(view, "z0")
        made_ms.append((time.perf_counter() - started) * 1e3)
    before = psutil.Process().memory_info().rss
    ads = AdsServer()
    port = await ads.start("127.0.0.1:0")
    ads.set(MeshView(SERVICES, tuple(everything)))
    clusters = [service.name for service in SERVICES]
    pushed_ms = []
    module = "tests.benchmarks.mesh_clients"
    async with running(module, port, CLIENTS, *clusters) as clients:
        await line_of(clients)
        for number in range(ROUNDS):
            await asyncio.sleep(0.3)
            started = time.monotonic()
            ads.set(changed(everything, number))
            pushed_ms.append((float(await line_of(clients)) - started) * 1e3)
        after = psutil.Process().memory_info().rss
    await ads.stop()
    named = f"{INSTANCES} instances"
    return [
        Result(f"mesh: {named}, resources of a zone made", "ms", made_ms),
        Result(f"mesh: {named}, a change told to {CLIENTS} clients", "ms", pushed_ms),
        Result(
            f"mesh: {named}, {CLIENTS} clients, memory of the control plane",
            "MB",
            [(after - before) / (1 << 20)],
        ),
    ]
