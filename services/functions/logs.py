"""What functions print: kept sealed in the instance's folder, within bounds, and told to who
watches.

An entry's key is that of the tenant's functions or, where the invocation was made for a
session's turn, that session's: once its key is destroyed nothing opens the entry.
"""

import asyncio
import codecs
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import apsw
import structlog
from google.protobuf.message import DecodeError

from mesh.clock import Clock
from mesh.errors import DataDamaged, DataErased, NotFound, Unavailable, WeftError
from mesh.events.store import START, EventStore, StreamName
from mesh.security.aead import bound, seal, unseal
from mesh.security.keyring import Keyring
from services.functions.domain import AREA
from services.functions.log_tables import LogTables, Row
from services.functions.settings import FunctionsSettings
from weft.functions.v1 import functions_pb2

T = TypeVar("T")

FILE_NAME = "logs.sqlite3"
FLUSH_SECONDS = 0.2
ENTRY_LENGTH_MAX = 16_384
ENTRIES_AT_ONCE = 256
_SESSION = re.compile(
    r"tenants/([a-z0-9-]{1,63})/agents/([a-z0-9-]{1,63})/sessions/([a-z0-9-]{1,63})/"
)
_STREAMS = {
    "stdout": functions_pb2.LOG_STREAM_STDOUT,
    "stderr": functions_pb2.LOG_STREAM_STDERR,
}
_FAR_NS = 2**63 - 1
_log = structlog.get_logger(__name__)


class Logs:
    """The logs of all functions of this instance."""

    def __init__(
        self,
        folder: Path,
        keyring: Keyring,
        events: EventStore,
        settings: FunctionsSettings,
        clock: Clock,
    ) -> None:
        path = folder / FILE_NAME
        self._tables = LogTables(path, settings.log_bytes_max, settings.logs_bytes_max)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="function logs")
        self._keyring = keyring
        self._events = events
        self.clock = clock
        self._grown: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._writers: defaultdict[str, set[LogWriter]] = defaultdict(set)
        self._erasing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Opens the file. Unavailable where that can't be done."""
        await self._run(self._tables.open)
        self._keyring.on_erased(self._key_erased)

    async def close(self) -> None:
        """Closes the file."""
        await asyncio.gather(*self._erasing, return_exceptions=True)
        await self._run(self._tables.close)
        self._worker.shutdown()

    def writer(
        self, function: str, version: int, invocation: str, idempotency_key: str
    ) -> "LogWriter":
        """What takes the output of one invocation; it has to be closed."""
        writer = LogWriter(self, function, version, invocation, idempotency_key)
        self._writers[function].add(writer)
        return writer

    def closed(self, writer: "LogWriter") -> None:
        """A writer stores nothing more."""
        _discard(self._writers, writer.function, writer)

    async def page(
        self, function: str, invocation: str, after: int, count: int
    ) -> list[functions_pb2.FunctionLogEntry]:
        """At most `count` entries behind a place, oldest first. What can't be opened any more is
        told with an empty text."""
        rows = await self._run(lambda: self._tables.page(function, invocation, after, count))
        return [await self._opened(row) for row in rows]

    async def watch(
        self, function: str, after: int
    ) -> AsyncGenerator[list[functions_pb2.FunctionLogEntry], None]:
        """Entries behind a place, then those that come. NotFound once the log is deleted."""
        grown = asyncio.Event()
        self._grown[function].add(grown)
        try:
            while True:
                grown.clear()
                entries = await self.page(function, "", after, ENTRIES_AT_ONCE)
                if entries:
                    after = entries[-1].sequence
                    yield entries
                else:
                    await grown.wait()
                if grown not in self._grown.get(function, ()):
                    raise NotFound.of("function", function)
        finally:
            _discard(self._grown, function, grown)

    async def delete(self, function: str) -> None:
        """Takes a function's log away, also what invocations that still run would add to it."""
        for writer in self._writers.pop(function, ()):
            writer.is_dropped = True
        for grown in self._grown.pop(function, ()):
            grown.set()
        await self._run(lambda: self._tables.delete(function))

    async def key_stream(self, function: str, idempotency_key: str) -> str:
        """Whose key seals what is printed: that of the session whose call it is, or the
        tenant's."""
        tenant = function.split("/")[1]
        session = _SESSION.match(idempotency_key)
        if session is not None and session[1] == tenant:
            stream = StreamName("state", tenant, (session[2], session[3]))
            if await self._events.head_at(stream, _FAR_NS) != START:
                return str(stream)
        return f"{AREA}.{tenant}"

    async def add(
        self, writer: "LogWriter", key_stream: str, entries: list[functions_pb2.FunctionLogEntry]
    ) -> str:
        """Stores entries; those that can't be are lost, and an invocation doesn't fail of it.
        Whose key seals them, which is looked up where `key_stream` is empty."""
        function = writer.function
        try:
            key_stream = key_stream or await self.key_stream(function, writer.idempotency_key)
            key = await self._keyring.data_key_to_seal(key_stream)
            rows = []
            for entry in entries:
                key.sealed += 1
                place = _place(function, entry.invocation, key_stream, key.id)
                sealed = seal(key.aead, entry.SerializeToString(), place)
                rows.append(Row(0, function, entry.invocation, key_stream, key.id, sealed))
            if writer.is_dropped:
                return key_stream
            await self._run(lambda: self._tables.add(rows))
        except DataErased:
            return key_stream
        except WeftError as error:
            _log.warning("function_log_lost", function=function, reason=error.message)
            return key_stream
        for grown in self._grown.get(function, ()):
            grown.set()
        return key_stream

    async def _opened(self, row: Row) -> functions_pb2.FunctionLogEntry:
        try:
            key = await self._keyring.data_key_to_open(row.key_stream, row.key_id)
            place = _place(row.function, row.invocation, row.key_stream, row.key_id)
            entry = functions_pb2.FunctionLogEntry.FromString(unseal(key.aead, row.sealed, place))
        except (DataErased, DataDamaged, DecodeError):
            entry = functions_pb2.FunctionLogEntry(invocation=row.invocation)
        entry.sequence = row.sequence
        return entry

    def _key_erased(self, stream: str) -> None:
        async def delete() -> None:
            await self._run(lambda: self._tables.delete_sealed_by(stream))

        task = asyncio.ensure_future(delete())
        self._erasing.add(task)
        task.add_done_callback(self._erasing.discard)

    async def _run(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            try:
                return work()
            except apsw.Error as error:
                raise Unavailable("the logs of functions can't be read or written") from error

        return await asyncio.get_running_loop().run_in_executor(self._worker, guarded)


class LogWriter:
    """Gathers what one invocation prints into entries, and has them stored some times a second,
    unless the function is deleted meanwhile: then `is_dropped`."""

    def __init__(
        self, logs: Logs, function: str, version: int, invocation: str, idempotency_key: str
    ) -> None:
        self.function = function
        self.idempotency_key = idempotency_key
        self.is_dropped = False
        self._logs = logs
        self._version = version
        self._invocation = invocation
        self._key_stream = ""
        self._text = dict.fromkeys(_STREAMS, "")
        self._decoders = {
            name: codecs.getincrementaldecoder("utf-8")("replace") for name in _STREAMS
        }
        self._due: asyncio.Task[None] | None = None

    def write(self, stream: str, data: bytes) -> None:
        """Takes some bytes of `stdout` or `stderr`."""
        self._text[stream] += self._decoders[stream].decode(data)
        if self._due is None:
            self._due = asyncio.create_task(self._later(), name="function log")

    async def close(self) -> None:
        """Returns once all of it is stored."""
        due, self._due = self._due, None
        if due is not None:
            due.cancel()
            await asyncio.gather(due, return_exceptions=True)
        for stream, decoder in self._decoders.items():
            self._text[stream] += decoder.decode(b"", final=True)
        try:
            await self._flush()
        finally:
            self._logs.closed(self)

    async def _later(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            # What is being stored isn't given up in the middle: it would be told twice, or never.
            await asyncio.shield(asyncio.ensure_future(self._flush()))

    async def _flush(self) -> None:
        entries = []
        for stream, text in self._text.items():
            for start in range(0, len(text), ENTRY_LENGTH_MAX):
                entry = functions_pb2.FunctionLogEntry(
                    version=self._version,
                    invocation=self._invocation,
                    stream=_STREAMS[stream],
                    text=text[start : start + ENTRY_LENGTH_MAX],
                )
                entry.time.FromNanoseconds(self._logs.clock.now_ns())
                entries.append(entry)
        if not entries:
            return
        self._text = dict.fromkeys(_STREAMS, "")
        self._key_stream = await self._logs.add(self, self._key_stream, entries)


def _discard(sets: defaultdict[str, set[T]], name: str, value: T) -> None:
    """Takes a value out of the set of that name, which goes with its last one."""
    found = sets.get(name)
    if found is not None:
        found.discard(value)
        if not found:
            del sets[name]


def _place(function: str, invocation: str, key_stream: str, key_id: str) -> bytes:
    return bound(("function log", function, invocation, key_stream, key_id))
