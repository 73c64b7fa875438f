"""What is noted beside calls isn't lost when the process stops."""

import asyncio

from services.auth.background import Background


async def test_a_stop_in_the_middle_of_a_flush_flushes_once_more() -> None:
    noted, flushed = ["fact"], []
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def flush() -> None:
        begun.set()
        await may_end.wait()
        flushed.extend(noted)

    background = Background("facts", flush, interval_seconds=60)
    background.start()
    background.wake()
    await begun.wait()
    stopping = asyncio.create_task(background.stop())
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.wait_for(stopping, 5)
    assert flushed == noted
