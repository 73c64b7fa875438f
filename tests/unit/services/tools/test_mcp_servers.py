"""MCP servers as tools, with a real server that fails in every way that is asked of it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    RequestIdReused,
    ToolUnavailable,
    WeftError,
)
from mesh.events.memory import MemoryEventStore
from mesh.events.store import EVERYTHING
from services.tools.schema import ArgumentsRefused
from services.tools.settings import ToolsSettings
from tests.support.eventually import eventually
from tests.support.mcp_tools import (
    FAULTY,
    FAULTY_COMMAND,
    PARENT,
    McpTools,
    a_call,
    all_gone,
    is_running,
    mcp_tools,
)
from tests.support.processes import until
from weft.options.v1 import options_pb2
from weft.tools.v1 import mcp_server_service_pb2 as mcp_pb
from weft.tools.v1 import mcp_servers_pb2, secrets_pb2, tools_pb2
from weft.tools.v1 import tool_service_pb2 as pb

CANARY = "canary-5d1c8e"
CONNECTED = mcp_servers_pb2.MCP_SERVER_STATE_CONNECTED
FAILED = mcp_servers_pb2.MCP_SERVER_STATE_FAILED
IDLE = mcp_servers_pb2.MCP_SERVER_STATE_IDLE


@pytest.fixture(scope="module")
async def tools(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[McpTools]:
    """A service with one server that nothing bad is asked of."""
    async with mcp_tools(tmp_path_factory.mktemp("mcp"), mcp_calls_max=2) as made:
        await made.add("s")
        yield made


def stdio(*arguments: str, **secrets: str) -> mcp_servers_pb2.McpStdio:
    program, *first = FAULTY_COMMAND
    environment = [secrets_pb2.NamedValue(name=key, secret=secrets[key]) for key in secrets]
    return mcp_servers_pb2.McpStdio(
        command=program, arguments=[*first, *arguments], environment=environment
    )


class TestListing:
    async def test_its_tools_are_tools_under_its_name(self, tools: McpTools) -> None:
        request = pb.GetToolRequest(name=f"{PARENT}/tools/s-echo")
        tool = (await tools.service.get_tool(request, a_call())).tool
        assert tool.mcp.server == f"{PARENT}/mcpServers/s"
        assert tool.mcp.tool == "echo"
        assert tool.effect == options_pb2.EFFECT_IRREVERSIBLE
        assert tool.trust == tools_pb2.TRUST_UNTRUSTED
        assert tool.mcp.hints.read_only
        listing = pb.ListToolsRequest(parent=PARENT, page_size=1_000)
        listed = (await tools.service.list_tools(listing, a_call())).tools
        assert [each for each in listed if each.name == tool.name] == [tool]

    async def test_names_that_would_have_one_id_and_long_ones_get_a_hash(
        self, tools: McpTools
    ) -> None:
        names = {name.rpartition("/")[2] for name in (await tools.get("s")).tools}
        assert len([name for name in names if name.startswith("s-get-thing-")]) == 2
        long = [name for name in names if name.startswith("s-tool-with-a-name-")]
        assert [len(name) <= 63 for name in long] == [True]

    async def test_what_cant_be_a_tool_is_told_with_the_reason(self, tools: McpTools) -> None:
        omitted = {each.tool: each.reason for each in (await tools.get("s")).omitted}
        assert omitted == {"deep": "its schema is nested deeper than 64"}

    async def test_ten_thousand_tools_are_read_and_as_many_offered_as_may_be(
        self, tools: McpTools
    ) -> None:
        server = await tools.add("many", "--tools", "10000", "--page", "500")
        assert len(server.tools) == 500
        assert {each.reason for each in server.omitted} >= {"a server has at most 500 tools"}

    async def test_a_list_that_never_ends_is_left(self, tools: McpTools) -> None:
        assert list((await tools.add("endless", "--fault", "endless")).tools) == []

    async def test_the_operator_says_what_a_tool_does_and_whether_it_is_offered(
        self, tools: McpTools
    ) -> None:
        rule = mcp_servers_pb2.McpToolRule
        rules = [
            rule(tool="echo", effect=options_pb2.EFFECT_READ),
            rule(tool="crash", excluded=True),
            rule(tool="hang", requires_approval=True),
        ]
        effect = options_pb2.EFFECT_IDEMPOTENT
        server = await tools.add("ruled", rules=rules, effect=effect, required_scopes=["pay.send"])
        assert f"{PARENT}/tools/ruled-crash" not in server.tools
        said = {}
        for name in ("echo", "hang"):
            request = pb.GetToolRequest(name=f"{PARENT}/tools/ruled-{name}")
            tool = (await tools.service.get_tool(request, a_call())).tool
            said[name] = (tool.effect, tool.requires_approval)
            assert list(tool.required_scopes) == ["pay.send"]
        assert said == {
            "echo": (options_pb2.EFFECT_READ, False),
            "hang": (options_pb2.EFFECT_IDEMPOTENT, True),
        }

    async def test_a_change_that_the_server_tells_of_is_listed(self, tools: McpTools) -> None:
        await tools.add("changing")
        before = set((await tools.get("changing")).tools)
        await tools.invoke("changing-change")
        count = len(tools.servers.tools("acme"))
        await eventually(lambda: len(tools.servers.tools("acme")) > count)
        assert set((await tools.get("changing")).tools) - before == {
            f"{PARENT}/tools/changing-extra0"
        }

    async def test_another_instance_sees_it_and_calls_it_on_a_connection_of_its_own(
        self, tools: McpTools, tmp_path: Path
    ) -> None:
        async with mcp_tools(tmp_path, events=tools.events) as other:
            theirs = await other.said("s-place")
            ours = await tools.said("s-place")
            assert theirs["pid"] != ours["pid"]


class TestCalls:
    async def test_arguments_come_to_the_server_and_its_answer_back(self, tools: McpTools) -> None:
        assert await tools.said("s-echo", {"a": [1, "ü"]}) == {"a": [1, "ü"]}

    async def test_it_is_told_the_idempotency_key(self, tools: McpTools) -> None:
        meta = await tools.said("s-meta", idempotency_key="session/1")
        assert meta["weft/idempotency-key"] == "session/1"

    async def test_arguments_are_checked_before(self, tools: McpTools) -> None:
        with pytest.raises(ArgumentsRefused):
            await tools.invoke("s-number", {"number": "one"})

    async def test_texts_and_what_a_model_cant_read_as_notes(self, tools: McpTools) -> None:
        response = await tools.invoke("s-parts")
        assert response.content.splitlines() == [
            "a text",
            "[image, image/png, 3 bytes: left out]",
            "[resource https://a.example/b: b]",
            "of a file",
            '{"answer": 42}',
        ]
        assert [each.uri for each in response.sources] == [
            "https://a.example/b",
            "file:///a.txt",
        ]

    async def test_a_failure_of_the_tool_is_a_result_for_the_model(self, tools: McpTools) -> None:
        failed, refused = await tools.invoke("s-fails"), await tools.invoke("s-refuses")
        assert (failed.is_error, failed.content) == (True, "no such city")
        assert (refused.is_error, refused.content) == (True, "error -32602: bad arguments")

    async def test_an_answer_that_is_none_is_a_failure_and_the_next_call_goes_on(
        self, tools: McpTools
    ) -> None:
        assert (await tools.invoke("s-malformed")).is_error
        assert await tools.said("s-echo", {"n": 1}) == {"n": 1}

    async def test_half_of_a_character_and_an_infinite_number_cost_no_answer(
        self, tools: McpTools
    ) -> None:
        assert (await tools.invoke("s-half")).content == "half of a ?"
        assert "infinite number" in (await tools.invoke("s-infinite")).content

    async def test_progress_is_taken(self, tools: McpTools) -> None:
        assert (await tools.invoke("s-progress")).content == "done"

    async def test_a_long_answer_is_cut(self, tools: McpTools) -> None:
        response = await tools.invoke("s-huge", {"characters": 1_000_000})
        assert len(response.content) <= ToolsSettings().content_length_max
        assert "[cut: " in response.content

    async def test_the_server_is_told_that_a_call_is_over(self, tools: McpTools) -> None:
        with pytest.raises(ToolUnavailable, match="took too long"):
            await tools.invoke("s-hang", seconds=0.3)
        task = asyncio.create_task(tools.invoke("s-hang"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await tools.said("s-cancelled")) == 2

    async def test_so_many_calls_go_at_once_and_others_wait(self, tools: McpTools) -> None:
        hanging = [asyncio.create_task(tools.invoke("s-hang", seconds=1)) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(LimitExceeded):
            await tools.invoke("s-echo", seconds=0.2)
        for ended in await asyncio.gather(*hanging, return_exceptions=True):
            assert isinstance(ended, ToolUnavailable)
        assert await tools.said("s-echo", {"n": 2}) == {"n": 2}

    async def test_its_tool_cant_be_deleted_or_replaced_alone(self, tools: McpTools) -> None:
        name = f"{PARENT}/tools/s-echo"
        with pytest.raises(InvalidArgument):
            await tools.service.delete_tool(pb.DeleteToolRequest(name=name), a_call())
        grpc = tools_pb2.GrpcTool(address="localhost:1", method="a.B/C")
        request = pb.RegisterToolRequest(
            parent=PARENT, tool_id="s-echo", grpc=grpc, effect=options_pb2.EFFECT_READ
        )
        with pytest.raises(AlreadyExists):
            await tools.service.register_tool(request, a_call())


class TestProcesses:
    async def test_it_gets_nothing_of_wefts_environment_and_an_empty_folder(
        self, tools: McpTools, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WEFT_CANARY", CANARY)
        await tools.add("bare", stdio=stdio(TOKEN="sealed"))
        place = await tools.said("bare-place")
        assert set(place["environment"]) == {"PATH", "HOME", "TMPDIR", "LANG", "TOKEN"}
        assert place["environment"]["TOKEN"] == "sealed"
        assert place["environment"]["HOME"] == place["cwd"]
        assert place["files"] == []
        assert place["group"] == place["pid"]

    async def test_a_killed_server_is_started_again(self, tools: McpTools) -> None:
        await tools.add("killed")
        first = (await tools.said("killed-place"))["pid"]
        os.kill(first, signal.SIGKILL)
        await eventually(all_gone(first))
        # Whether it is seen before the call is a race; the one behind it has a new process.
        with_luck = await asyncio.gather(tools.invoke("killed-echo"), return_exceptions=True)
        assert isinstance(with_luck[0], ToolUnavailable | pb.InvokeToolResponse)
        assert (await tools.said("killed-place"))["pid"] != first
        assert (await tools.get("killed")).status.connects == 2

    async def test_a_server_that_crashes_in_a_call_is_unavailable_and_waits_longer_each_time(
        self, tools: McpTools
    ) -> None:
        await tools.add("crashing")
        said = []
        for _ in range(3):
            with pytest.raises(ToolUnavailable) as caught:
                await tools.invoke("crashing-crash")
            said.append(caught.value)
        assert "may have run it" in said[0].message
        assert said[2].retry_seconds
        server = await tools.get("crashing")
        assert (server.status.state, server.status.failures) == (FAILED, 2)
        assert server.status.reason
        assert len(server.tools) > 10

    @pytest.mark.parametrize("how", ["noise", "huge"])
    async def test_a_server_that_says_too_much_is_ended(self, tools: McpTools, how: str) -> None:
        server_id = f"loud-{how}"
        await tools.add(server_id)
        pid = (await tools.said(f"{server_id}-place"))["pid"]
        with pytest.raises(ToolUnavailable):
            await tools.invoke(f"{server_id}-{how}", {"characters": 5_000_000})
        assert await tools.said(f"{server_id}-echo", {"n": 1}) == {"n": 1}
        await eventually(all_gone(pid), 15)

    async def test_all_that_it_started_ends_with_it(self, tools: McpTools) -> None:
        await tools.add("parent")
        started = await tools.said("parent-spawn")
        assert is_running(started["child"])
        await tools.delete("parent")
        await eventually(all_gone(started["child"], started["pid"]), 15)
        with pytest.raises(NotFound):
            await tools.invoke("parent-echo")

    async def test_one_that_ignores_the_end_of_its_input_is_ended_by_force(
        self, tools: McpTools
    ) -> None:
        await tools.add("stubborn", "--fault", "stays")
        pid = (await tools.said("stubborn-place"))["pid"]
        await tools.delete("stubborn")
        await eventually(all_gone(pid), 15)

    async def test_it_ends_with_what_stands_between_it_and_weft(self, tools: McpTools) -> None:
        await tools.add("orphan")
        pid = (await tools.said("orphan-place"))["pid"]
        os.kill((await tools.get("orphan")).status.process_id, signal.SIGKILL)
        await eventually(all_gone(pid))

    async def test_an_idle_one_is_ended_and_started_again_for_the_next_call(
        self, tmp_path: Path
    ) -> None:
        async with mcp_tools(tmp_path, mcp_idle_seconds=0.2) as tools:
            await tools.add("s")
            first = (await tools.said("s-place"))["pid"]
            await eventually(all_gone(first))
            assert (await tools.get("s")).status.state == IDLE
            assert (await tools.said("s-place"))["pid"] != first
            folders = list((tmp_path / "mcp").iterdir())
            assert len(folders) == 1

    async def test_a_stop_leaves_no_process_and_no_folder(self, tmp_path: Path) -> None:
        async with mcp_tools(tmp_path) as tools:
            await tools.add("s")
            started = await tools.said("s-spawn")
        assert not is_running(started["pid"])
        assert not is_running(started["child"])
        assert list((tmp_path / "mcp").iterdir()) == []


class TestAdding:
    async def test_a_server_that_ends_at_once_isnt_added(self, tools: McpTools) -> None:
        with pytest.raises(ToolUnavailable, match="ended before it was ready"):
            await tools.add("exits", "--fault", "exits")
        with pytest.raises(NotFound):
            await tools.get("exits")

    async def test_one_of_another_protocol_isnt_added(self, tools: McpTools) -> None:
        with pytest.raises(ToolUnavailable):
            await tools.add("other", "--fault", "version")

    async def test_one_that_starts_slowly_is_waited_for_and_not_too_long(
        self, tmp_path: Path
    ) -> None:
        async with mcp_tools(tmp_path, mcp_start_seconds=4) as tools:
            assert len((await tools.add("slow", "--delay", "0.5")).tools) > 10
            with pytest.raises(ToolUnavailable, match="wasn't ready within 4 s"):
                await tools.add("slower", "--delay", "60")

    @pytest.mark.parametrize(
        "command",
        [
            ["/bin/sh", "-c", "true"],
            [sys.executable, "-c", "print()"],
            [sys.executable, "-I", "-S", str(FAULTY) + "x"],
            [sys.executable, "-I", "-S"],
            [f"{os.path.dirname(sys.executable)}/../bin/python", "-I", "-S", str(FAULTY)],
        ],
    )
    async def test_a_command_that_the_operator_didnt_allow_isnt_started(
        self, tools: McpTools, command: list[str]
    ) -> None:
        program, *arguments = command
        wanted = mcp_servers_pb2.McpStdio(command=program, arguments=arguments)
        with pytest.raises(FailedPrecondition, match="WEFT_TOOLS_MCP_COMMANDS"):
            await tools.add("x", stdio=wanted)

    def test_nothing_is_allowed_unless_the_operator_says_so(self) -> None:
        assert ToolsSettings().mcp_command_lines == []

    @pytest.mark.parametrize(
        "name", ["LD_PRELOAD", "PATH", "NODE_OPTIONS", "PYTHONPATH", "BASH_ENV", "A-B"]
    )
    async def test_a_variable_that_changes_what_runs_is_refused(
        self, tools: McpTools, name: str
    ) -> None:
        wanted = stdio()
        wanted.environment.add(name=name, value="x")
        with pytest.raises(InvalidArgument):
            await tools.add("x", stdio=wanted)

    @pytest.mark.parametrize(
        "url",
        [
            "http://169.254.169.254/latest/meta-data",
            "https://127.0.0.1/mcp",
            "https://localhost:1/mcp",
            "https://[::1]/mcp",
            "https://[::ffff:10.0.0.1]/mcp",
            "http://example.com/mcp",
            "https://user:password@example.com/mcp",
        ],
    )
    async def test_an_address_that_isnt_public_isnt_called(self, tools: McpTools, url: str) -> None:
        http = mcp_servers_pb2.McpHttp(url=url)
        with pytest.raises((FailedPrecondition, PermissionDenied, ToolUnavailable)):
            await tools.add("x", http=http)

    @pytest.mark.parametrize("name", ["Host", "content-length", "Mcp-Session-Id", "accept"])
    async def test_a_header_that_isnt_the_callers_to_set_is_refused(
        self, tools: McpTools, name: str
    ) -> None:
        http = mcp_servers_pb2.McpHttp(url="https://mcp.example.com/mcp")
        http.headers.add(name=name, value="x")
        with pytest.raises(InvalidArgument):
            await tools.add("x", http=http)

    async def test_a_request_that_comes_again_adds_nothing_more(self, tools: McpTools) -> None:
        first = await tools.add("again", request_id="r1")
        second = await tools.add("again", request_id="r1")
        assert second.etag == first.etag
        with pytest.raises(RequestIdReused):
            await tools.add("again", request_id="r1", requires_approval=True)

    async def test_a_replaced_servers_connection_is_ended(self, tools: McpTools) -> None:
        await tools.add("replaced")
        first = (await tools.said("replaced-place"))["pid"]
        await tools.add("replaced", "--tools", "1")
        await eventually(all_gone(first), 15)
        assert (await tools.said("replaced-place"))["pid"] != first

    async def test_servers_are_listed_in_pages_without_their_tools(self, tmp_path: Path) -> None:
        async with mcp_tools(tmp_path) as tools:
            for server_id in ("b", "a"):
                await tools.add(server_id)
            names, token = [], ""
            for _ in range(2):
                request = mcp_pb.ListMcpServersRequest(parent=PARENT, page_size=1, page_token=token)
                page = await tools.servers.list_mcp_servers(request, a_call())
                names += [(each.name.rpartition("/")[2], len(each.tools)) for each in page.servers]
                token = page.next_page_token
            assert (names, token) == ([("a", 0), ("b", 0)], "")


class TestSecrets:
    async def test_a_secret_is_in_no_answer_no_event_and_no_log(
        self,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        log_lines: list[MutableMapping[str, Any]],
    ) -> None:
        store = MemoryEventStore()

        def is_said() -> bool:
            return any(each.get("said") == "can't go on with [redacted]" for each in log_lines)

        async with mcp_tools(tmp_path, events=store) as tools:
            seen: list[Any] = [await tools.add("s", stdio=stdio(SECRET=CANARY))]
            assert (await tools.said("s-place"))["environment"]["SECRET"] == CANARY
            seen.append(await tools.get("s"))
            assert [each.is_secret for each in seen[-1].stdio.environment] == [True]
            try:
                await tools.add("e", stdio=stdio("--fault", "exits", SECRET=CANARY))
            except WeftError as error:
                seen.append(error.message)
            listed = mcp_pb.ListMcpServersRequest(parent=PARENT)
            seen.append(await tools.servers.list_mcp_servers(listed, a_call()))
            # What a process said is logged beside its end, not before.
            await until(is_said)
        end = await store.last_position()
        commits = [await store.open(each) async for each in store.scan(EVERYTHING, 0, end)]
        assert len(commits) == 1
        seen += [each.commit.SerializeToString() for each in commits]
        assert CANARY not in "".join(map(str, seen))
        assert CANARY not in str(log_lines)
        assert CANARY not in "".join(capfd.readouterr())

    async def test_secrets_open_at_their_place_only(self, tools: McpTools) -> None:
        secrets = tools.service._secrets
        one, other = (tools.servers._aggregate(f"{PARENT}/mcpServers/{s}").stream for s in "ab")
        sealed = await secrets.seal(one, {"headers/authorization": CANARY})
        assert sealed is not None
        assert await secrets.open(one, sealed) == {"headers/authorization": CANARY}
        with pytest.raises(WeftError):
            await secrets.open(other, sealed)
