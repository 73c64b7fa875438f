"""Following the log in memory."""

from collections.abc import AsyncGenerator

import pytest

from mesh.errors import EventStoreUnavailable, Internal
from mesh.events import following as module
from mesh.events.following import Following
from mesh.events.memory import MemoryEventStore
from mesh.events.store import Selection, StoredCommit, StreamName
from tests.support.events import appended, texts_of
from tests.support.eventually import eventually

ONE = StreamName("test", "acme", ("one",))
OTHER = StreamName("other", "acme", ("one",))
TEST = Selection("test")


class Cut(MemoryEventStore):
    """A log whose first watches end behind their first commit."""

    cuts = 2

    async def watch(
        self, selection: Selection, after_position: int | None = None
    ) -> AsyncGenerator[StoredCommit, None]:
        async for stored in super().watch(selection, after_position):
            yield stored
            if self.cuts:
                self.cuts -= 1
                raise EventStoreUnavailable("the connection is gone")


async def test_each_commit_of_the_selection_is_applied_once_though_the_log_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    store = Cut()
    seen: list[StoredCommit] = []
    await appended(store, ONE, "a", "b")
    await appended(store, OTHER, "x")
    following = Following(store, TEST, seen.append)
    following.start()
    await following.catch_up(5)
    assert texts_of(seen) == ["a", "b"]
    assert following.position == seen[-1].position
    await appended(store, ONE, "c", head=seen[-1].head)
    await eventually(lambda: texts_of(seen) == ["a", "b", "c"])
    await following.stop()
    await appended(store, ONE, "d", head=seen[-1].head)
    assert not await following.reached(seen[-1].position + 1, 0.05)
    assert (store.cuts, texts_of(seen)) == (0, ["a", "b", "c"])


async def test_what_nobody_foresaw_ends_it_and_is_told_to_who_waits() -> None:
    def surprised(stored: StoredCommit) -> None:
        raise KeyError("unforeseen")

    store = MemoryEventStore()
    await appended(store, ONE, "a")
    following = Following(store, TEST, surprised)
    following.start()
    for _ in range(2):
        with pytest.raises(Internal):
            await following.catch_up(5)
    assert following.position == 0
    await following.stop()


async def test_who_waits_too_long_is_told() -> None:
    store = MemoryEventStore()
    await appended(store, ONE, "a")
    following = Following(store, TEST, lambda stored: None)
    with pytest.raises(EventStoreUnavailable, match="took too long"):
        await following.catch_up(0.02)
