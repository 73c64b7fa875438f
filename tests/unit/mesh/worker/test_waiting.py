"""A worker whose scheduler isn't there: when that is worth a warning."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from mesh.rpc.channel import MeshChannel
from mesh.rpc.settings import RpcSettings
from mesh.worker import Worker, worker
from tests.support.logged import logged
from tests.support.processes import until
from weft.scheduler.v1.worker_service_pb2_grpc import WorkerServiceStub


async def levels_of(made: Worker, count: int) -> list[str]:
    """How it tells of its first vain attempts to attach."""
    made.task("work")(lambda task: "")
    with logged() as lines:

        def detached() -> list[MutableMapping[str, Any]]:
            # Another worker of this process may log too.
            return [each for each in lines if each.get("worker") == made.worker_id]

        working = asyncio.create_task(made.work())
        await until(lambda: len(detached()) >= count)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert {each["reason"] for each in detached()} == {"UNAVAILABLE"}
    return [each["log_level"] for each in detached()[:count]]


def of_the_mesh() -> Worker:
    """One of a process of Weft where nobody is a scheduler yet."""
    channel: Any = MeshChannel({}, None, lambda contract: False, RpcSettings())
    stub = WorkerServiceStub(channel)
    return Worker("turns", all_tenants=True, stub=stub, worker_id="early")


async def test_a_part_that_starts_before_the_others_waits_for_them_quietly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await levels_of(of_the_mesh(), 3) == ["debug"] * 3
    monkeypatch.setattr(worker, "WAITS_SECONDS", 0.0)
    assert await levels_of(of_the_mesh(), 3) == ["warning"] * 3, "once it lasts"


async def test_whoever_starts_a_worker_hears_at_once_that_nobody_is_there() -> None:
    alone = Worker("tenants/acme/queues/default", address="127.0.0.1:1", worker_id="alone")
    assert await levels_of(alone, 2) == ["warning"] * 2
