"""What is there to be harmed: a nats-server, two instances of Weft on it, a ledger."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.grpc_server import serving
from tests.support.ledger_server import LEDGER, Ledger
from tests.support.ledger_tools import register_credit
from tests.support.nats import NatsServer, running_nats
from tests.support.platform import Platform, platform
from weft.agents.v1 import agent_pb2
from weft.options.v1 import options_pb2

INSTANCES = 2
# A turn may meet more than one round's harm.
RESUMES_MAX = "50"


class InstanceAway(Exception):
    """No instance runs just now."""


@dataclass
class Servers:
    """What is harmed: a nats-server, and the instances on it."""

    nats: NatsServer
    instances: list[Platform]
    turn_about: Iterator[Platform]

    def any_instance(self) -> Platform:
        """One that runs, each in turn. Raises InstanceAway."""
        for _ in self.instances:
            instance = next(self.turn_about)
            if instance.channel is not None:
                return instance
        raise InstanceAway


@dataclass
class World(Servers):
    """The servers, and the agent that uses the ledger through the tool `credit`."""

    agent: str
    ledger_file: Path


@asynccontextmanager
async def servers(folder: Path, **settings: str) -> AsyncIterator[Servers]:
    """The servers, gone at the end however they were treated."""
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(running_nats(folder))
        instances = await asyncio.gather(
            *(
                stack.enter_async_context(
                    platform(folder / f"instance{n}", NATS_URL=nats.url, **settings)
                )
                for n in range(INSTANCES)
            )
        )
        yield Servers(nats, instances, itertools.cycle(instances))


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    """All of it, gone at the end however it was treated."""
    async with AsyncExitStack() as stack:
        ledger_file = folder / "ledger"
        # It deduplicates by key, as an idempotent tool does: so a key with two effects
        # is a fault of the ledger, and one effect under two keys a fault of Weft.
        ledger = Ledger(ledger_file, deduplicates=True, delay_before_seconds=0.02)
        address = await stack.enter_async_context(serving({LEDGER: ledger.handlers}))
        settings = {"WEFT_AGENTS_RESUMES_MAX": RESUMES_MAX}
        up = await stack.enter_async_context(servers(folder, **settings))
        await register_credit(up.instances[0], "credit", address, options_pb2.EFFECT_IDEMPOTENT)
        bindings = [agent_pb2.ToolBinding(tool=tool) for tool in ("calculator", "credit")]
        agent = await up.instances[0].apply("bot", agent_pb2.AgentSpec(tools=bindings))
        yield World(up.nats, up.instances, up.turn_about, agent, ledger_file)
