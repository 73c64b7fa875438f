"""Throughput of blobs against the file system that they lie on.

The baseline writes the same bytes to a file in chunks of 1 MiB and has the disk keep it, and
reads it again, which the page cache answers. A put also hashes and seals, a get opens, and both
pass gRPC in two processes; `in the process` leaves that away.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import UNLIMITED, alternate
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.blobs import CHUNK_BYTES, BlobParts, call, requests
from tests.support.platform import one_process
from weft.blobs.v1 import blob_service_pb2 as pb
from weft.blobs.v1.blob_service_pb2_grpc import BlobServiceStub

ROUNDS = 7
BYTES = 128 << 20
SMALL_BYTES = 4_096
SMALL_COUNT = 100
MEBIBYTE = 1 << 20
NAME = "tenants/default/blobs/bench"
PUT_GOAL = 0.25


class Files:
    """The file system, used as a program would that keeps what it writes."""

    def __init__(self, folder: Path, data: bytes) -> None:
        self._path = folder / "file"
        self._data = data

    async def write(self) -> None:
        """Writes the file."""
        await asyncio.to_thread(self._write, self._path, self._data)

    async def read(self) -> None:
        """Reads it."""
        await asyncio.to_thread(self._read)

    async def write_small(self) -> None:
        """Writes small files, one after the other."""
        for number in range(SMALL_COUNT):
            path = self._path.with_name(f"small-{number}")
            await asyncio.to_thread(self._write, path, self._data[:SMALL_BYTES])

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_suffix(".new")
        with temporary.open("wb", buffering=0) as file:
            for start in range(0, len(data), CHUNK_BYTES):
                file.write(data[start : start + CHUNK_BYTES])
            os.fsync(file.fileno())
        temporary.replace(path)

    def _read(self) -> None:
        with self._path.open("rb", buffering=0) as file:
            while file.read(CHUNK_BYTES):
                continue


class Wire:
    """A client of Weft in another process."""

    def __init__(self, channel: Any, data: bytes) -> None:
        self._stub: Any = BlobServiceStub(channel)
        self._data = data

    async def put(self) -> None:
        """Puts the blob."""
        await self._stub.PutBlob(requests(NAME, self._data), timeout=120)

    async def get(self) -> None:
        """Gets it."""
        count = 0
        async for message in self._stub.GetBlob(pb.GetBlobRequest(name=NAME), timeout=120):
            count += len(message.data)
        assert count == BYTES

    async def put_small(self) -> None:
        """Puts small blobs, one after the other."""
        for number in range(SMALL_COUNT):
            small = requests(f"{NAME}-{number}", self._data[:SMALL_BYTES])
            await self._stub.PutBlob(small, timeout=60)


async def run() -> list[Result]:
    """The results of the rounds."""
    data = os.urandom(BYTES)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weft = await stack.enter_async_context(one_process(folder / "data", **UNLIMITED))
        files, wire = Files(folder, data), Wire(weft.channel, data)
        inside = BlobParts(folder / "inside").service()

        async def put_inside() -> None:
            await inside.put_blob(requests(NAME, data), call())

        async def get_inside() -> None:
            async for _ in inside.get_blob(pb.GetBlobRequest(name=NAME), call()):
                continue

        variants = {
            "write": _rate(files.write),
            "put": _rate(wire.put),
            "put inside": _rate(put_inside),
            "read": _rate(files.read),
            "get": _rate(wire.get),
            "get inside": _rate(get_inside),
            "write small": _each(files.write_small),
            "put small": _each(wire.put_small),
        }
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
    written = Baseline("MiB/s, write and fsync", values["write"])
    read = Baseline("MiB/s, read from the page cache", values["read"])
    small = Baseline("/s, write and fsync", values["write small"])
    size = f"{BYTES >> 20} MiB"
    put_goal = Goal(PUT_GOAL, at_most=False, of_ratio=True)
    return [
        Result(f"put of {size}", "MiB/s", values["put"], written, put_goal),
        Result("the same, in the process", "MiB/s", values["put inside"], written),
        Result(f"get of {size}", "MiB/s", values["get"], read),
        Result("the same, in the process", "MiB/s", values["get inside"], read),
        Result("puts of 4 KiB, one at a time", "/s", values["put small"], small),
    ]


def _rate(work: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[float]]:
    async def measured() -> float:
        started = time.perf_counter()
        await work()
        return BYTES / MEBIBYTE / (time.perf_counter() - started)

    return measured


def _each(work: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[float]]:
    async def measured() -> float:
        started = time.perf_counter()
        await work()
        return SMALL_COUNT / (time.perf_counter() - started)

    return measured
