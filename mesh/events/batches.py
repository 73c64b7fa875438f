"""Taking together what is there already, of what comes one by one."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TypeVar

from mesh.errors import WeftError

T = TypeVar("T")


async def in_batches(
    source: AsyncGenerator[T, None], size_max: int
) -> AsyncGenerator[list[T], None]:
    """What `source` yields, as lists of at least one and at most `size_max`; raises what
    it raises."""
    queue: asyncio.Queue[list[T]] = asyncio.Queue(size_max)
    reader = asyncio.create_task(_read(source, queue))
    try:
        while one := await queue.get():
            batch = one
            while not queue.empty() and len(batch) < size_max:
                one = queue.get_nowait()
                if not one:
                    yield batch
                    await reader
                    return
                batch += one
            yield batch
        await reader
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError, WeftError):
            await reader


async def _read(source: AsyncGenerator[T, None], queue: "asyncio.Queue[list[T]]") -> None:
    """Puts each item in a list of its own, and an empty one where the source fails or ends."""
    try:
        async with contextlib.aclosing(source):
            async for item in source:
                await queue.put([item])
    except Exception:
        # Whatever failed is raised to who awaits the reader; here it only wakes them. Not where
        # it is cancelled: nobody takes anything any more.
        await queue.put([])
        raise
    await queue.put([])
