"""A deployment in many processes, two of each, in two zones, and clients that load it."""

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tests.benchmarks.measure import UNLIMITED
from tests.chaos.world import RESUMES_MAX, World
from tests.support.grpc_server import serving
from tests.support.ledger_server import LEDGER, Ledger
from tests.support.ledger_tools import register_credit
from tests.support.nats import running_nats
from tests.support.platform import Platform
from tests.support.processes import line_of, running
from weft.agents.v1 import agent_pb2
from weft.options.v1 import options_pb2

PARTS = {
    "control": ("auth", "control", "models"),
    "tools": ("tools",),
    "work": ("agents", "scheduler", "state"),
    "gateway": ("gateway",),
}
"""The services of each part. `blobs` and `vectors` run in one process only, with the first of
`control`."""
ZONES = ("east", "west")
SCRAPE_SECONDS_MAX = 5.0


class Load:
    """A client's process; see `tests.support.mesh_load`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def start(self, per_second: float) -> None:
        """Begins to call."""
        await self._do(do="start", per_second=per_second)

    async def lap(self, since: float | None = None) -> dict[str, Any]:
        """What became of the calls that ended since the last lap."""
        lap: dict[str, Any] = await self._do(do="lap", since=since)
        return lap

    async def stop(self, since: float | None = None) -> dict[str, Any]:
        """Ends the load, once all of its calls have; its last lap."""
        lap: dict[str, Any] = await self._do(do="stop", since=since)
        return lap

    async def _do(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        answer = await line_of(self._process)
        assert answer, "the client ended"
        return json.loads(answer)


@dataclass
class MeshWorld:
    """The processes by part, those of the first zone first."""

    parts: dict[str, list[Platform]]
    turns: World
    """The gateways, as whoever asks for turns sees them."""

    @property
    def gateways(self) -> str:
        """The target of all gateways."""
        return "ipv4:" + ",".join(each.addresses["grpc"] for each in self.parts["gateway"])

    @asynccontextmanager
    async def client(self, target: str = "", bootstrap: str = "") -> AsyncIterator[Load]:
        """A client of the gateways, or of what else the target says."""
        arguments = (target or self.gateways, *([bootstrap] if bootstrap else []))
        async with running("tests.support.mesh_load", *arguments) as process:
            assert process.stdin is not None
            process.stdin.write(f"{self.turns.instances[0].key}\n".encode())
            yield Load(process)


async def calls_of(process: Platform) -> float:
    """How many calls for the list of tools a process has answered since its start."""
    url = f"http://{process.addresses['http']}/metrics"

    def scraped() -> str:
        with urlopen(url, timeout=SCRAPE_SECONDS_MAX) as answer:
            text: str = answer.read().decode()
            return text

    lines = (await asyncio.to_thread(scraped)).splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("weft_rpc_calls_total{") and 'method="ListTools"' in line
    )


@asynccontextmanager
async def mesh_world(folder: Path) -> AsyncIterator[MeshWorld]:
    """All of it, gone at the end however it was treated."""
    async with AsyncExitStack() as stack:
        ledger_file = folder / "ledger"
        ledger = Ledger(ledger_file, deduplicates=True, delay_before_seconds=0.02)
        address = await stack.enter_async_context(serving({LEDGER: ledger.handlers}))
        nats = await stack.enter_async_context(running_nats(folder))
        parts = {name: list(_replicas(folder, name, nats.url)) for name in PARTS}
        for each in itertools.chain(*parts.values()):
            stack.push_async_callback(_killed, each)
        # It makes the first key.
        await parts["control"][0].start()
        others = [each for each in itertools.chain(*parts.values()) if each.process is None]
        await asyncio.gather(*(each.start() for each in others))
        gateways = parts["gateway"]
        await register_credit(gateways[0], "credit", address, options_pb2.EFFECT_IDEMPOTENT)
        bindings = [agent_pb2.ToolBinding(tool=tool) for tool in ("calculator", "credit")]
        agent = await gateways[0].apply("bot", agent_pb2.AgentSpec(tools=bindings))
        turns = World(nats, gateways, itertools.cycle(gateways), agent, ledger_file)
        yield MeshWorld(parts, turns)


def _replicas(folder: Path, name: str, nats_url: str) -> Iterator[Platform]:
    for number, zone in enumerate(ZONES):
        settings = {
            **UNLIMITED,
            "NATS_URL": nats_url,
            "WEFT_ZONE": zone,
            "WEFT_AGENTS_RESUMES_MAX": RESUMES_MAX,
        }
        alone = ("blobs", "functions", "vectors") if name == "control" and number == 0 else ()
        # Clients of gateways know them by their port.
        port = _free_port() if name == "gateway" else 0
        yield Platform(
            folder / f"{name}-{zone}", settings, serves=(*PARTS[name], *alone), port=port
        )


async def _killed(platform: Platform) -> None:
    if platform.process is not None:
        await platform.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
