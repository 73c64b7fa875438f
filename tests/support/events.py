"""Commits for tests, and ways to read them back."""

import time
from collections.abc import Sequence

from google.protobuf.wrappers_pb2 import StringValue

from mesh.events.store import (
    START,
    CommitDraft,
    EventStore,
    Head,
    NewEvent,
    Selection,
    StoredCommit,
    StreamName,
)


def draft(*texts: str) -> CommitDraft:
    """A commit with one event for each text."""
    events = [NewEvent(StringValue(value=text)) for text in texts]
    return CommitDraft(events, time.time_ns(), actor="users/ada", request_id="r1")


def text_of(payload: bytes) -> str:
    """The text of such an event's plain payload."""
    return StringValue.FromString(payload).value


def texts_of(commits: Sequence[StoredCommit]) -> list[str]:
    """The texts of all events, in order."""
    return [text_of(event.payload.value) for each in commits for event in each.commit.events]


async def commits_of(
    store: EventStore, stream: StreamName, after: Head = START, until_revision: int | None = None
) -> list[StoredCommit]:
    """All commits behind `after`."""
    pages = store.read(stream, after, until_revision=until_revision)
    return [commit async for page in pages for commit in page]


async def appended(
    store: EventStore, stream: StreamName, *texts: str, head: Head = START
) -> list[Head]:
    """Appends a commit of one event for each text; the heads after each."""
    heads = []
    for text in texts:
        head = await store.append(stream, draft(text), head)
        heads.append(head)
    return heads


async def watched(
    store: EventStore, selection: Selection, count: int, after_position: int | None = 0
) -> list[StoredCommit]:
    """The first `count` commits that a watch sees."""
    commits: list[StoredCommit] = []
    watch = store.watch(selection, after_position)
    async for commit in watch:
        commits.append(commit)
        if len(commits) == count:
            break
    await watch.aclose()
    return commits
