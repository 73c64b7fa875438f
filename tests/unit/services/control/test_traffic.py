"""The service of splits on a log in memory, and what follows it."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from mesh.call import Call
from mesh.clock import SYSTEM, Clock
from mesh.control.xds.mesh_view import Portion
from mesh.errors import FailedPrecondition, LimitExceeded, NotFound
from mesh.events.aggregate import Repository
from mesh.events.memory import MemoryEventStore
from services.control import traffic as module
from services.control.domain import SPLIT_FOLD, split_key
from services.control.rollbacks import Rollbacks
from services.control.splits import SERVICE_SPLITS, Splits
from services.control.traffic import Traffic
from tests.support.memory_instances import MemoryInstances
from weft.agents.v1 import agent_pb2, agent_service_pb2
from weft.control.v1 import instances_pb2, splits_pb2
from weft.control.v1 import traffic_service_pb2 as pb

SPLIT = "services/scheduler/split"
TENANT = "tenants/acme/agents/-"
BOT = "tenants/acme/agents/bot/split"
DRAINING = instances_pb2.INSTANCE_STATE_DRAINING
SERVING = instances_pb2.INSTANCE_STATE_SERVING


class Agents:
    """Has every agent, at revision 7."""

    async def GetAgent(  # noqa: N802 - gRPC's name
        self, request: agent_service_pb2.GetAgentRequest
    ) -> agent_service_pb2.GetAgentResponse:
        return agent_service_pb2.GetAgentResponse(
            agent=agent_pb2.Agent(name=request.name, revision=7)
        )


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clock = Clock(now_ns=lambda: int(self.now * 1e9), monotonic=lambda: self.now)


def call() -> Call:
    return Call("/weft.control.v1.TrafficService/Any", time.monotonic() + 10, "r1")


def instance(
    name: str, version: str, state: "instances_pb2.InstanceState.ValueType" = SERVING
) -> instances_pb2.Instance:
    return instances_pb2.Instance(
        name=f"instances/{name}", services=["scheduler"], version=version, state=state
    )


@pytest.fixture
def registry() -> MemoryInstances:
    found = MemoryInstances()
    for made in (instance("a", "1"), instance("b", "2"), instance("c", "3", DRAINING)):
        found.add(made)
    return found


@pytest.fixture
def store() -> MemoryEventStore:
    return MemoryEventStore()


def service(store: MemoryEventStore, registry: Any) -> Traffic:
    agents: Any = Agents()
    return Traffic(store, Repository(store, SPLIT_FOLD), registry, agents, ["scheduler"], SYSTEM)


@pytest.fixture
async def traffic(store: MemoryEventStore, registry: MemoryInstances) -> AsyncIterator[Traffic]:
    made = service(store, registry)
    await made.start()
    yield made
    await made.stop()


def request(name: str = SPLIT, **weights: int) -> pb.SetSplitRequest:
    """A split between versions `v1` and so on, or revisions where it is an agent's."""
    made = pb.SetSplitRequest(name=name)
    for version, weight in weights.items():
        if name.startswith("services/"):
            made.portions.add(version=version[1:], weight=weight)
        else:
            made.portions.add(agent_revision=int(version[1:]), weight=weight)
    return made


async def test_a_control_plane_is_told_of_portions_and_of_each_change(
    traffic: Traffic, store: MemoryEventStore
) -> None:
    await traffic.set_split(request(v1=90, v2=10), call())
    await traffic.set_split(request("tenants/acme/agents/bot/split", v1=1), call())
    told: list[dict[str, tuple[Portion, ...]]] = []
    splits = Splits(store, SERVICE_SPLITS)
    splits.on_change(lambda _: told.append(dict(splits.portions())))
    await traffic.set_split(request(v1=80, v2=20), call())
    await splits.start()
    await traffic.promote(pb.PromoteRequest(name=SPLIT, version="2"), call())
    await traffic.set_split(request(v1=50, v2=50, v3=0), call())
    await traffic.set_split(pb.SetSplitRequest(name=SPLIT), call())
    await splits.catch_up()
    await splits.stop()
    assert told == [
        {"scheduler": (Portion("1", 80, 1), Portion("2", 20, 1))},
        {"scheduler": (Portion("2", 100, 1),)},
        {"scheduler": (Portion("1", 50, 4), Portion("2", 50, 1), Portion("3", 0, 1))},
        {},
    ]


async def test_who_drains_takes_no_share(traffic: Traffic) -> None:
    with pytest.raises(FailedPrecondition, match="runs 3;"):
        await traffic.set_split(request(v1=1, v3=1), call())
    await traffic.set_split(request(v1=1, v3=0), call())


async def test_what_nobody_runs_is_promoted_only_where_that_is_wanted(traffic: Traffic) -> None:
    wanted = request(v1=1, v3=0)
    wanted.portions.add(version="gone")
    await traffic.set_split(wanted, call())
    for version in ("3", "gone"):
        with pytest.raises(FailedPrecondition, match=f"runs {version}; .*--allow-absent"):
            await traffic.promote(pb.PromoteRequest(name=SPLIT, version=version), call())
    absent = pb.PromoteRequest(name=SPLIT, version="gone", allow_absent=True)
    await traffic.promote(absent, call())
    with pytest.raises(FailedPrecondition, match="no portion of 2"):
        await traffic.promote(pb.PromoteRequest(name=SPLIT, version="2"), call())


async def test_a_promotion_that_comes_again_is_not_judged_again(
    traffic: Traffic, registry: MemoryInstances
) -> None:
    await traffic.set_split(request(v1=1, v2=1), call())
    wanted = pb.PromoteRequest(name=SPLIT, version="2", request_id="once")
    first = await traffic.promote(wanted, call())
    for each in registry.instances("scheduler"):
        each.state = DRAINING
    assert await traffic.promote(wanted, call()) == first


async def test_what_is_not_there_has_no_split(traffic: Traffic) -> None:
    with pytest.raises(NotFound):
        await traffic.set_split(request("services/nobody/split", v1=1), call())
    with pytest.raises(NotFound):
        await traffic.get_split(pb.GetSplitRequest(name=SPLIT), call())
    with pytest.raises(NotFound):
        await traffic.rollback(pb.RollbackRequest(name=SPLIT), call())


async def test_a_request_that_comes_again_is_not_judged_again(
    traffic: Traffic, registry: MemoryInstances
) -> None:
    wanted = request(v1=1, v2=1)
    wanted.request_id = "once"
    first = await traffic.set_split(wanted, call())
    for each in registry.instances("scheduler"):
        each.state = DRAINING
    assert await traffic.set_split(wanted, call()) == first


async def test_splits_are_listed_page_by_page_and_are_bounded(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"tenants/acme/agents/bot{n}/split" for n in range(5)]
    for name in names:
        await traffic.set_split(request(name, v7=1), call())
    await traffic.set_split(request("tenants/other/agents/bot/split", v7=1), call())
    found, token = [], ""
    for _ in range(3):
        wanted = pb.ListSplitsRequest(parent=TENANT, page_size=2, page_token=token)
        page = await traffic.list_splits(wanted, call())
        found += [each.name for each in page.splits]
        token = page.next_page_token
    assert (found, token) == (names, "")
    monkeypatch.setattr(module, "SPLITS_MAX", 5)
    with pytest.raises(LimitExceeded):
        await traffic.set_split(request("tenants/acme/agents/more/split", v7=1), call())
    await traffic.set_split(request(names[0], v6=1), call())


async def test_a_slow_watcher_gets_the_last_state_of_each(traffic: Traffic) -> None:
    watch = aiter(traffic.watch_splits(pb.WatchSplitsRequest(parent="services/-"), call()))
    assert list((await anext(watch)).splits) == []
    for weight in range(1, 6):
        await traffic.set_split(request(v1=weight), call())
    await traffic.list_splits(pb.ListSplitsRequest(parent="services/-"), call())
    (split,) = (await anext(watch)).splits
    assert split.portions[0].weight == 5
    waiting = asyncio.ensure_future(anext(watch))
    await traffic.set_split(request("tenants/acme/agents/bot/split", v7=1), call())
    await traffic.list_splits(pb.ListSplitsRequest(parent=TENANT), call())
    assert not waiting.done()
    waiting.cancel()


class Looks:
    """Several that look at the same splits."""

    def __init__(self, store: MemoryEventStore, registry: MemoryInstances, count: int) -> None:
        self._registry = registry
        self._hand = Hand()
        self.splits = [Splits(store) for _ in range(count)]
        self._rollbacks = [
            Rollbacks(splits, Repository(store, SPLIT_FOLD), registry, self._hand.clock)
            for splits in self.splits
        ]

    async def look(self, **served: tuple[int, int]) -> None:
        """All look, a second later; the instances say these calls and failures by then."""
        for each in self._registry.instances("scheduler"):
            calls, failures = served.get(each.name.rpartition("/")[2], (0, 0))
            del each.load.served[:]
            each.load.served.add(service="agents", calls=10 * calls, failures=10 * calls)
            each.load.served.add(service="scheduler", calls=calls, failures=failures)
        await self._all_look()

    async def look_at_turns(self, at: int, **ended: dict[int, tuple[int, int]]) -> None:
        """All look, a second later; the instances say these turns and failures of the bot's
        revisions by then, since its split is at revision `at`."""
        for each in self._registry.instances("agents"):
            del each.load.turns[:]
            for revision, (turns, failures) in ended.get(each.name.rpartition("/")[2], {}).items():
                each.load.turns.add(
                    split=split_key(BOT),
                    split_revision=at,
                    agent_revision=revision,
                    turns=turns,
                    failures=failures,
                )
        await self._all_look()

    async def _all_look(self) -> None:
        self._hand.now += 1
        for splits in self.splits:
            await splits.catch_up()
        await asyncio.gather(*(each._look() for each in self._rollbacks))


async def test_several_that_look_take_a_split_back_once(
    traffic: Traffic, store: MemoryEventStore, registry: MemoryInstances
) -> None:
    wanted = request(v1=90, v2=10)
    wanted.rollback_policy.failures_per_million_max = 100_000
    wanted.rollback_policy.calls_min = 10
    await traffic.set_split(wanted, call())
    looks = Looks(store, registry, 3)
    for splits in looks.splits:
        await splits.start()
    await looks.look(a=(1_000, 1_000), b=(1_000, 1_000))
    await looks.look(a=(2_000, 1_100), b=(1_009, 1_009))
    split = (await traffic.get_split(pb.GetSplitRequest(name=SPLIT), call())).split
    assert len(split.portions) == 2
    await looks.look(a=(3_000, 1_200), b=(1_010, 1_010))
    await looks.look(a=(3_000, 1_200), b=(1_020, 1_020))
    for splits in looks.splits:
        await splits.stop()
    split = (await traffic.get_split(pb.GetSplitRequest(name=SPLIT), call())).split
    assert [each.version for each in split.portions] == ["1"]
    assert [each.action for each in split.changes] == [
        splits_pb2.SPLIT_ACTION_ROLLED_BACK_BY_POLICY,
        splits_pb2.SPLIT_ACTION_SET,
    ]
    assert split.changes[0].reason == "10 of 10 calls of 2 failed"


async def test_what_can_not_be_taken_back_yet_is_once_it_can(
    traffic: Traffic, store: MemoryEventStore, registry: MemoryInstances
) -> None:
    wanted = request(v1=90, v2=10)
    wanted.rollback_policy.calls_min = 1
    await traffic.set_split(wanted, call())
    base = next(each for each in registry.instances() if each.version == "1")
    base.state = DRAINING
    looks = Looks(store, registry, 1)
    await looks.splits[0].start()
    await looks.look()
    await looks.look(b=(5, 5))
    assert len((await traffic.get_split(pb.GetSplitRequest(name=SPLIT), call())).split.changes) == 1
    base.state = SERVING
    await looks.look(b=(5, 5))
    await looks.splits[0].stop()
    split = (await traffic.get_split(pb.GetSplitRequest(name=SPLIT), call())).split
    assert [each.version for each in split.portions] == ["1"]


@pytest.fixture
def agents(registry: MemoryInstances) -> MemoryInstances:
    """With two instances that run turns."""
    for name in ("x", "y"):
        made = instance(name, "1")
        made.services[:] = ["agents"]
        registry.add(made)
    return registry


def bot_split(failures_per_million_max: int = 100_000, **weights: int) -> pb.SetSplitRequest:
    made = request(BOT, **weights)
    made.rollback_policy.failures_per_million_max = failures_per_million_max
    made.rollback_policy.calls_min = 10
    return made


async def test_several_that_look_take_an_agents_split_back_once(
    traffic: Traffic, store: MemoryEventStore, agents: MemoryInstances
) -> None:
    await traffic.set_split(bot_split(v6=90, v7=10), call())
    looks = Looks(store, agents, 3)
    for splits in looks.splits:
        await splits.start()
    # At first sight nobody knows when they ended; nor do turns before the split say anything.
    await looks.look_at_turns(1, x={7: (500, 500)})
    await looks.look_at_turns(0, x={7: (900, 900)})
    await looks.look_at_turns(1, x={6: (80, 1), 7: (505, 505)}, y={7: (4, 4)})
    assert len((await traffic.get_split(pb.GetSplitRequest(name=BOT), call())).split.changes) == 1
    await looks.look_at_turns(1, x={6: (90, 1), 7: (505, 505)}, y={7: (5, 5)})
    await looks.look_at_turns(1, x={6: (90, 1), 7: (550, 550)}, y={7: (9, 9)})
    for splits in looks.splits:
        await splits.stop()
    split = (await traffic.get_split(pb.GetSplitRequest(name=BOT), call())).split
    assert [each.agent_revision for each in split.portions] == [6]
    assert [each.action for each in split.changes] == [
        splits_pb2.SPLIT_ACTION_ROLLED_BACK_BY_POLICY,
        splits_pb2.SPLIT_ACTION_SET,
    ]
    assert split.changes[0].reason == "10 of 10 turns of revision 7 failed"
    assert not split.HasField("rollback_policy")


async def test_an_agents_base_that_fails_stays_and_is_told_of_once(
    traffic: Traffic, store: MemoryEventStore, agents: MemoryInstances
) -> None:
    await traffic.set_split(bot_split(v6=90, v7=10), call())
    looks = Looks(store, agents, 1)
    await looks.splits[0].start()
    await looks.look_at_turns(1)
    with capture_logs() as logs:
        for turns in (20, 30):
            await looks.look_at_turns(1, x={6: (turns, turns), 7: (turns, 0)})
    await looks.splits[0].stop()
    split = (await traffic.get_split(pb.GetSplitRequest(name=BOT), call())).split
    assert len(split.changes) == 1
    assert [each["event"] for each in logs] == ["split_not_rolled_back"]


async def test_turns_that_one_who_runs_none_says_do_not_count(
    traffic: Traffic, store: MemoryEventStore, agents: MemoryInstances
) -> None:
    await traffic.set_split(bot_split(v6=90, v7=10), call())
    looks = Looks(store, agents, 1)
    await looks.splits[0].start()
    await looks.look_at_turns(1)
    scheduler = next(each for each in agents.instances() if each.name == "instances/a")
    scheduler.load.turns.add(
        split=split_key(BOT), split_revision=1, agent_revision=7, turns=99, failures=99
    )
    await looks.look_at_turns(1)
    await looks.splits[0].stop()
    split = (await traffic.get_split(pb.GetSplitRequest(name=BOT), call())).split
    assert len(split.changes) == 1


async def test_a_split_that_changes_while_others_are_judged_is_left_alone(
    traffic: Traffic, store: MemoryEventStore, agents: MemoryInstances
) -> None:
    await traffic.set_split(bot_split(v6=90, v7=10), call())
    looks = Looks(store, agents, 1)
    splits, rollbacks = looks.splits[0], looks._rollbacks[0]
    await splits.start()
    await looks.look_at_turns(1)
    one = agents.instances("agents")[0]
    one.load.turns.add(
        split=split_key(BOT), split_revision=1, agent_revision=7, turns=10, failures=10
    )
    rollbacks._count()
    await traffic.set_split(bot_split(v6=80, v7=20), call())
    await splits.catch_up()
    (state,) = splits
    await rollbacks._judge(state, rollbacks._windows[BOT])
    await splits.stop()
    split = (await traffic.get_split(pb.GetSplitRequest(name=BOT), call())).split
    assert [each.weight for each in split.portions] == [80, 20]
