"""The tools service, called as the pipeline calls it, with real servers as tools."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.call import Call
from mesh.clock import SYSTEM, Clock
from mesh.errors import (
    AlreadyExists,
    DataDamaged,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    RequestIdReused,
    ToolUnavailable,
)
from mesh.events.memory import MemoryEventStore
from mesh.events.store import START, CommitDraft, EventStore, NewEvent, StreamName
from services.tools.service import ToolsService
from services.tools.settings import ToolsSettings
from services.vectors.service import VectorsService
from services.vectors.settings import VectorsSettings
from tests.support.cached import memory_cache
from tests.support.embedding import LocalModels
from tests.support.grpc_server import serving
from tests.support.keys import memory_keyring
from tests.support.ledger_server import LEDGER, Entry, Ledger, effects_by_key, read_entries
from tests.support.processes import running, until
from tests.support.protos import message_type
from weft.options.v1 import options_pb2
from weft.tools.v1 import events_pb2, tools_pb2
from weft.tools.v1 import tool_service_pb2 as pb
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as vectors_pb

PARENT = "tenants/acme"
CREDIT = f"{PARENT}/tools/credit"
ECHO = "kinds.v1.Echo"
BUILTIN = ("blob-read", "blob-write", "calculator", "fetch", "search", "time")
NO_FOLDER = Path("/nonexistent")
START_NS = 1_800_000_000 * 1_000_000_000


class LocalVectors:
    """The vectors service as a stub reaches it within a process."""

    def __init__(self, service: VectorsService) -> None:
        self._service = service

    async def Search(  # noqa: N802 - as generated stubs name it
        self, request: vectors_pb.SearchRequest, *, timeout: float
    ) -> vectors_pb.SearchResponse:
        async with asyncio.timeout(timeout):
            return await self._service.search(request, call())


def call(seconds: float = 5) -> Call:
    deadline = time.monotonic() + seconds
    return Call(method="/weft.tools.v1.ToolService/Any", deadline=deadline, request_id="t")


async def echo(request: Any, context: Any) -> Any:
    return request


async def grow(request: Any, context: Any) -> Any:
    return message_type("kinds.v1.Kinds")(string_field="x" * request.length)


@pytest.fixture
def ledger_file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.ndjson"


@pytest.fixture
async def address(ledger_file: Path) -> AsyncIterator[str]:
    handlers = {"Same": echo, "Nothing": echo, "Free": echo, "Bare": echo, "Grow": grow}
    services = {LEDGER: Ledger(ledger_file).handlers, ECHO: handlers}
    async with serving(services) as address:
        yield address


@pytest.fixture
def events() -> EventStore:
    return MemoryEventStore()


@pytest.fixture
async def vectors(tmp_path: Path) -> AsyncIterator[VectorsService]:
    service = VectorsService(VectorsSettings(), tmp_path, LocalModels())
    await service.start()
    yield service
    await service.stop()


async def started(
    events: EventStore, vectors: VectorsService, settings: ToolsSettings | None = None
) -> ToolsService:
    clock = Clock(now_ns=lambda: START_NS, monotonic=SYSTEM.monotonic)
    bounds = settings or ToolsSettings(tools_max=3, content_length_max=1_000, reflection_seconds=2)
    nobody: Any = None
    service = ToolsService(
        *(
            bounds,
            events,
            clock,
            LocalVectors(vectors),
            memory_cache(),
            memory_keyring(),
            NO_FOLDER,
        ),
        functions=nobody,
    )
    await service.start()
    return service


@pytest.fixture
async def service(events: EventStore, vectors: VectorsService) -> AsyncIterator[ToolsService]:
    service = await started(events, vectors)
    yield service
    await service.stop()


def registration(
    address: str, method: str = f"{LEDGER}/Credit", tool_id: str = "credit", **fields: Any
) -> pb.RegisterToolRequest:
    fields.setdefault("effect", options_pb2.EFFECT_IDEMPOTENT)
    grpc_tool = tools_pb2.GrpcTool(address=address, method=method)
    return pb.RegisterToolRequest(parent=PARENT, tool_id=tool_id, grpc=grpc_tool, **fields)


async def register(
    service: ToolsService, address: str, *arguments: str, **fields: Any
) -> tools_pb2.Tool:
    request = registration(address, *arguments, **fields)
    return (await service.register_tool(request, call())).tool


async def invoke(
    service: ToolsService, tool_id: str, arguments: object, **fields: Any
) -> pb.InvokeToolResponse:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    request = pb.InvokeToolRequest(name=f"{PARENT}/tools/{tool_id}", arguments_json=text, **fields)
    return await service.invoke_tool(request, call())


async def listed(service: ToolsService) -> list[str]:
    response = await service.list_tools(pb.ListToolsRequest(parent=PARENT), call())
    return [tool.name.rpartition("/")[2] for tool in response.tools]


async def test_a_method_becomes_a_tool(service: ToolsService, address: str) -> None:
    tool = await register(service, address)
    assert tool.name == CREDIT
    assert tool.description == "Calls Credit of ledger.v1.Ledger."
    assert set(json.loads(tool.parameters_json_schema)["properties"]) == {"account", "amount"}
    assert tool.effect == options_pb2.EFFECT_IDEMPOTENT
    assert tool.timeout.seconds == 30
    assert tool.create_time.ToNanoseconds() == START_NS
    assert tool.etag
    assert (await service.get_tool(pb.GetToolRequest(name=CREDIT), call())).tool == tool
    assert await listed(service) == [*BUILTIN, "credit"]


async def test_what_a_registration_says_is_kept(service: ToolsService, address: str) -> None:
    request = registration(address, description="Adds money.", requires_approval=True)
    request.timeout.FromMilliseconds(1_500)
    tool = (await service.register_tool(request, call())).tool
    assert tool.description == "Adds money."
    assert tool.requires_approval
    assert tool.timeout.ToMilliseconds() == 1_500


async def test_a_call_reaches_the_method_with_its_key_and_epoch(
    service: ToolsService, address: str, ledger_file: Path
) -> None:
    await register(service, address)
    arguments = {"account": "ann", "amount": "5"}
    result = await invoke(service, "credit", arguments, idempotency_key="s/t/1", epoch=7)
    assert (json.loads(result.content), result.is_error) == ({"balance": "5"}, False)
    assert read_entries(ledger_file) == [Entry("s/t/1", "7", "ann", 5)]


async def test_a_result_shows_what_is_zero(service: ToolsService, address: str) -> None:
    await register(service, address, f"{LEDGER}/Balance", "balance")
    result = await invoke(service, "balance", {"account": "nobody"})
    assert json.loads(result.content) == {"balance": "0"}


async def test_every_kind_of_field_passes_there_and_back(
    service: ToolsService, address: str
) -> None:
    await register(service, address, f"{ECHO}/Same", "same")
    arguments = {
        "string_field": "Grüße",
        "bytes_field": "YWJj",
        "colour": "COLOUR_RED",
        "time": "2026-01-31T12:00:00Z",
        "struct": {"a": [1.5, None]},
        "node": {"label": "a", "children": [{"label": "b", "children": []}]},
        "any": {"@type": "type.googleapis.com/kinds.v1.Size", "length": 1},
        "int64_value": "5",
    }
    result = await invoke(service, "same", arguments)
    assert not result.is_error
    content = json.loads(result.content)
    assert content["node"].pop("children")[0]["label"] == "b"
    arguments["node"] = {"label": "a"}
    assert {name: content[name] for name in arguments} == arguments


@pytest.mark.parametrize("method", ["Nothing", "Free"])
async def test_a_request_without_fields_of_its_own_is_called(
    service: ToolsService, address: str, method: str
) -> None:
    await register(service, address, f"{ECHO}/{method}", "echo")
    assert (await invoke(service, "echo", "")).content == "{}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"account": 5}, "account: 5 is not of type 'string'"),
        ({"account": "ann", "amount": "much"}, "amount: 'much' does not match"),
        ({"acount": "ann"}, "'acount' was unexpected"),
        ("nonsense", "aren't JSON"),
        ({"account": "ann", "amount": "9" * 20}, "don't fit the request"),
    ],
)
async def test_arguments_that_do_not_fit_never_reach_the_method(
    service: ToolsService, address: str, ledger_file: Path, arguments: object, says: str
) -> None:
    await register(service, address)
    with pytest.raises(InvalidArgument) as refused:
        await invoke(service, "credit", arguments)
    assert says in refused.value.message
    assert all(item.field.startswith("arguments_json") for item in refused.value.violations)
    assert not read_entries(ledger_file)


async def test_a_status_of_the_method_is_a_result(service: ToolsService, address: str) -> None:
    await register(service, address)
    result = await invoke(service, "credit", {"account": "ann"})
    assert result.is_error
    assert result.content == "INVALID_ARGUMENT: the amount must not be 0"


async def test_a_method_that_the_server_does_not_offer_is_a_result(
    service: ToolsService, events: EventStore, ledger_file: Path
) -> None:
    async with serving({LEDGER: {"Balance": Ledger(ledger_file).balance}}) as address:
        await register(service, address)
        result = await invoke(service, "credit", {"account": "ann", "amount": 1})
    assert result.is_error
    assert result.content.startswith("UNIMPLEMENTED")


class Garbage:
    """Bytes that are no message."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - as messages name it
        return b"\xff\xff"


async def garbage(request: Any, context: Any) -> Any:
    return Garbage()


async def test_an_answer_that_is_no_message_is_a_result(service: ToolsService) -> None:
    async with serving({LEDGER: {"Credit": garbage}}) as address:
        await register(service, address)
        result = await invoke(service, "credit", {"account": "ann", "amount": 1})
    assert result.is_error
    assert "isn't the message that it described" in result.content


async def test_a_slow_method_is_unavailable_after_its_timeout(
    service: ToolsService, address: str
) -> None:
    request = registration(address, f"{LEDGER}/Slow", "slow")
    request.timeout.FromMilliseconds(50)
    await service.register_tool(request, call())
    with pytest.raises(ToolUnavailable, match="took too long"):
        await invoke(service, "slow", {"seconds": 30})


async def test_the_deadline_of_the_caller_bounds_the_method(
    service: ToolsService, address: str
) -> None:
    await register(service, address, f"{LEDGER}/Slow", "slow")
    request = pb.InvokeToolRequest(name=f"{PARENT}/tools/slow", arguments_json='{"seconds": 30}')
    with pytest.raises(ToolUnavailable, match="took too long"):
        await service.invoke_tool(request, call(seconds=0.1))
    with pytest.raises(DeadlineExceeded):
        await service.invoke_tool(request, call(seconds=-1))


async def test_a_server_that_is_gone_is_unavailable_until_it_is_back(
    service: ToolsService, ledger_file: Path
) -> None:
    credit = {"account": "ann", "amount": 1}
    async with serving({LEDGER: Ledger(ledger_file).handlers}) as address:
        await register(service, address)
        await invoke(service, "credit", credit, idempotency_key="k1")
    with pytest.raises(ToolUnavailable, match="can't be reached"):
        await invoke(service, "credit", credit, idempotency_key="k2")
    port = int(address.rpartition(":")[2])
    async with serving({LEDGER: Ledger(ledger_file).handlers}, port=port):
        result = await answer_once_back(service, credit)
    assert json.loads(result.content) == {"balance": "2"}
    assert effects_by_key(ledger_file) == {"k1": 1, "k2": 1}


async def answer_once_back(service: ToolsService, arguments: object) -> pb.InvokeToolResponse:
    for _ in range(50):
        try:
            return await invoke(service, "credit", arguments, idempotency_key="k2")
        except ToolUnavailable:
            await asyncio.sleep(0.1)
    return await invoke(service, "credit", arguments, idempotency_key="k2")


async def test_a_long_result_is_cut_with_a_note(service: ToolsService, address: str) -> None:
    await register(service, address, f"{ECHO}/Grow", "grow")
    result = await invoke(service, "grow", {"length": 5_000})
    assert len(result.content) == 1_000
    assert "[cut: 1000 of " in result.content
    assert not result.is_error


async def test_an_answer_beyond_the_bound_on_messages_is_a_limit(
    events: EventStore, vectors: VectorsService, address: str
) -> None:
    service = await started(events, vectors, ToolsSettings(response_bytes_max=50_000))
    await register(service, address, f"{ECHO}/Grow", "grow")
    with pytest.raises(LimitExceeded, match="more than 50000 bytes"):
        await invoke(service, "grow", {"length": 60_000})
    await service.stop()


@pytest.mark.parametrize(
    ("method", "field"),
    [(f"{ECHO}/Bare", "grpc.method")],
)
async def test_a_method_that_can_not_be_a_tool_is_refused(
    service: ToolsService, address: str, method: str, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await register(service, address, method)
    assert [each.field for each in caught.value.violations] == [field]
    assert "credit" not in await listed(service)


@pytest.mark.parametrize("method", [f"{LEDGER}/Never", "never.v1.Never/Credit"])
async def test_a_method_that_is_not_there_is_not_found(
    service: ToolsService, address: str, method: str
) -> None:
    with pytest.raises(NotFound, match=r"[nN]ever"):
        await register(service, address, method)


async def test_a_server_without_reflection_is_told_so(
    service: ToolsService, ledger_file: Path
) -> None:
    handlers = Ledger(ledger_file).handlers
    async with serving({LEDGER: handlers}, reflects=False) as address:
        with pytest.raises(FailedPrecondition, match="doesn't offer gRPC reflection"):
            await register(service, address)


async def test_a_server_that_is_not_there_is_unavailable(service: ToolsService) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ToolUnavailable, match="no gRPC server answers"):
            await register(service, f"127.0.0.1:{unused.getsockname()[1]}")


async def test_a_server_that_says_nothing_is_unavailable(
    events: EventStore, vectors: VectorsService
) -> None:
    service = await started(events, vectors, ToolsSettings(reflection_seconds=0.2))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ToolUnavailable, match="no gRPC server answers"):
            await register(service, f"127.0.0.1:{silent.getsockname()[1]}")
    await service.stop()


async def test_a_description_beyond_its_bounds_is_refused(
    events: EventStore, vectors: VectorsService, address: str
) -> None:
    service = await started(events, vectors, ToolsSettings(reflection_files_max=2))
    assert await register(service, address)
    with pytest.raises(LimitExceeded, match="at most 2 files"):
        await register(service, address, f"{ECHO}/Same", "same")
    await service.stop()


@pytest.mark.parametrize(
    "address",
    ["nowhere", "a:b", ":1", "a:0", "a:65536", "unix:/x", "http://a:1", "a b:1", "xds:///a:1"],
)
async def test_an_address_that_is_none_is_refused(service: ToolsService, address: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await register(service, address)
    assert [each.field for each in caught.value.violations] == ["grpc.address"]


async def test_a_registration_says_its_effect_and_a_timeout_above_zero(
    service: ToolsService, address: str
) -> None:
    with pytest.raises(InvalidArgument, match="effect"):
        await register(service, address, effect=17)
    request = registration(address)
    request.timeout.FromSeconds(0)
    with pytest.raises(InvalidArgument, match="timeout"):
        await service.register_tool(request, call())


async def test_a_builtin_tool_is_neither_replaced_nor_deleted(
    service: ToolsService, address: str
) -> None:
    with pytest.raises(AlreadyExists):
        await register(service, address, tool_id="calculator")
    with pytest.raises(InvalidArgument):
        await service.delete_tool(pb.DeleteToolRequest(name=f"{PARENT}/tools/time"), call())


async def test_a_tool_is_replaced_under_its_id(service: ToolsService, address: str) -> None:
    first = await register(service, address)
    second = await register(service, address, f"{LEDGER}/Balance")
    assert second.etag != first.etag
    assert await listed(service) == [*BUILTIN, "credit"]
    assert json.loads((await invoke(service, "credit", {"account": "a"})).content)


async def test_a_deleted_tool_is_gone(service: ToolsService, address: str) -> None:
    await register(service, address)
    request = pb.DeleteToolRequest(name=CREDIT, request_id="d1")
    await service.delete_tool(request, call())
    await service.delete_tool(request, call())
    for work in (
        service.get_tool(pb.GetToolRequest(name=CREDIT), call()),
        service.delete_tool(pb.DeleteToolRequest(name=CREDIT), call()),
        invoke(service, "credit", {}),
    ):
        with pytest.raises(NotFound, match="credit"):
            await work


async def test_a_repeated_registration_gets_its_first_answer(
    service: ToolsService, events: EventStore, address: str
) -> None:
    first = await register(service, address, request_id="r1")
    # The server isn't asked again: it may be gone by now.
    await register(service, address, f"{LEDGER}/Balance", request_id="r2")
    position = await events.last_position()
    assert await register(service, address, request_id="r1") == first
    assert await events.last_position() == position
    with pytest.raises(RequestIdReused):
        await register(service, address, f"{LEDGER}/Balance", request_id="r1")
    with pytest.raises(RequestIdReused):
        await service.delete_tool(pb.DeleteToolRequest(name=CREDIT, request_id="r1"), call())


async def test_racing_registrations_all_end_and_one_stands(
    service: ToolsService, address: str
) -> None:
    tools = await asyncio.gather(
        *(register(service, address, description=f"number {number}") for number in range(5))
    )
    got = await service.get_tool(pb.GetToolRequest(name=CREDIT), call())
    assert got.tool in tools


async def test_the_bound_on_tools_holds(service: ToolsService, address: str) -> None:
    for number in range(3):
        await register(service, address, tool_id=f"tool-{number}")
    with pytest.raises(LimitExceeded, match="at most 3 tools"):
        await register(service, address, tool_id="tool-3")
    await register(service, address, tool_id="tool-0", description="replaced")


async def test_pages_follow_each_other_without_gap(service: ToolsService, address: str) -> None:
    for tool_id in ("b", "a"):
        await register(service, address, tool_id=tool_id)
    seen: list[str] = []
    request = pb.ListToolsRequest(parent=PARENT, page_size=2)
    for _ in range(4):
        response = await service.list_tools(request, call())
        seen.extend(tool.name.rpartition("/")[2] for tool in response.tools)
        assert not any(tool.grpc.HasField("descriptors") for tool in response.tools)
        request.page_token = response.next_page_token
    assert seen == [*BUILTIN, "a", "b"]
    assert not request.page_token


async def test_a_token_of_no_page_is_refused(service: ToolsService) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await service.list_tools(pb.ListToolsRequest(parent=PARENT, page_token="x"), call())
    assert [each.field for each in caught.value.violations] == ["page_token"]


async def test_tenants_do_not_see_each_other(service: ToolsService, address: str) -> None:
    await register(service, address)
    response = await service.list_tools(pb.ListToolsRequest(parent="tenants/other"), call())
    assert len(response.tools) == len(BUILTIN)
    request = pb.GetToolRequest(name="tenants/other/tools/credit")
    with pytest.raises(NotFound):
        await service.get_tool(request, call())


async def test_a_start_knows_what_was_registered_before(
    service: ToolsService, events: EventStore, vectors: VectorsService, address: str
) -> None:
    tool = await register(service, address)
    await register(service, address, tool_id="gone")
    await service.delete_tool(pb.DeleteToolRequest(name=f"{PARENT}/tools/gone"), call())
    # The last commit of the store isn't one of a tool.
    elsewhere = CommitDraft(events=[NewEvent(events_pb2.ToolDeleted())], time_ns=1)
    await events.append(StreamName("state", "acme", ("a", "b")), elsewhere, START)
    other = await started(events, vectors)
    assert (await other.get_tool(pb.GetToolRequest(name=CREDIT), call())).tool == tool
    assert await listed(other) == await listed(service)
    await other.stop()


async def test_what_another_instance_registers_is_seen(
    service: ToolsService, events: EventStore, vectors: VectorsService, address: str
) -> None:
    other = await started(events, vectors)
    await register(service, address)
    for _ in range(500):
        if "credit" in await listed(other):
            break
        await asyncio.sleep(0.01)
    assert "credit" in await listed(other)
    await other.stop()


async def test_an_event_of_a_newer_kind_is_said_at_the_start(
    events: EventStore, vectors: VectorsService
) -> None:
    newer = CommitDraft(events=[NewEvent(tools_pb2.Tool())], time_ns=1)
    await events.append(StreamName("tools", "acme", ("credit",)), newer, START)
    with pytest.raises(DataDamaged, match="newer kind"):
        await started(events, vectors)


async def test_the_calculator_answers_or_says_why_not(service: ToolsService) -> None:
    result = await invoke(service, "calculator", {"expression": "12% of 340"})
    assert (result.content, result.is_error) == ("40.8", False)
    result = await invoke(service, "calculator", {"expression": "1/0"})
    assert (result.content, result.is_error) == ("division by zero", True)
    with pytest.raises(InvalidArgument, match="expression"):
        await invoke(service, "calculator", {})


async def test_the_time_comes_from_the_clock(service: ToolsService) -> None:
    assert (await invoke(service, "time", "")).content == "2027-01-15T08:00:00+00:00"
    result = await invoke(service, "time", {"timezone": "Mars/Olympus"})
    assert result.is_error
    assert "Mars/Olympus" in result.content


async def test_the_search_gives_passages_with_their_sources(
    service: ToolsService, vectors: VectorsService
) -> None:
    create = vectors_pb.CreateCollectionRequest(parent=PARENT, collection_id="notes")
    await vectors.create_collection(create, call())
    document = collections_pb2.Document(
        uri="ops.md",
        text="# Backups\n\nA backup is kept for thirty days.\n",
        media_type=collections_pb2.MEDIA_TYPE_MARKDOWN,
    )
    name = f"{PARENT}/collections/notes"
    await vectors.upsert_documents(
        vectors_pb.UpsertDocumentsRequest(name=name, documents=[document]), call()
    )
    result = await invoke(service, "search", {"query": "backup", "collection": "notes"})
    (passage,) = json.loads(result.content)["passages"]
    assert passage.pop("score") > 0
    assert passage == {
        "uri": "ops.md",
        "title": "Backups",
        "headings": ["Backups"],
        "line": 3,
        "text": "A backup is kept for thirty days.",
    }
    assert list(result.sources) == [
        tools_pb2.Source(uri="ops.md", title="Backups", locator="Backups > line 3")
    ]


async def test_a_search_in_no_collection_is_a_result(service: ToolsService) -> None:
    result = await invoke(service, "search", {"query": "x", "collection": "never"})
    assert result.is_error
    assert "tenants/acme/collections/never" in result.content


@pytest.mark.parametrize("key", ["ü", "a\nb", "a\x00"])
async def test_a_key_that_no_header_can_hold_is_refused(service: ToolsService, key: str) -> None:
    with pytest.raises(InvalidArgument, match="idempotency_key"):
        await invoke(service, "time", "", idempotency_key=key)


@pytest.mark.parametrize("deduplicates", [True, False])
async def test_the_ledger_counts_effects_over_its_own_death(
    service: ToolsService, tmp_path: Path, deduplicates: bool
) -> None:
    file, address_file = tmp_path / "effects", tmp_path / "address"
    options = ["--file", str(file), "--address-file", str(address_file)]
    options += ["--deduplicate"] if deduplicates else []
    for _ in range(2):
        address_file.unlink(missing_ok=True)
        async with running("tests.support.ledger_server", "--port", "0", *options):
            await until(address_file.exists)
            await register(service, address_file.read_text())
            await invoke(service, "credit", {"account": "ann", "amount": 1}, idempotency_key="k")
    assert effects_by_key(file) == {"k": 1 if deduplicates else 2}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "grpc"),
        ({"grpc": {"address": "a:1", "method": "a.B/C"}, "function": {"name": "f"}}, "grpc"),
        ({"function": {"name": "tenants/other/functions/f"}}, "function.name"),
        (
            {"function": {"name": f"{PARENT}/functions/f"}, "parameters_json_schema": "{"},
            "parameters_json_schema",
        ),
        (
            {
                "function": {"name": f"{PARENT}/functions/f"},
                "parameters_json_schema": '{"type": "array"}',
            },
            "parameters_json_schema",
        ),
        (
            {"grpc": {"address": "a:1", "method": "a.B/C"}, "parameters_json_schema": "{}"},
            "parameters_json_schema",
        ),
    ],
)
async def test_what_makes_no_function_a_tool_is_refused(
    service: ToolsService, fields: dict[str, Any], field: str
) -> None:
    effect = options_pb2.EFFECT_READ
    request = pb.RegisterToolRequest(parent=PARENT, tool_id="f", effect=effect, **fields)
    with pytest.raises(InvalidArgument) as caught:
        await service.register_tool(request, call())
    assert [each.field for each in caught.value.violations] == [field]
