"""Machines with a cable each, on this one: network namespaces on a bridge (Linux).

A program that uses them runs in a namespace of its own, `inside`, where it may make them;
all of it is gone with the program. It and the machines reach each other by their addresses,
and nothing else.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

HUB = "10.77.0.1"
"""Address of the program that made the machines."""
COMMAND_SECONDS_MAX = 10.0
_APART = (("unshare", "--user", "--map-root-user", "--net"), ("unshare", "--net"))
_PROBE = "ip link add mesh type bridge && ip link add one type veth peer name two"


def apart() -> tuple[str, ...] | str:
    """The command that runs another one where it may make machines, or why there is none."""
    said = ""
    for command in _APART:
        try:
            done = subprocess.run(
                [*command, "sh", "-c", _PROBE],
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS_MAX,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"no network namespaces here: {error}"
        if done.returncode == 0:
            return command
        said = done.stderr.strip()
    return f"no network namespaces here: {said}"


@dataclass(frozen=True, slots=True)
class Machine:
    """A namespace with one cable. `prefix` before a command runs it there."""

    name: str
    address: str
    prefix: tuple[str, ...]

    async def cut(self) -> None:
        """Pulls the cable: what is sent is lost, and nobody is told."""
        await _run("ip", "link", "set", f"to-{self.name}", "down")

    async def heal(self) -> None:
        """Plugs it in again."""
        await _run("ip", "link", "set", f"to-{self.name}", "up")


@asynccontextmanager
async def machines(*names: str) -> AsyncIterator[list[Machine]]:
    """Machines of these names, until the end of the block; called once, by what runs apart."""
    await _run("ip", "link", "set", "lo", "up")
    await _run("ip", "link", "add", "mesh", "type", "bridge")
    await _run("ip", "addr", "add", f"{HUB}/24", "dev", "mesh")
    await _run("ip", "link", "set", "mesh", "up")
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(_machine(name, f"10.77.0.{number}"))
            for number, name in enumerate(names, start=2)
        ]


@asynccontextmanager
async def _machine(name: str, address: str) -> AsyncIterator[Machine]:
    # It ends with this program, whose end closes the pipe.
    holder = await asyncio.create_subprocess_exec(
        *("unshare", "--net", "sh", "-c", "echo there; exec cat"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert await asyncio.wait_for(holder.stdout.readline(), COMMAND_SECONDS_MAX)
        prefix = ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
        cable = f"to-{name}"
        peer = ("type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        await _run("ip", "link", "add", cable, *peer)
        await _run("ip", "link", "set", cable, "master", "mesh", "up")
        await _run(*prefix, "ip", "link", "set", "lo", "up")
        await _run(*prefix, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        await _run(*prefix, "ip", "link", "set", "eth0", "up")
        yield Machine(name, address, prefix)
    finally:
        holder.kill()
        await holder.wait()


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, said = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS_MAX)
    assert process.returncode == 0, f"{command}: {said.decode()}"
