"""Whether the event log still has all that is known to have been in it, as a process starts."""

from pathlib import Path

import structlog

from mesh.errors import DataDamaged
from mesh.events.head_ledger import HeadLedger, read_mark
from mesh.events.jetstream.store import JetStreamEventStore
from mesh.runtime.settings import RuntimeSettings

_log = structlog.get_logger(__name__)


def heads_folder(settings: RuntimeSettings) -> Path:
    """Where the ends of the log's streams are remembered."""
    return settings.heads_folder or settings.data_dir


async def check_log(
    store: JetStreamEventStore, heads: HeadLedger, settings: RuntimeSettings, *, embedded: bool
) -> None:
    """Starts the ledger. Raises DataDamaged where commits are gone, unless that is accepted.
    What is remembered of a log that isn't ours alone may be of another one: that is told, and
    `weft verify` says it too."""
    accept_loss = settings.accept_loss
    folder = heads_folder(settings)
    lacking = await store.lacking()
    mark = folder / "log_mark"
    await heads.start(lacking=lacking, accept_loss=accept_loss, before=read_mark(mark))
    problem = heads.problem
    if problem:
        _log.error("event_log_differs", problem=problem)
    if problem and (lacking or embedded or settings.own_log):
        raise DataDamaged(
            f"{problem}: it was damaged or restored from an older backup (data folder"
            f" {folder}); `weft up --accept-loss` starts on what is there"
        )
    mark.unlink(missing_ok=True)
    if accept_loss:
        # Those of commits that are gone would pass for the present.
        await store.forget_snapshots()
