"""Functions in whole processes: as tools, killed in the middle, apart from their callers, by the
command line."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.platform import Platform, one_process
from tests.support.weft_up import weft
from weft.auth.v1 import audit_service_pb2
from weft.auth.v1.audit_service_pb2_grpc import AuditServiceStub
from weft.functions.v1 import function_service_pb2 as pb
from weft.functions.v1.function_service_pb2_grpc import FunctionServiceStub
from weft.options.v1 import options_pb2
from weft.tools.v1 import tool_service_pb2 as tools_pb
from weft.tools.v1 import tools_pb2
from weft.tools.v1.tool_service_pb2_grpc import ToolServiceStub

PARENT = "tenants/default"
NAME = f"{PARENT}/functions/double"
DOUBLE = (
    "def handler(a, context):\n    print('doubling')\n"
    "    return {'twice': a.get('x', 0) * 2, 'key': context['idempotency_key']}\n"
)
SLEEPS = "import time\ndef handler(a):\n    print('begun', flush=True)\n    time.sleep(60)\n"
SCHEMA = '{"type": "object", "properties": {"x": {"type": "integer"}}}'

pytestmark = pytest.mark.timeout(300)


def stub(of: Platform) -> Any:
    return FunctionServiceStub(of.open_channel)


async def deploy(of: Platform, source: str, function_id: str = "double") -> Any:
    request = pb.DeployFunctionRequest(parent=PARENT, function_id=function_id, source=source)
    return (await stub(of).DeployFunction(request, timeout=60)).function


async def invoke(of: Platform, arguments: Any, name: str = NAME, **fields: Any) -> Any:
    request = pb.InvokeFunctionRequest(name=name, arguments_json=json.dumps(arguments), **fields)
    return await stub(of).InvokeFunction(request, timeout=60)


def sandboxed(of: Platform) -> list[psutil.Process]:
    """Processes of functions, by the folders of their own."""
    scratch = str(of.data_dir / "functions/scratch/s-")
    processes = psutil.process_iter(["cwd"])
    return [each for each in processes if (each.info["cwd"] or "").startswith(scratch)]


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
async def weft_up(tmp_path: Path) -> AsyncIterator[Platform]:
    async with one_process(tmp_path / "data") as running:
        yield running


async def register(of: Platform) -> None:
    request = tools_pb.RegisterToolRequest(
        parent=PARENT,
        tool_id="double",
        effect=options_pb2.EFFECT_IDEMPOTENT,
        function=tools_pb2.FunctionTool(name=NAME),
        parameters_json_schema=SCHEMA,
    )
    tools: Any = ToolServiceStub(of.open_channel)
    tool = (await tools.RegisterTool(request, timeout=30)).tool
    assert tool.function.name == NAME


async def call_tool(of: Platform, arguments: Any, key: str = "k/1") -> Any:
    request = tools_pb.InvokeToolRequest(
        name=f"{PARENT}/tools/double", arguments_json=json.dumps(arguments), idempotency_key=key
    )
    tools: Any = ToolServiceStub(of.open_channel)
    return await tools.InvokeTool(request, timeout=60)


async def test_a_function_is_a_tool(weft_up: Platform) -> None:
    await deploy(weft_up, DOUBLE)
    await register(weft_up)
    answer = await call_tool(weft_up, {"x": 21})
    assert (json.loads(answer.content), answer.is_error) == ({"twice": 42, "key": "k/1"}, False)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call_tool(weft_up, {"x": "no number"})
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await deploy(weft_up, "def handler(a):\n    raise ValueError('no')\n")
    failed = await call_tool(weft_up, {"x": 2}, key="k/2")
    assert failed.is_error
    assert failed.content.startswith("raised: ValueError: no")


async def test_a_process_that_is_killed_leaves_no_function_running(weft_up: Platform) -> None:
    await deploy(weft_up, SLEEPS)
    invoking = asyncio.ensure_future(invoke(weft_up, {}))
    await eventually(lambda: len(sandboxed(weft_up)) > 0, seconds=30)
    await asyncio.sleep(0.3)
    assert weft_up.process is not None
    before = psutil.Process(weft_up.process.pid).children(recursive=True)
    await weft_up.kill()
    await asyncio.gather(invoking, return_exceptions=True)
    await eventually(lambda: sandboxed(weft_up) == [], seconds=10)
    # nats-server ends by itself, too.
    await eventually(lambda: all(map(ended, before)), seconds=20)
    await weft_up.start()
    await deploy(weft_up, DOUBLE)
    assert json.loads((await invoke(weft_up, {"x": 1})).result_json)["twice"] == 2


async def test_a_call_that_is_given_up_ends_its_function(weft_up: Platform) -> None:
    await deploy(weft_up, SLEEPS)
    invoking = stub(weft_up).InvokeFunction(pb.InvokeFunctionRequest(name=NAME), timeout=60)
    entries: list[str] = []
    watching = pb.WatchFunctionLogsRequest(name=NAME)
    async for answer in stub(weft_up).WatchFunctionLogs(watching, timeout=30):
        entries += [entry.text for entry in answer.entries]
        break
    # It was told while the function runs.
    assert entries == ["begun\n"]
    busy = {process.pid for process in sandboxed(weft_up)}
    invoking.cancel()
    await eventually(lambda: busy - {each.pid for each in sandboxed(weft_up)} != set(), seconds=10)
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await stub(weft_up).InvokeFunction(pb.InvokeFunctionRequest(name=NAME), timeout=1)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_functions_are_reached_through_a_gateway(tmp_path: Path) -> None:
    """Where each service runs in a process of its own."""
    running = Platform(tmp_path / "data", split=True)
    try:
        await running.start()
        await deploy(running, DOUBLE)
        assert json.loads((await invoke(running, {"x": 4})).result_json)["twice"] == 8
        await register(running)
        assert json.loads((await call_tool(running, {"x": 5})).content)["twice"] == 10
        # The key is handed on: it stands for those arguments.
        refused = await call_tool(running, {"x": 6})
        assert refused.is_error
        assert "was used before" in refused.content
    finally:
        if running.process is not None:
            await running.kill()


async def test_who_deployed_is_in_the_audit(weft_up: Platform) -> None:
    await deploy(weft_up, DOUBLE)
    audit: Any = AuditServiceStub(weft_up.open_channel)
    request = audit_service_pb2.ListAuditEntriesRequest(parent=PARENT, resource=NAME)
    entries = (await audit.ListAuditEntries(request, timeout=10)).entries
    assert [list(entry.actions) for entry in entries] == [["weft.functions.v1.FunctionDeployed"]]
    assert "/apiKeys/" in entries[0].actor


async def test_the_command_line_deploys_and_invokes(weft_up: Platform, tmp_path: Path) -> None:
    source = tmp_path / "double.py"
    source.write_text(DOUBLE)
    about = {"WEFT_ADDRESS": weft_up.addresses["grpc"], "WEFT_API_KEY": weft_up.key}

    def commands() -> tuple[str, str, str]:
        deployed = weft("fn", "deploy", "double", source, **about)
        invoked = weft("fn", "invoke", "double", "-d", '{"x": 21}', **about)
        return deployed.out, invoked.out, weft("fn", "logs", "double", **about).out

    deployed, invoked, logged = await asyncio.to_thread(commands)
    assert "sha256" in deployed
    assert json.loads(invoked)["twice"] == 42
    assert logged == "doubling\n"
