"""What is done to a running world; each harm returns once it is over."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable

from tests.chaos.world import Servers
from tests.support.platform import Platform

PAUSE_SECONDS_MAX = 1.6
"""Longer than a lease, so that some pauses cost an instance its turns."""
ABSENCE_SECONDS_MAX = 0.5

Harm = Callable[[Servers, random.Random], Awaitable[float]]
"""Returns when, on the monotonic clock, what was harmed was let go on."""


async def kill_instance(world: Servers, chance: random.Random) -> float:
    """kill -9 of one instance, which is started again at once."""
    victim = chance.choice(world.instances)
    await victim.kill()
    healing = time.monotonic()
    await victim.start()
    return healing


async def restart_instance(world: Servers, chance: random.Random) -> float:
    """SIGTERM of one instance, as in an upgrade; it is started again once it has ended."""
    victim = chance.choice(world.instances)
    await victim.stop()
    healing = time.monotonic()
    await victim.start()
    return healing


async def kill_instance_without_nats(world: Servers, chance: random.Random) -> float:
    """kill -9 of one instance, which is started again before the nats-server is back."""
    victim = chance.choice(world.instances)
    await asyncio.gather(world.nats.kill(), victim.kill())
    starting = asyncio.create_task(victim.start())
    await asyncio.sleep(chance.uniform(0.0, ABSENCE_SECONDS_MAX))
    healing = time.monotonic()
    await asyncio.gather(world.nats.start(), starting)
    return healing


async def kill_all_instances(world: Servers, chance: random.Random) -> float:
    """kill -9 of all instances, which are started again at once."""
    await asyncio.gather(*(instance.kill() for instance in world.instances))
    healing = time.monotonic()
    await asyncio.gather(*(instance.start() for instance in world.instances))
    return healing


async def stop_instance(world: Servers, chance: random.Random) -> float:
    """SIGSTOP of one instance for a while."""
    victim: Platform = chance.choice(world.instances)
    victim.signal(signal.SIGSTOP)
    await asyncio.sleep(chance.uniform(0.1, PAUSE_SECONDS_MAX))
    victim.signal(signal.SIGCONT)
    return time.monotonic()


async def kill_nats(world: Servers, chance: random.Random) -> float:
    """kill -9 of the nats-server, which is away for a moment."""
    await world.nats.kill()
    await asyncio.sleep(chance.uniform(0.0, ABSENCE_SECONDS_MAX))
    healing = time.monotonic()
    await world.nats.start()
    return healing


async def stop_nats(world: Servers, chance: random.Random) -> float:
    """SIGSTOP of the nats-server for a while."""
    world.nats.pause()
    await asyncio.sleep(chance.uniform(0.1, PAUSE_SECONDS_MAX))
    world.nats.resume()
    return time.monotonic()


async def kill_everything(world: Servers, chance: random.Random) -> float:
    """kill -9 of the nats-server and all instances, as when the machine's power is cut."""
    await asyncio.gather(world.nats.kill(), *(instance.kill() for instance in world.instances))
    healing = time.monotonic()
    await world.nats.start()
    await asyncio.gather(*(instance.start() for instance in world.instances))
    return healing


HARMS: dict[str, Harm] = {
    "kill an instance": kill_instance,
    "kill an instance without nats": kill_instance_without_nats,
    "restart an instance": restart_instance,
    "kill all instances": kill_all_instances,
    "stop an instance": stop_instance,
    "kill nats": kill_nats,
    "stop nats": stop_nats,
    "kill everything": kill_everything,
}
LIKELIHOODS = (4, 1, 1, 2, 2, 3, 1, 1)
