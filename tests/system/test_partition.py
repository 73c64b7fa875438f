"""Machines whose cable is pulled while they write: nothing of what is cut off wins.

Each machine is a network namespace; skipped where the kernel doesn't give any.
"""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.namespaces import apart
from tests.support.processes import ROOT

pytestmark = pytest.mark.timeout(240)
SECONDS_MAX = 200.0


async def seen(folder: Path, what: str) -> Any:
    """What the program saw that runs apart."""
    command = apart()
    if isinstance(command, str):
        pytest.skip(command)
    process = await asyncio.create_subprocess_exec(
        *(*command, sys.executable, "-m", "tests.support.partition", str(folder), what),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), SECONDS_MAX)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


async def test_a_writer_that_is_cut_off_never_wins_an_append(tmp_path: Path) -> None:
    said = await seen(tmp_path, "writers")
    texts, attempts = said["texts"], said["attempts"]
    taken_over = next(index for index, text in enumerate(texts) if "takes over" in text)
    before, after = texts[:taken_over], texts[taken_over:]
    assert all(text.startswith("first ") for text in before)
    assert all(text.startswith("second ") for text in after)
    assert max(Counter(texts).values()) == 1
    # What was acknowledged is there, and nothing else but what nobody knew of.
    by_result = {
        result: {each["text"] for each in attempts if each["became"] == result}
        for result in ("stored", "unknown", "refused")
    }
    assert by_result["stored"] <= set(texts)
    assert set(texts) <= by_result["stored"] | by_result["unknown"]
    # It tried while it was cut off, and what it tried came too late.
    tried = [
        each
        for each in attempts
        if each["text"].startswith("first ") and each["began"] > said["cut"]
    ]
    assert {each["became"] for each in tried} == {"unknown", "refused"}
    # The other one had gone on by then.
    assert any(each["began"] < said["healed"] for each in attempts if each["text"] in after)


async def test_turns_and_queues_of_who_is_cut_off_go_on_with_the_other_and_once(
    tmp_path: Path,
) -> None:
    rounds = (await seen(tmp_path, "weft"))["rounds"]
    print(rounds)
    assert len(rounds) == 2
    for each in rounds:
        # Its turn was taken over once, by the one that stayed, and ended once.
        assert each["resumed_by"] == [each["instance"]]
        assert each["kinds"][-1] == "completed"
        assert each["faults"] == []
        # Each of the four calls has one key, and under it one effect.
        assert each["effects"] == [1, 1, 1, 1]
        # It acknowledged nothing while it was cut off.
        assert each["accepted_there"] == []
        # Its queue's tasks all ended, once each; no attempt was run twice.
        assert each["tasks"] > 0
        assert each["states"] == ["TASK_STATE_SUCCEEDED"]
        assert each["ends"] == [1]
        assert each["attempts_run_twice"] == 0
