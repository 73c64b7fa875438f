"""How far the event log of a data folder is known to reach.

The embedded server recovers what is readable of a log that lost its end, or makes a new
one where it is gone, and says nothing. The mark lies outside the server's files, so that
such a loss is noticed at the next start.
"""

import asyncio
import contextlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from mesh.errors import DataDamaged
from mesh.events.jetstream.store import JetStreamEventStore
from mesh.runtime.data_dir import write_durably

WRITE_SECONDS = 1.0
"""Between two writes of the mark, while commits come."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Mark:
    """The log of that id held a commit at `position`; 0 says nothing of it. `lacking`
    of its commits are gone, and that was accepted."""

    log: str
    position: int
    lacking: int = 0


class LogMark:
    """The file `log_mark` in `folder`, which follows what a store acknowledged.

    It is written each second at most and at `stop`, and only with positions of commits
    that are on the disk: it may lag behind the log, and is never ahead of it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "log_mark"
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._mark: _Mark

    async def check(self, store: JetStreamEventStore, *, accept_loss: bool = False) -> None:
        """Compares the log with the mark.

        Raises DataDamaged where the log is another one, ends before the mark or lacks
        commits, or the mark doesn't parse; with `accept_loss` the mark is set back instead.
        """
        log = await store.log_id()
        try:
            self._mark = await self._checked(store, log)
        except DataDamaged as error:
            if not accept_loss:
                raise
            _log.warning("event_log_loss_accepted", message=error.message)
            self._mark = _Mark(log, 0, await store.lacking())
            await self._write(self._mark)

    def follow(self, store: JetStreamEventStore) -> None:
        """Follows, once it was checked, what `store` acknowledges, until `stop`."""
        self._task = asyncio.create_task(self._follow(store), name="log mark")

    async def stop(self) -> None:
        """Writes the mark a last time."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _checked(self, store: JetStreamEventStore, log: str) -> _Mark:
        """The mark to go on from."""
        kept = self._read()
        if kept is None or (kept.log != log and not kept.position):
            kept = _Mark(log, 0)
        last = await store.last_position()
        if kept.log == log and kept.position <= last:
            await check_complete(store, kept.lacking)
            return kept
        found = f"ends at position {last}" if kept.log == log else "is another one"
        raise DataDamaged(
            f"the event log of {self._folder} {found}, but it held position {kept.position}:"
            " it was damaged or restored from an older backup;"
            " `weft up --accept-loss` starts on what is there"
        )

    def _read(self) -> _Mark | None:
        try:
            kept = json.loads(self._path.read_bytes())
            return _Mark(str(kept["log"]), int(kept["position"]), int(kept["lacking"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DataDamaged(
                f"{self._path} is damaged: it doesn't name a log and a position;"
                " `weft up --accept-loss` starts without it"
            ) from error

    async def _follow(self, store: JetStreamEventStore) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_SECONDS):
                    await self._stopping.wait()
            position = store.acknowledged_position
            if position > self._mark.position:
                await self._write(replace(self._mark, position=position))

    async def _write(self, mark: _Mark) -> None:
        try:
            await asyncio.to_thread(write_durably, self._path, json.dumps(asdict(mark)))
        except OSError as error:
            # As on a full disk: the old mark still holds.
            _log.warning("log_mark_not_written", message=error.strerror)
        else:
            self._mark = mark


async def check_complete(store: JetStreamEventStore, accepted: int = 0) -> None:
    """Raises DataDamaged where more than `accepted` commits are gone before the log's end."""
    lacking = await store.lacking()
    if lacking > accepted:
        raise DataDamaged(
            f"the event log lacks {lacking} commits: it was damaged;"
            " `weft up --accept-loss` starts on what is there"
        )
