"""`python -m tests.support.partition FOLDER writers|weft`: machines that are cut off, one after
the other, while they write. Runs in a network namespace of its own (`namespaces.apart`).

NATS runs on the machine in the middle, which is never cut off, and so do the clients. The
last line on stdout is what was seen, as JSON.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio

from mesh.events.jetstream.store import connect_store
from mesh.events.store import StreamName
from mesh.ids import new_id
from mesh.telemetry.logs import configure_logs
from services.scheduler.owners import owner_of
from tests.support.config_home import config_home
from tests.support.events import commits_of, texts_of
from tests.support.grpc_server import serving
from tests.support.ledger_server import LEDGER, Ledger, effects_by_key
from tests.support.ledger_tools import credit, register_credit
from tests.support.namespaces import HUB, Machine, machines
from tests.support.nats import running_nats
from tests.support.plans import plan, writing
from tests.support.platform import TENANT, Platform
from tests.support.processes import end_with_parent, finished, line_of, running, until
from tests.support.scheduling import Echo, Scheduling, spec
from tests.support.stored_session import (
    fact_of,
    faults_of_session,
    faults_of_view,
    stored_events,
)
from tests.support.task_log import ends_in_the_log
from tests.support.turn_client import TurnClient
from tests.support.weft_up import WEFT
from weft.agents.v1 import agent_pb2
from weft.control.v1 import instances_pb2, registry_service_pb2
from weft.control.v1.registry_service_pb2_grpc import RegistryServiceStub
from weft.options.v1 import options_pb2
from weft.scheduler.v1 import queue_service_pb2, tasks_pb2
from weft.state.v1 import events_pb2

PLAN = plan({"text": "done"})
STREAM = StreamName.parse("state.acme.partitioned")
QUIET_SECONDS = 1.0
CUT_SECONDS = 4.0
"""Several leases, and longer than an append is tried by the writers."""
BACK_SECONDS_MAX = 30.0
STEP_SECONDS = 0.5
SUBMIT_SECONDS = 0.05
SETTINGS = {
    # They trust the bridge: who isn't on loopback speaks TLS else.
    "WEFT_TLS_PLAIN_TEXT": "1",
    "WEFT_SCHEDULER_LEASE_SECONDS": "1",
    "WEFT_SCHEDULER_HEARTBEAT_SECONDS": "0.2",
}


async def writers(folder: Path) -> dict[str, Any]:
    """Two writers of one stream; the one that owns it is cut off, and doesn't heed its lease."""
    async with AsyncExitStack() as stack:
        first, second = await stack.enter_async_context(machines("first", "second"))
        nats = await stack.enter_async_context(running_nats(folder, host=HUB))
        store = await connect_store(nats.url, name="reader")
        stack.push_async_callback(store.close)
        module, common = "tests.support.partition_writer", (nats.url, STREAM)
        owner = await stack.enter_async_context(
            running(module, "first", *common, "heedless", prefix=first.prefix)
        )
        attempts = [json.loads(await line_of(owner))]
        other = await stack.enter_async_context(
            running(module, "second", *common, prefix=second.prefix)
        )
        reading = [asyncio.create_task(_read(each, attempts)) for each in (owner, other)]
        await asyncio.sleep(QUIET_SECONDS)
        await first.cut()
        cut = time.monotonic()
        await asyncio.sleep(CUT_SECONDS)
        healed = time.monotonic()
        await first.heal()
        await _refused(attempts, cut)
        await asyncio.sleep(QUIET_SECONDS)
        for process in (owner, other):
            process.terminate()
        await asyncio.wait_for(asyncio.gather(*reading), BACK_SECONDS_MAX)
        texts = texts_of(await commits_of(store, STREAM))
    return {"texts": texts, "attempts": attempts, "cut": cut, "healed": healed}


async def _read(process: asyncio.subprocess.Process, attempts: list[dict[str, Any]]) -> None:
    while line := await line_of(process):
        attempts.append(json.loads(line))


async def _refused(attempts: list[dict[str, Any]], cut: float) -> None:
    """Returns once the first writer was refused since it was cut off."""

    def was_refused() -> bool:
        return any(each["became"] == "refused" and each["began"] > cut for each in attempts)

    await until(was_refused, BACK_SECONDS_MAX)


class Pair:
    """Two whole Wefts, each on a machine of its own."""

    def __init__(self, platforms: list[Platform], cables: list[Machine], ledger: Path) -> None:
        self.platforms = platforms
        self.cables = cables
        self.ledger_file = ledger

    async def round(self, agent: str, number: int) -> dict[str, Any]:
        """Cuts one off that runs a turn and owns a queue; what became of both."""
        gone, stays = self.platforms[number], self.platforms[1 - number]
        cable = self.cables[number]
        spare = await stays.session(agent)
        session = await gone.session(agent)
        steps = [writing(seconds=STEP_SECONDS, calls=[credit("credit")])] * 4
        client = TurnClient(session, plan(*steps, {"text": "done"}))
        queue = Scheduling(stays, await self._queue_of(gone))
        echo = Echo()
        async with queue.working({"echo": echo}, worker_id=f"worker-{number}"):
            submitting = asyncio.create_task(self._submit(queue, echo))
            await client.until(gone, "tool_result")
            await cable.cut()
            cut = time.monotonic()
            turning = asyncio.create_task(self._followed(client, stays))
            tried = asyncio.create_task(self._try_there(gone, cable, spare, queue.queue))
            await asyncio.sleep(CUT_SECONDS)
            accepted_there = await tried
            await cable.heal()
            healed = time.monotonic()
            turned = await turning
            await self._back(gone, stays)
            back = time.monotonic()
            submitting.cancel()
            tasks = await submitting
            states = [(await queue.done(name)).state for name in tasks["names"]]
        ends = await ends_in_the_log(stays)
        return {
            "instance": stays.addresses["instance"],
            "accepted_there": accepted_there,
            "kinds": client.kinds,
            "turned_after_seconds": turned - cut,
            "back_after_seconds": back - healed,
            "resumed_by": await self._resumers(stays, session),
            "faults": [
                str(fault)
                for platform in self.platforms
                for fault in (
                    *await faults_of_session(platform, session),
                    *await faults_of_view(platform, client),
                )
            ],
            "effects": [
                count
                for key, count in effects_by_key(self.ledger_file).items()
                if key.startswith(client.turn)
            ],
            "tasks": len(states),
            "states": sorted({tasks_pb2.TaskState.Name(state) for state in states}),
            "slowest_submit_seconds": tasks["slowest_seconds"],
            "attempts_run_twice": sum(count > 1 for count in Counter(echo.ran).values()),
            "ends": sorted({ends[name.rpartition("/")[2]] for name in tasks["names"]}),
        }

    async def _followed(self, client: TurnClient, platform: Platform) -> float:
        """When the turn had ended."""
        await client.run(platform)
        return time.monotonic()

    async def _queue_of(self, owner: Platform) -> str:
        """A new queue that this one owns."""
        names = [f"instances/{each.addresses['instance']}" for each in self.platforms]
        mine = f"instances/{owner.addresses['instance']}"
        while True:
            queue_id = f"q-{new_id()}"
            if owner_of(queue_id, names) == mine:
                break
        request = queue_service_pb2.CreateQueueRequest(parent=TENANT, queue_id=queue_id)
        await Scheduling(owner).queues.CreateQueue(request, timeout=10)
        return f"{TENANT}/queues/{queue_id}"

    async def _submit(self, queue: Scheduling, echo: Echo) -> dict[str, Any]:
        """Tasks, one after the other, until it is cancelled."""
        names, slowest = [], 0.0
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                began = time.monotonic()
                task = await asyncio.shield(
                    queue.submit_surely(spec(payload=b"x"), request_id=new_id())
                )
                slowest = max(slowest, time.monotonic() - began)
                names.append(task.name)
                await asyncio.sleep(SUBMIT_SECONDS)
        return {"names": names, "slowest_seconds": slowest}

    async def _try_there(
        self, gone: Platform, cable: Machine, session: str, queue: str
    ) -> list[str]:
        """What the one that is cut off takes of a caller on its own machine."""
        calls = {
            "weft.agents.v1.TurnService/RunTurn": {
                "session": session,
                "input": plan({"text": "x"}),
            },
            "weft.scheduler.v1.TaskService/SubmitTask": {
                "parent": queue,
                "spec": {"capability": "echo"},
            },
        }

        async def accepted(method: str) -> bool:
            options = ("--address", gone.addresses["grpc"], "--insecure", "--timeout", "3")
            call = (str(WEFT), "call", method, "-d", json.dumps(calls[method]), *options)
            key = {**os.environ, "WEFT_API_KEY": gone.key}
            done = await asyncio.to_thread(finished, (*cable.prefix, *call), environment=key)
            return done.returncode == 0

        answers = await asyncio.gather(*map(accepted, calls))
        return [method for method, answer in zip(calls, answers, strict=True) if answer]

    async def _back(self, gone: Platform, stays: Platform) -> None:
        """Returns once each sees both of them serving."""
        async with asyncio.timeout(BACK_SECONDS_MAX):
            for platform in (gone, stays):
                while await self._serving(platform) < len(self.platforms):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    async def _serving(self, platform: Platform) -> int:
        request = registry_service_pb2.ListInstancesRequest()
        registry: Any = RegistryServiceStub(platform.open_channel)
        try:
            listed = await registry.ListInstances(request, timeout=2)
        except grpc.aio.AioRpcError:
            return 0
        serving = instances_pb2.INSTANCE_STATE_SERVING
        return sum(each.state == serving for each in listed.instances)

    async def _resumers(self, platform: Platform, session: str) -> list[str]:
        facts = [fact_of(event) for event in await stored_events(platform, session)]
        return [fact.owner for fact in facts if isinstance(fact, events_pb2.TurnResumed)]


@contextlib.asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[tuple[Pair, str]]:
    """The pair, and an agent with an idempotent tool whose effects are counted."""
    async with AsyncExitStack() as stack:
        cables = await stack.enter_async_context(machines("one", "two"))
        nats = await stack.enter_async_context(running_nats(folder, host=HUB))
        ledger = Ledger(folder / "ledger", deduplicates=True, delay_before_seconds=0.02)
        address = await stack.enter_async_context(serving({LEDGER: ledger.handlers}, host=HUB))
        platforms = []
        for cable in cables:
            settings = {"NATS_URL": nats.url, "WEFT_RUNTIME_HOST": cable.address, **SETTINGS}
            made = Platform(folder / cable.name, settings, split=False, prefix=cable.prefix)
            stack.push_async_callback(_killed, made)
            platforms.append(made)
        for made in platforms:
            await made.start()
        first = platforms[0]
        await register_credit(first, "credit", address, options_pb2.EFFECT_IDEMPOTENT)
        bindings = [agent_pb2.ToolBinding(tool="credit")]
        agent = await first.apply("bot", agent_pb2.AgentSpec(tools=bindings))
        yield Pair(platforms, cables, folder / "ledger"), agent


async def _killed(platform: Platform) -> None:
    if platform.process is not None:
        await platform.kill()


async def weft(folder: Path) -> dict[str, Any]:
    """Two Wefts; first one is cut off, then, when it's back, the other."""
    async with pair(folder) as (both, agent):
        return {"rounds": [await both.round(agent, number) for number in range(2)]}


def main() -> None:
    """See the module."""
    folder, what = Path(sys.argv[1]), {"writers": writers, "weft": weft}[sys.argv[2]]
    with config_home():
        seen = asyncio.run(what(folder))
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    end_with_parent()
    configure_logs("error")
    main()
