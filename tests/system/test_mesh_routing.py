"""gRPC's own xDS client, in a process of its own, goes where the control plane says: real
backends that come, go and are killed under load."""

import asyncio
import json
import random
import signal
import stat
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh.control.xds.ads import AdsServer
from mesh.control.xds.bootstrap import bootstrap
from mesh.control.xds.mesh_view import MeshView, Portion
from mesh.control.xds.placement import Placement
from tests.support.processes import asked, line_of, running
from tests.support.xds_client import COLLECTIONS, SESSIONS
from tests.support.xds_mesh import SERVICES, Backend, Client, backends, client
from weft.control.v1 import instances_pb2

PER_SECOND = 400
DOCS = ["tenants/acme/collections/docs"]
TALKS = [f"tenants/acme/agents/bot/sessions/talk-{number}" for number in range(200)]
TRIES_MAX = 200


class Routing:
    """A control plane, and clients that ask it."""

    def __init__(self, ads: AdsServer, port: int, stack: AsyncExitStack) -> None:
        self.ads = ads
        self._port = port
        self._stack = stack
        self.known: list[instances_pb2.Instance] = []

    async def client(self, zone: str = "") -> Client:
        """A client in that zone, which knows the instances as a process of Weft does."""
        asks = bootstrap([f"127.0.0.1:{self._port}"], node="a-client", zone=zone)
        made = await self._stack.enter_async_context(client(asks))
        await made.know(self.known)
        return made

    def set(self, *instances: instances_pb2.Instance, **fields: object) -> None:
        """What the control plane knows from now on."""
        self.known = list(instances)
        self.ads.set(MeshView(SERVICES, instances, **fields))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
async def four() -> AsyncIterator[dict[str, Backend]]:
    async with backends("a", "b", "c", "d") as started:
        yield started


@pytest.fixture
async def routing() -> AsyncIterator[Routing]:
    ads = AdsServer()
    async with AsyncExitStack() as stack:
        port = await ads.start("127.0.0.1:0")
        stack.push_async_callback(ads.stop)
        yield Routing(ads, port, stack)


async def until_answered(
    caller: Client, holds: Callable[[Counter[str]], bool], method: str = COLLECTIONS
) -> None:
    """Calls until twenty answers are as they should be."""
    for _ in range(TRIES_MAX):
        if holds(Counter(await caller.call(method, DOCS * 20))):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the calls went elsewhere all the time")


def only(*names: str) -> Callable[[Counter[str]], bool]:
    return lambda answered: set(answered) == set(names)


async def test_calls_go_to_all_in_turn_and_to_who_comes_and_not_to_who_goes(
    routing: Routing, four: dict[str, Backend]
) -> None:
    a, b, c = (four[name].instance() for name in "abc")
    routing.set(a, b)
    caller = await routing.client()
    await until_answered(caller, only("a", "b"))
    shares = Counter(await caller.call(COLLECTIONS, DOCS * 200))
    assert all(share > 70 for share in shares.values())
    routing.set(a, b, c)
    await until_answered(caller, only("a", "b", "c"))
    routing.set(a, c)
    await until_answered(caller, only("a", "c"))
    b.state = instances_pb2.INSTANCE_STATE_DRAINING
    routing.set(a, b, c)
    assert "b" not in await caller.call(COLLECTIONS, DOCS * 100)


async def test_no_call_that_may_be_repeated_fails_when_its_backend_is_killed(
    routing: Routing, four: dict[str, Backend]
) -> None:
    routing.set(*(four[name].instance() for name in "abc"))
    caller = await routing.client()
    await until_answered(caller, only("a", "b", "c"))
    await caller.start(COLLECTIONS, DOCS, PER_SECOND)
    await asyncio.sleep(0.5)
    await four["c"].kill()
    await asyncio.sleep(0.5)
    lap = await caller.stop()
    await four["c"].start()
    assert lap["failed"] == {}
    assert lap["answered"].keys() == {"a", "b", "c"}


async def test_a_zone_that_is_lost_is_replaced_by_others_until_it_is_back(
    routing: Routing, four: dict[str, Backend]
) -> None:
    zones = {"a": "east", "b": "east", "c": "west", "d": "north"}
    routing.set(*(four[name].instance(zone=zone) for name, zone in zones.items()))
    caller = await routing.client("east")
    await until_answered(caller, only("a", "b"))
    await caller.start(COLLECTIONS, DOCS, PER_SECOND)
    # Retries are a share of the calls that there were: as many as were under way must fit.
    await asyncio.sleep(1.5)
    assert (await caller.lap())["answered"].keys() == {"a", "b"}
    await asyncio.gather(four["a"].kill(), four["b"].kill())
    await asyncio.sleep(0.5)
    lost = await caller.lap()
    assert lost["failed"] == {}
    assert lost["answered"].keys() & {"c", "d"}
    await asyncio.gather(four["a"].start(), four["b"].start())
    await until_answered(caller, only("a", "b"))
    assert (await caller.stop())["failed"] == {}


async def test_a_zone_without_health_is_replaced_and_the_mesh_never_is_without(
    routing: Routing, four: dict[str, Backend]
) -> None:
    a, b, c = (four[n].instance(zone=z) for n, z in (("a", "east"), ("b", "east"), ("c", "west")))
    routing.set(a, b, c)
    caller = await routing.client("east")
    await until_answered(caller, only("a", "b"))
    routing.set(a, b, c, unhealthy=frozenset({a.name}))
    await until_answered(caller, only("b"))
    routing.set(a, b, c, unhealthy=frozenset({a.name, b.name}))
    await until_answered(caller, only("c"))
    routing.set(a, b, c, unhealthy=frozenset({a.name, b.name, c.name}))
    await until_answered(caller, only("a", "b"))


async def test_versions_take_the_share_that_the_split_gives_them(
    routing: Routing, four: dict[str, Backend]
) -> None:
    blue = [four[name].instance(version="blue") for name in "ab"]
    green = [four[name].instance(version="green") for name in "cd"]
    split = {"vectors": (Portion("blue", 90), Portion("green", 10))}
    routing.set(*blue, *green, splits=split)
    caller = await routing.client()
    await until_answered(caller, lambda answered: len(answered) >= 3)
    answered = Counter(await caller.call(COLLECTIONS, DOCS * 10_000))
    # Five standard deviations: 30 calls each.
    assert 850 <= answered["c"] + answered["d"] <= 1_150
    assert sum(answered[name] for name in "abcd") == 10_000


async def test_no_call_fails_while_all_of_them_change_sides(
    routing: Routing, four: dict[str, Backend]
) -> None:
    blue = [four[name].instance(version="blue") for name in "ab"]
    green = [four[name].instance(version="green") for name in "cd"]

    def flip(blue_weight: int) -> None:
        split = (Portion("blue", blue_weight), Portion("green", 100 - blue_weight))
        routing.set(*blue, *green, splits={"vectors": split})

    flip(100)
    caller = await routing.client()
    await until_answered(caller, only("a", "b"))
    await caller.start(COLLECTIONS, DOCS, PER_SECOND)
    for number in range(20):
        flip(0 if number % 2 == 0 else 100)
        await asyncio.sleep(0.05)
    flip(0)
    await until_answered(caller, only("c", "d"))
    flips = await caller.lap()
    assert flips["failed"] == {}
    assert flips["answered"].keys() == {"a", "b", "c", "d"}
    await asyncio.sleep(0.1)
    last = await caller.stop()
    assert last["answered"].keys() == {"c", "d"}
    assert last["failed"] == {}


async def test_what_a_client_let_go_of_it_gets_again_unchanged(
    routing: Routing, four: dict[str, Backend]
) -> None:
    blue, green = four["a"].instance(version="blue"), four["b"].instance(version="green")
    split = {"vectors": (Portion("blue", 100), Portion("green", 0))}
    caller = await routing.client()
    for _ in range(3):
        # The clusters of the split and the one without any take each other's place.
        routing.set(blue, green, splits=split)
        await until_answered(caller, only("a"))
        routing.set(blue, green)
        await until_answered(caller, only("a", "b"))
    await caller.reopen()
    await until_answered(caller, only("a", "b"))


async def placed(routing: Routing, *callers: Client) -> list[str]:
    """Who answers for each of TALKS, once all callers are connected: whoever is its place."""
    view = MeshView(SERVICES, tuple(routing.known), plain_text=True)
    placement = Placement(lambda: view)
    ids = {each.target: each.name.partition("/")[2] for each in routing.known}
    expected = []
    for talk in TALKS:
        places = b64decode(placement.cookie("state", talk).partition("=")[2]).decode()
        expected.append(ids[places.split(",")[0]])
    for caller in callers:
        await caller.know(routing.known)
        for _ in range(TRIES_MAX):
            if await caller.call(SESSIONS, TALKS) == expected:
                break
        else:
            raise AssertionError("sessions went elsewhere all the time")
    return expected


async def test_a_session_stays_with_its_instance_and_moves_only_to_a_new_one(
    routing: Routing, four: dict[str, Backend]
) -> None:
    three = [four[name].instance() for name in "abc"]
    routing.set(*three)
    caller, another = await routing.client(), await routing.client()
    before = await placed(routing, caller, another)
    assert set(before) == {"a", "b", "c"}
    routing.set(*three, four["d"].instance())
    after = await placed(routing, caller, another)
    moved = [new for old, new in zip(before, after, strict=True) if new != old]
    assert set(moved) == {"d"}
    # A fourth of them, as chance has it.
    assert 20 <= len(moved) <= 80


async def test_sessions_go_on_elsewhere_when_their_instance_is_killed(
    routing: Routing, four: dict[str, Backend]
) -> None:
    routing.set(*(four[name].instance() for name in "abc"))
    caller = await routing.client()
    before = await placed(routing, caller)
    await caller.start(SESSIONS, TALKS, PER_SECOND)
    await asyncio.sleep(0.3)
    await four["b"].kill()
    await asyncio.sleep(0.5)
    lap = await caller.stop()
    after = await caller.call(SESSIONS, TALKS)
    await four["b"].start()
    assert lap["failed"] == {}
    assert {old for old, new in zip(before, after, strict=True) if new != old} == {"b"}


async def test_a_session_stays_with_its_instance_of_the_version_that_takes_it(
    routing: Routing, four: dict[str, Backend]
) -> None:
    """Though none of that version runs in the client's own zone."""
    blue = four["a"].instance(version="blue", zone="east")
    green = [four[name].instance(version="green", zone="west") for name in "bcd"]
    splits = {"state": (Portion("blue", 0), Portion("green", 100))}
    routing.set(blue, *green, splits=splits)
    caller = await routing.client("east")
    await caller.know(routing.known, splits=splits, zone="east")
    for _ in range(TRIES_MAX):
        answered = await caller.call(SESSIONS, TALKS)
        if set(answered) == {"b", "c", "d"} and await caller.call(SESSIONS, TALKS) == answered:
            break
    else:
        raise AssertionError("sessions went elsewhere all the time")


async def test_instances_that_come_and_go_all_the_time_end_no_client(
    routing: Routing, four: dict[str, Backend]
) -> None:
    # gRPC's ring crashes its process within seconds of this (ads.py).
    chance = random.Random(5)
    all_four = [backend.instance() for backend in four.values()]
    routing.set(*all_four)
    caller = await routing.client()
    await placed(routing, caller)
    await caller.start(SESSIONS, TALKS, PER_SECOND)
    for _ in range(300):
        some = chance.sample(all_four, chance.randint(1, 4))
        routing.set(*some)
        await caller.know(some)
        await asyncio.sleep(0.01)
    lap = await caller.stop()
    assert lap["failed"] == {}
    assert lap["answered"].keys() == {"a", "b", "c", "d"}


async def test_clients_go_on_while_the_control_plane_is_gone_or_knows_nothing(
    four: dict[str, Backend],
) -> None:
    def line(*names: str) -> bytes:
        known = [
            {
                "name": f"instances/{name}",
                "services": ["state", "vectors"],
                "target": four[name].target,
                "state": "INSTANCE_STATE_SERVING",
            }
            for name in names
        ]
        return json.dumps(known).encode()

    async def tell(plane: asyncio.subprocess.Process, *names: str) -> None:
        assert plane.stdin is not None
        plane.stdin.write(line(*names))
        assert await asked(plane) == str(len(names))

    module = "tests.support.xds_control_plane"
    async with AsyncExitStack() as stack:
        async with running(module, 0) as first:
            port = await line_of(first)
            await tell(first, "a", "b")
            asks = bootstrap([f"127.0.0.1:{port}"], node="a-client", zone="")
            caller = await stack.enter_async_context(client(asks))
            await until_answered(caller, only("a", "b"))
            await caller.start(COLLECTIONS, DOCS, PER_SECOND)
        await asyncio.sleep(0.5)
        second = await stack.enter_async_context(running(module, port))
        assert await line_of(second) == port
        await asyncio.sleep(1)
        assert (await caller.lap())["failed"] == {}
        await tell(second, "a", "b", "c")
        await until_answered(caller, only("a", "b", "c"))
        assert (await caller.stop())["failed"] == {}


async def test_a_process_is_its_own_control_plane_on_a_private_socket(
    four: dict[str, Backend], tmp_path: Path
) -> None:
    # Short: a socket's path has 107 bytes.
    folder = tmp_path / "a 100% \u00fc?#" / "xds"
    targets = [four[name].target for name in "ab"]
    async with running("tests.support.xds_in_process", folder, *targets) as process:
        said = json.loads(await line_of(process))
        assert await asyncio.wait_for(process.wait(), 20) == 0
    # Whoever is connected first may take all of them.
    assert set(said["answers"]) <= {"a", "b"}
    assert said["sockets"] == ["ads.sock"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_backend_that_ends_in_order_loses_no_call(
    routing: Routing, four: dict[str, Backend]
) -> None:
    routing.set(*(four[name].instance() for name in "abc"))
    caller = await routing.client()
    await until_answered(caller, only("a", "b", "c"))
    await caller.start(COLLECTIONS, DOCS, PER_SECOND)
    routing.set(*(four[name].instance() for name in "ab"))
    await asyncio.sleep(0.2)
    four["c"].send(signal.SIGTERM)
    await asyncio.sleep(0.3)
    lap = await caller.stop()
    await four["c"].kill()
    await four["c"].start()
    assert lap["failed"] == {}


async def test_who_is_busier_for_each_call_gets_fewer(routing: Routing) -> None:
    async with backends(idle=0.0005, busy=0.002) as started:
        routing.set(*(backend.instance() for backend in started.values()))
        caller = await routing.client()
        await caller.start(COLLECTIONS, DOCS, per_second=200)
        for _ in range(TRIES_MAX):
            # A client waits a second before it believes what it hears.
            await asyncio.sleep(0.2)
            answered = (await caller.lap())["answered"]
            if answered.get("idle", 0) > 2 * answered.get("busy", 0) > 0:
                break
        else:
            raise AssertionError(f"calls are given without regard to load: {answered}")
        assert (await caller.stop())["failed"] == {}
