"""Rounds of kills under a load of tasks, as many as a suite has time for; `make chaos` runs
more."""

import asyncio
import json
import sys

import pytest

from tests.support.processes import ROOT

pytestmark = pytest.mark.timeout(600)

ROUNDS = 12
SEED = 20_261_127
"""Fixes the load and what is harmed; what is hit there is different each time."""


async def test_every_accepted_task_has_exactly_one_end() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.tasks"),
        *("--rounds", str(ROUNDS), "--seed", str(SEED)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    summary = json.loads(output.splitlines()[-1])
    print(summary)
    assert process.returncode == 0
    assert summary["rounds"] == ROUNDS
    assert summary["lost"] == summary["doubled"] == summary["stuck"] == summary["differing"] == 0
    assert summary["tasks"] > ROUNDS
