"""Whatever two processes get, keep, forget and lose, in whatever order: what they give is
what a model of the cache says."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.cache.cache import Cache
from mesh.cache.tags import MemoryTags
from mesh.errors import NotFound
from mesh.runtime.redis_client import client_of_socket
from mesh.runtime.valkey_server import EmbeddedValkey
from tests.support.cached import TENANT, Hand, Text, full_cache, settled

if TYPE_CHECKING:
    from redis.asyncio import Redis

SESSION = "session:s"
TAGS = ("red", "blue", SESSION)
ABSENT_SECONDS = 7
PROCESSES = 2

processes = st.integers(0, PROCESSES - 1)
keys = st.integers(0, 1)
tag_sets = st.sets(st.sampled_from(TAGS))
steps = st.one_of(
    st.tuples(st.just("get"), processes, keys, st.sampled_from([10, 20, 60]), tag_sets),
    # That there is none is kept for a shorter time.
    st.tuples(st.just("get"), processes, keys, st.just(60), tag_sets, st.just(True)),
    st.tuples(
        st.just("get"),
        processes,
        keys,
        st.just(60),
        tag_sets,
        st.booleans(),
        st.sampled_from(TAGS),
    ),
    st.tuples(st.just("invalidate"), processes, st.sampled_from(TAGS)),
    st.tuples(st.just("pass"), st.sampled_from([1, 5, 13])),
    st.tuples(st.just("restart"), processes),
    st.tuples(st.just("redis"), st.booleans()),
)


class SharedTags(MemoryTags):
    """One log for several processes that hear of it at once."""

    def __init__(self, processes: "list[SharedTags]") -> None:
        super().__init__()
        self._processes = processes

    async def invalidate(self, tenant: str, tag: bytes) -> None:
        for tags in self._processes:
            await MemoryTags.invalidate(tags, tenant, tag)


@dataclass
class Made:
    """A value that was made. One that was invalidated has expired."""

    text: str
    expires: float
    tags: frozenset[str]
    absent: bool = False


class World:
    """Two processes with a memory and a disk each, and one Redis; and what the model says that
    each of these holds."""

    def __init__(self, folder: Path, redis: "Redis") -> None:
        self.folder = folder
        self.redis = redis
        self.redis_there = True
        self.hand = Hand()
        self.tags: list[SharedTags] = []
        self.caches: list[Cache] = []
        self.memories: list[dict[int, Made]] = [{} for _ in range(PROCESSES)]
        self.disks: list[dict[int, Made]] = [{} for _ in range(PROCESSES)]
        self.in_redis: dict[int, Made] = {}
        self.listed: set[int] = set()
        """Keys of which something of the session was put in Redis."""
        self.scrubbed: set[int] = set()
        """Keys that may be taken out of Redis, now or once it is back, whatever is there."""
        self.scrub_is_left = False
        """Whether Redis was away when the session was invalidated: what is put there until both
        processes have scrubbed it may be taken out as well."""
        self.count = 0

    async def start(self) -> None:
        for number in range(PROCESSES):
            self.tags.append(SharedTags(self.tags))
            self.caches.append(await self._started(number))

    async def _started(self, number: int) -> Cache:
        cache = full_cache(
            self.folder / str(number),
            lambda: self.redis if self.redis_there else None,
            self.tags[number],
            clock=self.hand.clock,
        )
        await cache.start()
        await settled([cache])
        return cache

    async def get(
        self,
        number: int,
        key: int,
        seconds: int,
        tags: set[str],
        absent: bool = False,
        invalidated: str = "",
    ) -> None:
        """`absent` says that there is none, `invalidated` which tag is while it is made."""
        expected = self._found(number, key)
        on_disk = self._valid(self.disks[number].get(key))
        made = Made("", 0, frozenset(tags), absent)

        async def load() -> str:
            self.count += 1
            made.text = f"made {self.count}"
            if invalidated:
                await self.caches[number].invalidate(TENANT, [invalidated])
                self._forget(invalidated)
            if absent:
                raise NotFound(made.text)
            return made.text

        values = self.caches[number].of(self.folder.name, Text(), absent_seconds=ABSENT_SECONDS)
        was_absent = False
        try:
            text = await values.get(TENANT, b"%d" % key, load, ttl_seconds=seconds, tags=tags)
        except NotFound as error:
            text, was_absent = error.message, True
        await settled(self.caches)
        if expected is not None and expected.text != text and key in self.scrubbed:
            # It wasn't in Redis any more: then it is on disk, or was made.
            self.in_redis.pop(key, None)
            self.memories[number].pop(key, None)
            expected = self._found(number, key) if on_disk is not None else None
        if expected is not None:
            assert (text, was_absent, made.text) == (expected.text, expected.absent, "")
        else:
            assert (text, was_absent) == (made.text, absent)
            if invalidated not in tags:
                made.expires = self.hand.seconds + (ABSENT_SECONDS if absent else seconds)
                self.memories[number][key] = self.disks[number][key] = made
                if self.redis_there:
                    self._put_in_redis(key, made)
        self._is_settled()

    def _is_settled(self) -> None:
        if self.redis_there:
            self.scrub_is_left = False

    def _put_in_redis(self, key: int, made: Made) -> None:
        self.in_redis[key] = made
        if SESSION in made.tags:
            self.listed.add(key)
            if self.scrub_is_left:
                self.scrubbed.add(key)

    def _found(self, number: int, key: int) -> Made | None:
        """What the process finds. It goes up, with what is left of its time."""
        memory, disk = self.memories[number], self.disks[number]
        found = self._valid(memory.get(key))
        if found is None and self.redis_there:
            found = self._valid(self.in_redis.get(key))
        if found is None:
            found = self._valid(disk.get(key))
            if found is not None and self.redis_there:
                self._put_in_redis(key, found)
        if found is not None:
            memory[key] = found
        return found

    def _valid(self, made: Made | None) -> Made | None:
        return made if made is not None and self.hand.seconds < made.expires else None

    def _forget(self, tag: str) -> None:
        if tag == SESSION:
            self.scrubbed |= self.listed
            self.scrub_is_left = self.scrub_is_left or not self.redis_there
        for level in (*self.memories, *self.disks, self.in_redis):
            for made in level.values():
                if tag in made.tags:
                    made.expires = 0

    async def invalidate(self, number: int, tag: str) -> None:
        await self.caches[number].invalidate(TENANT, [tag])
        await settled(self.caches)
        self._is_settled()
        self._forget(tag)

    async def restart(self, number: int) -> None:
        await self.caches[number].stop()
        known = self.tags[number].known
        self.tags[number] = SharedTags(self.tags)
        self.tags[number].known = known
        self.caches[number] = await self._started(number)
        self.memories[number].clear()


@pytest.fixture(scope="module")
async def valkey(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"))
    await server.start()
    yield server
    await server.stop()


async def walk(valkey: EmbeddedValkey, taken: list[tuple[Any, ...]]) -> None:
    redis = client_of_socket(valkey._socket, "weft", lambda: valkey._password)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), redis)
        try:
            await world.start()
            for verb, *arguments in taken:
                if verb == "pass":
                    world.hand.seconds += arguments[0]
                elif verb == "redis":
                    world.redis_there = arguments[0]
                else:
                    await getattr(world, verb)(*arguments)
        finally:
            for cache in world.caches:
                await cache.stop()
            await redis.aclose()


SCRUBBED_LATE: list[tuple[Any, ...]] = [
    ("get", 0, 0, 10, {SESSION}),
    ("redis", False),
    ("invalidate", 0, SESSION),
    ("redis", True),
    ("get", 0, 1, 60, {SESSION}, True),
    ("get", 1, 1, 10, set()),
]


@settings(max_examples=40, deadline=None)
@example(taken=SCRUBBED_LATE)
@given(taken=st.lists(steps, min_size=30, max_size=60))
def test_two_processes_give_what_the_model_says(
    valkey: EmbeddedValkey, taken: list[tuple[Any, ...]]
) -> None:
    # In a loop of its own, since hypothesis calls functions that return.
    asyncio.run(walk(valkey, taken))
