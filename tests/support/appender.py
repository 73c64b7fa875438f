"""A process that appends two commits of one event each, to die at a failpoint.

python -m tests.support.appender URL STREAM
"""

import asyncio
import sys

from mesh.events.jetstream.store import connect_store
from mesh.events.store import START, StreamName
from tests.support.events import appended


async def main(url: str, stream: StreamName) -> None:
    store = await connect_store(url, name="appender")
    await appended(store, stream, "a", "b", head=START)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], StreamName.parse(sys.argv[2])))
