"""`python -m tests.support.partition_writer NAME URL STREAM [heedless]`: one of the writers
of a stream, who may all be cut off.

It holds a lease. Who owns the stream appends to it, all the time; the other takes over once
the owner's lease is over. A heedless one doesn't ask whether its own still holds, as one
does that was stopped right behind that question. Prints a line of JSON for each attempt:
the text, what became of it, and when it was begun, by the monotonic clock. SIGTERM ends it
behind the attempt that is under way, so that none is stored and not told.
"""

import asyncio
import json
import signal
import sys
import time
from contextlib import suppress

from mesh.control.nats_leases import NatsLeases
from mesh.errors import EventStoreUnavailable
from mesh.events.jetstream.store import JetStreamEventStore, connect_store
from mesh.events.store import START, Head, HeadConflict, StreamName
from mesh.telemetry.logs import configure_logs
from tests.support.events import commits_of, draft, texts_of
from tests.support.nats import instance_of
from tests.support.processes import end_with_parent

PAUSE_SECONDS = 0.02
APPENDS_MAX = 100_000


class Writer:
    """What one knows of the stream."""

    def __init__(self, name: str, store: JetStreamEventStore, stream: StreamName) -> None:
        self.name = name
        self.owner = ""
        self._store = store
        self._stream = stream
        self._head: Head = START

    async def look(self) -> None:
        """Reads what was appended since; nothing while it is cut off."""
        with suppress(EventStoreUnavailable):
            commits = await commits_of(self._store, self._stream, self._head)
            if commits:
                self._head = commits[-1].head
                self.owner = texts_of(commits)[-1].split()[0]

    async def append(self, text: str) -> str:
        """Behind what it knows; what became of it."""
        try:
            self._head = await self._store.append(self._stream, draft(text), self._head)
        except HeadConflict:
            return "refused"
        except EventStoreUnavailable:
            return "unknown"
        self.owner = self.name
        return "stored"


async def main(name: str, url: str, stream: StreamName, heedless: bool) -> None:
    """Until SIGTERM, and what is under way then is done."""
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    store = await connect_store(url, name=name, append_seconds_max=1.5, attempt_seconds=0.5)
    leases = NatsLeases(store.connection, instance_of(name=name))
    await leases.start()
    writer = Writer(name, store, stream)
    await writer.look()
    for number in range(APPENDS_MAX):
        await asyncio.sleep(PAUSE_SECONDS)
        if ending.is_set():
            return
        if writer.owner in (name, ""):
            if not (heedless or leases.held()):
                continue
            text = f"{name} {number}"
        elif leases.expired(instance_of(name=writer.owner)):
            text = f"{name} {number} takes over"
        else:
            await writer.look()
            continue
        began = time.monotonic()
        became = await writer.append(text)
        print(json.dumps({"text": text, "became": became, "began": began}), flush=True)
        if became == "refused":
            await writer.look()


if __name__ == "__main__":
    end_with_parent()
    configure_logs("error")
    asyncio.run(
        main(sys.argv[1], sys.argv[2], StreamName.parse(sys.argv[3]), sys.argv[4:] == ["heedless"])
    )
