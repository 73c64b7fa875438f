"""A whole Weft in a process of its own, which can be killed, stopped and started again."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc.aio
import psutil

from tests.support.keyed import KeyedChannel, is_known, key_of
from tests.support.nats import running_nats
from tests.support.processes import ROOT
from weft.agents.v1 import agent_pb2, agent_service_pb2
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub
from weft.state.v1 import session_pb2, session_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub
from weft.state.v1.state_service_pb2_grpc import StateServiceStub
from weft.tools.v1.tool_service_pb2_grpc import ToolServiceStub

if TYPE_CHECKING:
    from weft.agents.v1.turn_service_pb2_grpc import TurnServiceAsyncStub
    from weft.state.v1.state_service_pb2_grpc import StateServiceAsyncStub
    from weft.tools.v1.tool_service_pb2_grpc import ToolServiceAsyncStub

TENANT = "tenants/default"
SPLIT = os.environ.get("WEFT_TEST_TOPOLOGY") == "split"
"""Whether each service runs in a process of its own, which is the other topology that all
system tests hold in."""
# Seven processes start there for one, on as many cores.
START_SECONDS_MAX = 180.0 if SPLIT else 60.0
POLL_SECONDS = 0.02


@dataclass
class Platform:
    """`python -m tests.support.serve` on `data_dir`; `environment` is added to ours.

    Where `serves` names services, it is a part of a deployment, on a NATS that `environment`
    names, and listens at `port` where that isn't 0. `prefix` is a command that becomes the one
    behind it, such as nsenter.
    With `split` each service has a process of its own, else `processes` have all of them;
    with `configured_models` the models service is as it is, instead of the scripted one.
    What it logs goes to `data_dir`'s sibling `<name>.log`.
    """

    data_dir: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    configured_models: bool = False
    split: bool = SPLIT
    processes: int = 1
    serves: Sequence[str] = ()
    port: int = 0
    prefix: Sequence[str] = ()
    addresses: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    channel: grpc.aio.Channel | None = None

    @property
    def log_file(self) -> Path:
        """Where the process's log goes, over all its starts."""
        return self.data_dir.with_name(f"{self.data_dir.name}.log")

    async def start(self, **environment: str) -> None:
        """Starts it, and returns once it serves. AssertionError where it ends before."""
        with self.log_file.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.prefix,
                sys.executable,
                "-m",
                "tests.support.serve",
                "--data-dir",
                str(self.data_dir),
                *(["--configured-models"] if self.configured_models else []),
                *(["--split"] if self.split and not self.serves else []),
                *("--processes", str(self.processes)),
                *(["--serves", *self.serves] if self.serves else []),
                *("--port", str(self.port)),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **self.environment, **environment},
            )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), START_SECONDS_MAX)
        assert line, f"it ended at its start:\n{self.log_file.read_text()[-2000:]}"
        self.addresses = json.loads(line)
        async with asyncio.timeout(START_SECONDS_MAX):
            # Of several that start at once one makes the key, and writes it a moment later.
            while not is_known(self.addresses["cluster"]):  # noqa: ASYNC110 - a file
                await asyncio.sleep(POLL_SECONDS)
        bare = grpc.aio.insecure_channel(self.addresses["grpc"])
        # Stubs take it for a channel.
        self.channel = cast(grpc.aio.Channel, KeyedChannel(bare, self.key))

    @property
    def key(self) -> str:
        """The API key of its administrator."""
        return key_of(self.addresses["cluster"])

    async def kill(self) -> None:
        """As in a crash; returns once it is gone."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.gone()

    async def stop(self) -> int:
        """As an operator does; returns its exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        return await self.gone()

    async def gone(self, seconds_max: float = 30.0) -> int:
        """Returns its exit code once it has ended, however that came."""
        assert self.process is not None
        code = await asyncio.wait_for(self.process.wait(), seconds_max)
        channel, self.channel = self.channel, None
        if channel is not None:
            # Calls under way hear that the connection broke, not that they were cancelled.
            await channel.close(grace=1.0)
        return code

    async def arm(self, failpoints: str) -> None:
        """Lets it die at a failpoint, whose passes are counted from here on."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.data_dir.with_name(f"{self.data_dir.name}.failpoints").write_text(failpoints)
        self.process.send_signal(signal.SIGUSR1)
        line = await asyncio.wait_for(self.process.stdout.readline(), START_SECONDS_MAX)
        assert line == b"armed\n"

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, such as SIGSTOP."""
        assert self.process is not None
        self.process.send_signal(number)

    def has_port(self, port: int) -> bool:
        """Whether a connection of one of its processes has this local port."""
        assert self.process is not None
        main = psutil.Process(self.process.pid)
        return any(
            connection.laddr and connection.laddr.port == port
            for each in (main, *main.children(recursive=True))
            for connection in each.net_connections("tcp")
        )

    @property
    def open_channel(self) -> grpc.aio.Channel:
        """The channel to it."""
        assert self.channel is not None
        return self.channel

    async def apply(self, agent: str, spec: agent_pb2.AgentSpec) -> str:
        """Makes an agent; returns its name."""
        request = agent_service_pb2.CreateAgentRequest(parent=TENANT, agent_id=agent, spec=spec)
        response = await AgentServiceStub(self.open_channel).CreateAgent(request, timeout=10)
        return response.agent.name

    async def session(
        self,
        agent: str,
        policy: "session_pb2.SubmitPolicy.ValueType" = session_pb2.SUBMIT_POLICY_REJECT,
    ) -> str:
        """Makes a session of the agent of that name; returns its name."""
        request = session_service_pb2.CreateSessionRequest(parent=agent, submit_policy=policy)
        response = await SessionServiceStub(self.open_channel).CreateSession(request, timeout=10)
        return response.session.name

    @property
    def turns(self) -> "TurnServiceAsyncStub":
        """A stub of its turns."""
        return TurnServiceStub(self.open_channel)

    @property
    def state(self) -> "StateServiceAsyncStub":
        """A stub of its state."""
        return StateServiceStub(self.open_channel)

    @property
    def tools(self) -> "ToolServiceAsyncStub":
        """A stub of its tools."""
        return ToolServiceStub(self.open_channel)


@asynccontextmanager
async def platform(data_dir: Path, **environment: str) -> AsyncIterator[Platform]:
    """A platform that is started, and killed at the end where it still runs."""
    async with _started(Platform(data_dir, environment)) as running:
        yield running


@asynccontextmanager
async def two_instances(
    folder: Path, **environment: str
) -> AsyncIterator[tuple[Platform, Platform]]:
    """Two platforms on one nats-server, and so on one log."""
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(running_nats(folder))
        one, two = await asyncio.gather(
            *(
                stack.enter_async_context(platform(folder / name, NATS_URL=nats.url, **environment))
                for name in ("one", "two")
            )
        )
        yield one, two


@asynccontextmanager
async def one_process(data_dir: Path, **environment: str) -> AsyncIterator[Platform]:
    """A platform that is one process in both topologies: for tests about that process."""
    async with _started(Platform(data_dir, environment, split=False)) as running:
        yield running


@asynccontextmanager
async def _started(running: Platform) -> AsyncIterator[Platform]:
    try:
        # A start that fails leaves a process, too.
        await running.start()
        yield running
    finally:
        if running.process is not None:
            await running.kill()
