"""Waiting for what another task does."""

import asyncio
from collections.abc import Callable

STEP_SECONDS = 0.01


async def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    """Returns once it holds; AssertionError where it doesn't within that time."""
    for _ in range(int(seconds / STEP_SECONDS)):
        if holds():
            return
        await asyncio.sleep(STEP_SECONDS)
    raise AssertionError(f"it didn't come to pass within {seconds} s")
