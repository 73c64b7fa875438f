"""The functions service on parts in memory, with real sandboxes where this machine has them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import (
    EventStoreUnavailable,
    FailedPrecondition,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    RequestIdReused,
)
from mesh.events.store import START, StreamName
from services.functions.log_tables import LogTables, Row
from services.functions.service import FunctionsService
from services.functions.settings import FunctionsSettings
from services.functions.turns import Turns
from tests.support.events import draft
from tests.support.eventually import eventually
from tests.support.functions import PARENT, FunctionParts, call, deploy, invoke
from weft.functions.v1 import function_service_pb2 as pb
from weft.functions.v1 import functions_pb2

NAME = f"{PARENT}/functions/double"
DOUBLE = "def handler(a):\n    print('doubling', a)\n    return a * 2\n"
SESSION = "tenants/acme/agents/bot/sessions/s1"

pytestmark = pytest.mark.timeout(120)


@dataclass
class Running:
    """A service and the parts that outlive it."""

    parts: FunctionParts
    service: FunctionsService


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    parts = FunctionParts(tmp_path)
    service = parts.service(FunctionsSettings(ready_max=0, functions_max=2))
    await service.start()
    made = Running(parts, service)
    yield made
    await made.service.stop()


async def logs(service: FunctionsService, **fields: Any) -> list[functions_pb2.FunctionLogEntry]:
    response = await service.list_function_logs(
        pb.ListFunctionLogsRequest(name=NAME, **fields), call()
    )
    return list(response.entries)


async def test_a_function_is_deployed_and_invoked(running: Running) -> None:
    function = await deploy(running.service, "double", DOUBLE, description="doubles")
    assert (function.name, function.version, function.description) == (NAME, 1, "doubles")
    assert function.versions[0].sha256 == hashlib.sha256(DOUBLE.encode()).digest()
    assert function.versions[0].limits.memory_bytes == 256 << 20
    answer = await invoke(running.service, "double", "21")
    assert (answer.result_json, answer.version) == ("42", 1)
    assert [entry.text for entry in await logs(running.service)] == ["doubling 21\n"]


async def test_versions_never_change_and_are_gone_back_to(running: Running) -> None:
    await deploy(running.service, "double", DOUBLE)
    second = await deploy(running.service, "double", "def handler(a):\n    return a * 3\n")
    assert [version.version for version in second.versions] == [1, 2]
    assert (await invoke(running.service, "double", "1")).result_json == "3"
    assert (await invoke(running.service, "double", "1", version=1)).result_json == "2"
    request = pb.RollBackFunctionRequest(name=NAME, version=1)
    back = (await running.service.roll_back_function(request, call())).function
    assert back.version == 1
    assert back.etag != second.etag
    assert (await invoke(running.service, "double", "1")).result_json == "2"
    got = await running.service.get_function(
        pb.GetFunctionRequest(name=NAME, with_source=True, version=1), call()
    )
    assert got.source == DOUBLE
    with pytest.raises(NotFound):
        await running.service.roll_back_function(
            pb.RollBackFunctionRequest(name=NAME, version=9), call()
        )


async def test_what_was_deployed_is_there_after_a_restart(running: Running) -> None:
    await deploy(running.service, "double", DOUBLE)
    await invoke(running.service, "double", "1")
    await running.service.stop()
    again = running.parts.service()
    await again.start()
    assert (await invoke(again, "double", "2")).result_json == "4"
    assert [entry.text for entry in await logs(again)] == ["doubling 1\n", "doubling 2\n"]
    running.service = again


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def handler(a)\n", "doesn't compile"),
        ("x = 1\n", "no function handler"),
        ("import grpc\ndef handler(a): pass\n", "ModuleNotFoundError"),
        ("raise ValueError('at once')\n", "at once"),
        ("def handler(a): pass\n\0", "isn't text"),
        ("x = " + "+".join("1" * 60_000) + "\n", "nested too deep"),
        ("x = " + "-" * 20_000 + "1\n", "nested too deep"),
    ],
)
async def test_a_source_that_doesnt_load_isnt_deployed(
    running: Running, source: str, says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says):
        await deploy(running.service, "double", source)
    with pytest.raises(NotFound):
        await invoke(running.service, "double")


async def test_a_repeated_request_deploys_once(running: Running) -> None:
    first = await deploy(running.service, "double", DOUBLE, request_id="r")
    assert await deploy(running.service, "double", DOUBLE, request_id="r") == first
    with pytest.raises(RequestIdReused):
        await deploy(running.service, "double", DOUBLE + "\n", request_id="r")


async def test_limits_out_of_bounds_are_refused(running: Running) -> None:
    for limits in (
        functions_pb2.FunctionLimits(memory_bytes=1 << 20),
        functions_pb2.FunctionLimits(memory_bytes=4 << 30),
        functions_pb2.FunctionLimits(open_files=3),
        functions_pb2.FunctionLimits(scratch_bytes=1 << 30),
    ):
        with pytest.raises(InvalidArgument, match=r"limits\..* \d+ to \d+ here"):
            await deploy(running.service, "double", DOUBLE, limits=limits)


async def test_a_tenant_has_so_many_functions(running: Running) -> None:
    await deploy(running.service, "one", DOUBLE)
    await deploy(running.service, "two", DOUBLE)
    with pytest.raises(LimitExceeded):
        await deploy(running.service, "three", DOUBLE)
    await deploy(running.service, "two", DOUBLE)


async def test_what_goes_wrong_is_an_answer(running: Running) -> None:
    limits = functions_pb2.FunctionLimits()
    limits.timeout.FromMilliseconds(300)
    source = (
        "import time\ndef handler(a):\n    if a: raise ValueError('no ' + a)\n    time.sleep(9)\n"
    )
    await deploy(running.service, "double", source, limits=limits)
    raised = (await invoke(running.service, "double", '"way"')).error
    assert raised.kind == functions_pb2.FUNCTION_ERROR_KIND_RAISED
    assert raised.message == "ValueError: no way"
    assert 'raise ValueError("no' in raised.trace or "raise ValueError('no" in raised.trace
    slow = (await invoke(running.service, "double")).error
    assert slow.kind == functions_pb2.FUNCTION_ERROR_KIND_TIMEOUT
    assert "0.3 s" in slow.message


async def test_what_python_cant_read_or_write_is_an_answer(running: Running) -> None:
    source = (
        "class Mute(Exception):\n    def __str__(self): raise ValueError\n"
        "def handler(a):\n    if a: return chr(0xD800)\n    raise Mute\n"
    )
    await deploy(running.service, "double", source)
    kinds = {
        "1": (functions_pb2.FUNCTION_ERROR_KIND_RESULT, "isn't JSON"),
        "0": (functions_pb2.FUNCTION_ERROR_KIND_RAISED, "Mute"),
        "[" * 1_010 + "]" * 1_010: (functions_pb2.FUNCTION_ERROR_KIND_RAISED, "arguments"),
    }
    for arguments, (kind, says) in kinds.items():
        error = (await invoke(running.service, "double", arguments)).error
        assert error.kind == kind
        assert says in error.message


async def test_an_answer_that_a_function_forges_is_no_json(running: Running) -> None:
    source = (
        'import os\ndef handler(a):\n    body = b\'{"result": "}{"}\'\n'
        "    os.write(3, len(body).to_bytes(4, 'big') + body)\n    os._exit(0)\n"
    )
    await deploy(running.service, "double", source)
    error = (await invoke(running.service, "double")).error
    kinds = (functions_pb2.FUNCTION_ERROR_KIND_RESULT, functions_pb2.FUNCTION_ERROR_KIND_CRASHED)
    assert error.kind in kinds


async def test_a_key_gets_its_answer_again(running: Running) -> None:
    await deploy(running.service, "double", "import os\ndef handler(a):\n    return os.getpid()\n")
    answers = await asyncio.gather(
        *(invoke(running.service, "double", idempotency_key="k") for _ in range(3))
    )
    assert len({answer.invocation for answer in answers}) == 1
    assert (await invoke(running.service, "double", idempotency_key="l")) != answers[0]
    with pytest.raises(RequestIdReused):
        await invoke(running.service, "double", "1", idempotency_key="k")
    running.parts.pass_time(601)
    later = await invoke(running.service, "double", "1", idempotency_key="k")
    assert later.invocation != answers[0].invocation


async def test_arguments_must_be_json(running: Running) -> None:
    await deploy(running.service, "double", DOUBLE)
    with pytest.raises(InvalidArgument):
        await invoke(running.service, "double", "{")


async def test_a_deleted_function_is_gone_with_its_log(running: Running) -> None:
    await deploy(running.service, "double", DOUBLE)
    await invoke(running.service, "double", "1")
    await running.service.delete_function(pb.DeleteFunctionRequest(name=NAME), call())
    with pytest.raises(NotFound):
        await logs(running.service)
    again = await deploy(running.service, "double", DOUBLE)
    assert again.version == 2
    assert await logs(running.service) == []


async def test_a_deleted_functions_log_gets_nothing_more(running: Running) -> None:
    source = (
        "import time\ndef handler(a):\n    print('begun')\n    time.sleep(a)\n    print('ended')\n"
    )
    await deploy(running.service, "double", source)
    invoked = asyncio.ensure_future(invoke(running.service, "double", "1"))
    request = pb.WatchFunctionLogsRequest(name=NAME)
    async with aclosing(running.service.watch_function_logs(request, call())) as watched:
        assert (await anext(watched)).entries[0].text == "begun\n"
        following = asyncio.ensure_future(anext(watched))
        await asyncio.sleep(0)
        deletion = pb.DeleteFunctionRequest(name=NAME, request_id="once")
        await running.service.delete_function(deletion, call())
        with pytest.raises(NotFound):
            await following
    assert (await invoked).result_json == "null"
    await deploy(running.service, "double", source)
    assert await logs(running.service) == []
    await invoke(running.service, "double", "0")
    await running.service.delete_function(deletion, call())
    assert [entry.text for entry in await logs(running.service)] == ["begun\nended\n"]


async def test_functions_are_listed_by_pages(running: Running) -> None:
    for name in ("b", "a"):
        await deploy(running.service, name, DOUBLE)
        await deploy(running.service, name, DOUBLE)
    request = pb.ListFunctionsRequest(parent=PARENT, page_size=1)
    first = await running.service.list_functions(request, call())
    request.page_token = first.next_page_token
    second = await running.service.list_functions(request, call())
    found = [*first.functions, *second.functions]
    assert [each.name.rpartition("/")[2] for each in found] == ["a", "b"]
    assert [[v.version for v in each.versions] for each in found] == [[2], [2]]
    assert (second.next_page_token, first.sandbox) == ("", "sandlock")


async def test_logs_are_sealed_paged_and_followed(running: Running, tmp_path: Path) -> None:
    source = (
        "import sys\ndef handler(a):\n    print('secret', a)\n    print('bad', file=sys.stderr)\n"
    )
    await deploy(running.service, "double", source)
    answers = [await invoke(running.service, "double", str(n)) for n in range(3)]
    entries = await logs(running.service)
    assert [(e.text, e.stream) for e in entries[:2]] == [
        ("secret 0\n", functions_pb2.LOG_STREAM_STDOUT),
        ("bad\n", functions_pb2.LOG_STREAM_STDERR),
    ]
    of_one = await logs(running.service, invocation=answers[1].invocation)
    assert [entry.text for entry in of_one] == ["secret 1\n", "bad\n"]
    page = await running.service.list_function_logs(
        pb.ListFunctionLogsRequest(name=NAME, page_size=4), call()
    )
    rest = await logs(running.service, page_size=4, page_token=page.next_page_token)
    assert [*page.entries, *rest] == entries
    on_disk = b"".join(path.read_bytes() for path in (tmp_path / "functions").glob("logs*"))
    assert b"secret" not in on_disk
    request = pb.WatchFunctionLogsRequest(name=NAME, after_sequence=entries[-1].sequence)
    async with aclosing(running.service.watch_function_logs(request, call())) as watched:
        following = asyncio.ensure_future(anext(watched))
        await asyncio.sleep(0.05)
        await invoke(running.service, "double", "9")
        assert (await following).entries[0].text == "secret 9\n"


async def test_the_oldest_of_a_log_goes_first(tmp_path: Path) -> None:
    parts = FunctionParts(tmp_path)
    service = parts.service(FunctionsSettings(log_bytes_max=65_536))
    await service.start()
    try:
        await deploy(service, "double", "def handler(a):\n    print(str(a) * 20000)\n")
        for number in range(6):
            await invoke(service, "double", str(number))
        entries = await logs(service)
        assert entries[-1].text.startswith("5")
        assert sum(len(entry.text) for entry in entries) < 65_536
        assert not entries[0].text.startswith("0")
    finally:
        await service.stop()


def test_no_tenants_logs_take_the_place_of_anothers(tmp_path: Path) -> None:
    tables = LogTables(tmp_path / "logs", log_bytes_max=40_000, logs_bytes_max=100_000)
    tables.open()

    def add(tenant: str, function: str, count: int) -> None:
        name = f"tenants/{tenant}/functions/{function}"
        for _ in range(count):
            tables.add([Row(0, name, "i", "s", "k", bytes(1_000))])

    def kept(tenant: str, function: str) -> int:
        return len(tables.page(f"tenants/{tenant}/functions/{function}", "", 0, 1_000))

    add("b", "quiet", 10)
    for function in ("one", "two", "three", "four"):
        add("a", function, 100)
    assert kept("b", "quiet") == 10
    assert sum(kept("a", name) for name in ("one", "two", "three", "four")) == 73
    add("b", "quiet", 10)
    assert kept("b", "quiet") == 20
    tables.close()


async def test_a_log_that_cant_be_kept_fails_no_invocation(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise EventStoreUnavailable("away")

    await deploy(running.service, "double", DOUBLE)
    monkeypatch.setattr(running.parts.events, "head_at", away)
    answer = await invoke(
        running.service, "double", "2", idempotency_key=f"{SESSION}/turns/t/calls/1"
    )
    assert answer.result_json == "4"


async def test_a_sessions_output_goes_with_its_key(running: Running) -> None:
    stream = StreamName("state", "acme", ("bot", "s1"))
    await running.parts.events.append(stream, draft("created"), START)
    await deploy(running.service, "double", DOUBLE)
    key = f"{SESSION}/turns/t/steps/1/calls/c"
    await invoke(running.service, "double", "1", idempotency_key=key)
    await invoke(running.service, "double", "2")
    assert len(await logs(running.service)) == 2
    await running.parts.keyring.erase(str(stream))

    # It can't be opened from here on, and is deleted a moment later.
    assert "doubling 1\n" not in [entry.text for entry in await logs(running.service)]
    await asyncio.sleep(0.2)
    assert [entry.text for entry in await logs(running.service)] == ["doubling 2\n"]


async def test_nothing_that_confines_is_nothing_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    service = FunctionParts(tmp_path).service(FunctionsSettings(sandbox="bubblewrap"))
    await service.start()
    try:
        with pytest.raises(FailedPrecondition, match="there is no bwrap"):
            await deploy(service, "double", DOUBLE)
        listed = await service.list_functions(pb.ListFunctionsRequest(parent=PARENT), call())
        assert listed.sandbox == ""
        assert "there is no bwrap" in listed.sandbox_problem
    finally:
        await service.stop()


async def test_unsafe_is_said_aloud(
    tmp_path: Path, log_lines: list[MutableMapping[str, Any]]
) -> None:
    service = FunctionParts(tmp_path).service(FunctionsSettings(sandbox="unsafe", ready_max=0))
    await service.start()
    await service.stop()
    (said,) = [each for each in log_lines if each["event"] == "functions_are_not_confined"]
    assert said["log_level"] == "error"


async def test_turns_are_bounded_and_in_order() -> None:
    settings = FunctionsSettings(
        running_max=3, tenant_running_max=2, function_running_max=1, waiting_max=3
    )
    turns = Turns(settings)
    order: list[str] = []
    ends: dict[str, asyncio.Event] = {}

    async def hold(name: str, seconds: float = 30) -> None:
        ends[name] = asyncio.Event()
        async with turns.taken(f"tenants/{name[0]}/functions/{name}", seconds):
            order.append(name)
            await ends[name].wait()

    tasks = [asyncio.ensure_future(hold(name)) for name in ("a1", "a2", "a3", "b1")]
    await eventually(lambda: order == ["a1", "a2", "b1"], seconds=5)
    with pytest.raises(LimitExceeded, match="wasn't the invocation's turn"):
        async with turns.taken("tenants/b/functions/b1", 0.05):
            pass
    tasks += [asyncio.ensure_future(hold(name)) for name in ("c1", "c2")]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(LimitExceeded, match="too many invocations wait"):
        async with turns.taken("tenants/d/functions/d1", 30):
            pass
    tasks[2].cancel()
    ends["a1"].set()
    await eventually(lambda: order[-1] == "c1", seconds=5)
    for end in list(ends.values()):
        end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert "a3" not in order
    async with turns.taken("tenants/a/functions/a1", 0.05):
        pass


async def test_a_tenant_that_fills_its_share_of_the_queue_leaves_others_theirs() -> None:
    settings = FunctionsSettings(running_max=1, waiting_max=3, tenant_waiting_max=2)
    turns = Turns(settings)
    ended = asyncio.Event()
    order: list[str] = []

    async def hold(name: str) -> None:
        async with turns.taken(f"tenants/{name[0]}/functions/{name}", 30):
            order.append(name)
            await ended.wait()

    tasks = [asyncio.ensure_future(hold(name)) for name in ("a1", "a2", "a3")]
    await eventually(lambda: order == ["a1"], seconds=5)
    with pytest.raises(LimitExceeded, match="too many invocations wait"):
        await hold("a4")
    tasks.append(asyncio.ensure_future(hold("b1")))
    ended.set()
    await asyncio.gather(*tasks)
    assert order == ["a1", "a2", "a3", "b1"]
