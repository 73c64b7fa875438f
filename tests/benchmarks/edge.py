"""What Weft's whole edge adds to a unary call: trace, metrics, errors, limits, authentication,
rate limit, authorization, deadline and validation, with caches warm, against the same handler
served by bare grpc.aio in the same run."""

import contextlib
from typing import Any

import grpc.aio

from tests.benchmarks import edge_server
from tests.benchmarks.edge_server import PATH, REQUEST
from tests.benchmarks.frames import calls_per_second
from tests.benchmarks.measure import alternate, median_ms, per_second
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.keyed import bearer
from tests.support.processes import line_of, running

ROUNDS = 9
CALLS = 300
CLIENTS = 16
REPLAYED_CALLS = 4000
METADATA = (bearer("key"),)


class Served:
    """One of the two servers, in a process of its own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address)
        self._call: Any = self.channel.unary_unary(PATH)

    async def call(self) -> None:
        """One call by gRPC's own client."""
        await self._call(REQUEST, metadata=METADATA, timeout=10)

    async def one_ms(self) -> float:
        """One call after the other."""
        return await median_ms(self.call, CALLS)

    async def many_per_second(self) -> float:
        """Sixteen at once, by gRPC's own client, which takes as much of the machine."""
        return await per_second([self.call] * CLIENTS, CALLS)

    async def replayed_per_second(self) -> float:
        """Sixteen at once, by a client that costs next to nothing."""
        return await calls_per_second(
            self.address,
            PATH,
            REQUEST,
            dict(METADATA),
            count=REPLAYED_CALLS,
            in_flight=CLIENTS,
        )


async def run() -> list[Result]:
    """The results of the rounds."""
    async with contextlib.AsyncExitStack() as stack:
        served = {}
        for kind in ("bare", "busy", "edge"):
            process = await stack.enter_async_context(running(edge_server.__name__, kind))
            served[kind] = Served(await line_of(process))
            await stack.enter_async_context(served[kind].channel)
        variants = {
            f"{kind} {measure}": getattr(each, f"{measure}_{unit}")
            for kind, each in served.items()
            for measure, unit in (("one", "ms"), ("many", "per_second"), ("replayed", "per_second"))
        }
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
    goal = Goal(0.8, at_most=False, of_ratio=True)
    return [
        Result(
            "edge, unary call, p50",
            "ms",
            values["edge one"],
            Baseline("ms, bare grpc.aio", values["bare one"]),
        ),
        Result(
            "edge, unary calls, 16 at once",
            "/s",
            values["edge many"],
            Baseline("/s, bare grpc.aio", values["bare many"]),
            goal,
        ),
        Result(
            "bare, computing 5 us, 16 at once",
            "/s",
            values["busy many"],
            Baseline("/s, bare grpc.aio", values["bare many"]),
        ),
        Result(
            "edge, unary calls, 16 at once, server alone",
            "/s",
            values["edge replayed"],
            Baseline("/s, bare grpc.aio", values["bare replayed"]),
            goal,
        ),
    ]
