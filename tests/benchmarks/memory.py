"""Resident memory of Weft's processes at rest, offline: of the one that `weft up` starts, of
replicas, and of those of a deployment in parts."""

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.measure import alternate
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.platform import Platform
from tests.support.processes import ROOT, line_of, running

ROUNDS = 3
REST_SECONDS = 3.0
START_SECONDS_MAX = 30.0
OFFLINE = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "NATS_URL")


async def weft_megabytes() -> float:
    """Of a fresh instance that did nothing yet."""
    with tempfile.TemporaryDirectory() as folder:
        async with _up(Path(folder)) as process:
            await asyncio.sleep(REST_SECONDS)
            return _resident_megabytes(process.pid)


async def echo_megabytes() -> float:
    """Of Python with a bare grpc.aio server."""
    async with running("tests.benchmarks.edge_server", "bare") as process:
        await line_of(process)
        return _resident_megabytes(process.pid)


@contextlib.asynccontextmanager
async def _up(folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    arguments = ["up", "--data-dir", str(folder), "-o", "json"]
    environment = {key: value for key, value in os.environ.items() if key not in OFFLINE}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services",
        *arguments,
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        address = folder / "run" / "address.json"
        async with asyncio.timeout(START_SECONDS_MAX):
            while not address.exists():
                assert process.returncode is None, "weft up ended at its start"
                await asyncio.sleep(0.05)
        assert json.loads(address.read_text())["pid"] == process.pid
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _resident_megabytes(pid: int) -> float:
    resident: int = psutil.Process(pid).memory_info().rss
    return resident / 1e6


async def parts_megabytes(**fields: Any) -> dict[str, float]:
    """Of each process of a fresh deployment that is one in several: by what it runs, where
    each runs something else."""
    with tempfile.TemporaryDirectory() as folder:
        weft = Platform(Path(folder) / "weft", **fields)
        try:
            await weft.start()
            await asyncio.sleep(REST_SECONDS)
            assert weft.process is not None
            found = {"supervisor": _resident_megabytes(weft.process.pid)}
            for child in psutil.Process(weft.process.pid).children():
                command = child.cmdline()
                if "--serves" in command:
                    behind = command[command.index("--serves") + 1 :]
                    services = list(takewhile(lambda each: not each.startswith("-"), behind))
                    name = "+".join(services) if weft.split else f"replica of {len(services)}"
                    found[name] = _resident_megabytes(child.pid)
            return found
        finally:
            if weft.process is not None:
                await weft.stop()


async def run() -> list[Result]:
    """The results of the rounds."""
    values = await alternate(ROUNDS, {"echo": echo_megabytes, "weft": weft_megabytes})
    baseline = Baseline("MB, bare grpc.aio server", values["echo"])
    results = [
        Result("memory at rest", "MB", values["weft"], baseline, Goal(150, at_most=True)),
    ]
    whole = Baseline("MB, one process", [statistics.median(values["weft"])])
    for kind, fields in (("2 processes", {"processes": 2}), ("in parts", {"split": True})):
        found = await parts_megabytes(**{"split": False, **fields})
        found["all together"] = sum(found.values())
        for name, megabytes in found.items():
            results.append(Result(f"memory at rest, {kind}: {name}", "MB", [megabytes], whole))
    return results
