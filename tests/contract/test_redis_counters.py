"""Counters in a real Valkey whose connections break at any moment."""

import asyncio
from pathlib import Path

import uvloop

from mesh.rpc.rate_limiter import CountersUnavailable, RedisCounters
from mesh.runtime.valkey_server import EmbeddedValkey

CUTS = 40
AT_ONCE = 6
LIMIT = 1_000_000


async def _taken_while_it_breaks(folder: Path) -> list[object]:
    """What is taken while each connection is cut again and again, some in its very moment."""
    server = EmbeddedValkey(folder)
    await server.start()
    try:
        redis = server.client()
        counters = RedisCounters(lambda: redis)
        seen: list[object] = []

        async def going_on() -> None:
            while True:
                taking = counters.take("a", 1, LIMIT)
                seen.extend(await asyncio.gather(taking, return_exceptions=True))

        going = asyncio.gather(*(going_on() for _ in range(AT_ONCE)))
        for _ in range(CUTS):
            await asyncio.sleep(0.02)
            pool = redis.connection_pool
            for each in (*pool._available_connections, *pool._in_use_connections):
                if each._writer is not None:
                    each._writer.transport.abort()
            taking = []
            for _ in range(AT_ONCE):
                taking.append(asyncio.create_task(counters.take("b", 1, LIMIT)))
                await asyncio.sleep(0)
            seen += await asyncio.gather(*taking, return_exceptions=True)
        going.cancel()
        await asyncio.wait({going})
        seen.append(await counters.take("c", 3, LIMIT))
        return seen
    finally:
        await server.stop()


async def test_a_connection_that_breaks_is_told_as_away_and_nothing_else(tmp_path: Path) -> None:
    # As processes of Weft do it: uvloop raises where asyncio's own loop says nothing.
    seen = await asyncio.to_thread(uvloop.run, _taken_while_it_breaks(tmp_path))
    assert seen[-1] == 3
    errors = [each for each in seen if isinstance(each, BaseException)]
    assert errors
    assert {type(each) for each in errors} == {CountersUnavailable}
    assert seen.count(1) > CUTS
