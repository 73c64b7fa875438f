"""What it takes to run a function, against a bare `python -c` that does the same.

The baseline starts an interpreter that imports `json` and prints a result, confined by nothing.
`warm` finds a confined process ready, as long as calls come no faster than these are made;
`cold` has to wait for one. `through the service` adds the source, the answer and its log;
`through gRPC` a client in another process, authentication and validation.
"""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from services.functions.sandbox.backends import choose
from services.functions.sandbox.launcher import Keeper
from services.functions.sandbox.limits import Invocation
from services.functions.sandbox.pool import Pool
from services.functions.settings import FunctionsSettings
from tests.benchmarks.measure import UNLIMITED, alternate
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.functions import LIMITS, FunctionParts, deploy, invoke
from tests.support.platform import one_process
from weft.functions.v1 import function_service_pb2 as pb
from weft.functions.v1.function_service_pb2_grpc import FunctionServiceStub

ROUNDS = 15
SOURCE = "def handler(a):\n    return {'twice': a * 2}\n"
BARE = "import json; print(json.dumps({'twice': json.loads('21') * 2}))"
PARENT = "tenants/default"
WARM_GOAL, COLD_GOAL = 1.0, 6.0


async def bare() -> None:
    """A subprocess."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BARE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out == b'{"twice": 42}\n'


async def run() -> list[Result]:
    """The results of the rounds."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keeper = Keeper(choose("auto"), folder / "scratch")
        pool = Pool(keeper, 1)
        stack.push_async_callback(pool.stop)
        service = FunctionParts(folder).service(FunctionsSettings(ready_max=1))
        await service.start()
        stack.push_async_callback(service.stop)
        await deploy(service, "double", SOURCE)
        weft = await stack.enter_async_context(one_process(folder / "data", **UNLIMITED))
        stub = FunctionServiceStub(weft.open_channel)
        request = pb.DeployFunctionRequest(parent=PARENT, function_id="double", source=SOURCE)
        await stub.DeployFunction(request, timeout=60)
        invocation = Invocation(SOURCE, "handler", "21")

        async def warm() -> None:
            sandbox, _ = await pool.take()
            ended = await sandbox.run(invocation, LIMITS, lambda stream, data: None)
            assert ended.result == '{"twice": 42}'

        async def cold() -> None:
            sandbox = await keeper.sandbox()
            await sandbox.run(invocation, LIMITS, lambda stream, data: None)

        async def served() -> None:
            assert (await invoke(service, "double", "21")).warm

        async def called() -> None:
            name = f"{PARENT}/functions/double"
            asked = pb.InvokeFunctionRequest(name=name, arguments_json="21")
            assert (await stub.InvokeFunction(asked, timeout=60)).warm

        variants = {
            "bare": _milliseconds(bare),
            "warm": _milliseconds(warm),
            "cold": _milliseconds(cold),
            "served": _milliseconds(served),
            "called": _milliseconds(called),
        }
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
    baseline = Baseline("ms, python -c", values["bare"])
    warm_goal = Goal(WARM_GOAL, at_most=True, of_ratio=True)
    cold_goal = Goal(COLD_GOAL, at_most=True, of_ratio=True)
    return [
        Result("warm start, result and end", "ms", values["warm"], baseline, warm_goal),
        Result("cold start, result and end", "ms", values["cold"], baseline, cold_goal),
        Result("warm, through the service", "ms", values["served"], baseline, warm_goal),
        Result("warm, through gRPC", "ms", values["called"], baseline, warm_goal),
    ]


def _milliseconds(work: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[float]]:
    async def measured() -> float:
        # So that what is to be ready is.
        await asyncio.sleep(0.5)
        started = time.perf_counter()
        await work()
        return (time.perf_counter() - started) * 1000

    return measured
