"""The rules of MCP servers, and the ids of their tools."""

import re

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import NotFound, RequestIdReused
from mesh.events.fold import Place
from services.tools.mcp.domain import (
    MCP_FOLD,
    Record,
    decide_add,
    decide_delete,
    decide_list,
    evolve,
    known_ids,
    tool_ids,
)
from weft.tools.v1 import mcp_events_pb2 as facts
from weft.tools.v1 import mcp_servers_pb2, tools_pb2

NAME = "tenants/acme/mcpServers/s"
ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("echo", "s-echo"),
        ("get_sum", "s-get-sum"),
        ("readTextFile", "s-read-text-file"),
        ("HTTPGet", "s-http-get"),
        ("a.b/c", "s-a-b-c"),
    ],
)
def test_an_id_is_made_of_server_and_tool(name: str, expected: str) -> None:
    assert tool_ids("s", [name], (), {}) == {name: expected}


def test_names_that_would_have_one_id_all_get_a_hash_whatever_their_order() -> None:
    names = ["getThing", "get_thing", "get-thing"]
    one, other = tool_ids("s", names, (), {}), tool_ids("s", names[::-1], (), {})
    assert one == other
    assert len(set(one.values())) == 3


def test_an_id_that_another_tool_has_is_left_to_it() -> None:
    ids = tool_ids("a", ["b-c"], {"a-b-c"}, {})
    assert ids["b-c"].startswith("a-b-c-")


def test_a_tool_keeps_the_id_that_it_had() -> None:
    had = tool_ids("s", ["getThing"], (), {})
    now = tool_ids("s", ["get_thing", "getThing"], (), had)
    assert now["getThing"] == had["getThing"]
    assert now["get_thing"] != had["getThing"]


@given(
    st.lists(st.text(min_size=1, max_size=100), max_size=20),
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,29}", fullmatch=True),
)
def test_ids_are_ids_and_no_two_are_one(names: list[str], server: str) -> None:
    ids = tool_ids(server, names, (), {})
    assert set(ids) == set(names)
    assert all(ID.fullmatch(each) for each in ids.values())
    assert len(set(ids.values())) == len(set(names))


def made(*fact: facts.McpServerAdded | facts.McpToolsListed | facts.McpServerDeleted) -> Record:
    record = Record()
    for revision, each in enumerate(fact, 1):
        record = evolve(record, each, Place(revision, Timestamp(seconds=revision)))
    return record


REQUEST = mcp_servers_pb2.McpServerRequest(request_id="r1", request_hash=b"1")
ADDED = facts.McpServerAdded(server=mcp_servers_pb2.McpServer(name=NAME), request=REQUEST)
LISTED = facts.McpToolsListed(
    tools=[
        tools_pb2.Tool(
            name="tenants/acme/tools/s-echo", mcp=tools_pb2.McpTool(server=NAME, tool="echo")
        )
    ]
)


def test_a_server_has_what_it_listed_last() -> None:
    record = made(ADDED, LISTED)
    assert list(record.server.tools) == ["tenants/acme/tools/s-echo"]
    assert record.server.list_time.seconds == 2
    assert known_ids(record) == {"echo": "s-echo"}
    assert not made(ADDED, LISTED, facts.McpToolsListed()).tools
    assert MCP_FOLD.decode(MCP_FOLD.encode(record)) == record


def test_the_same_request_adds_nothing_more_and_another_under_its_id_is_refused() -> None:
    record = made(ADDED, LISTED)
    assert decide_add(record, REQUEST, ADDED.server, None, LISTED) == []
    other = mcp_servers_pb2.McpServerRequest(request_id="r1", request_hash=b"2")
    with pytest.raises(RequestIdReused):
        decide_add(record, other, ADDED.server, None, LISTED)


def test_a_list_is_stored_only_if_it_is_another_and_of_the_same_server() -> None:
    record = made(ADDED, LISTED)
    assert decide_list(record, 1, LISTED) == []
    assert decide_list(record, 1, facts.McpToolsListed()) == [facts.McpToolsListed()]
    assert decide_list(record, 0, facts.McpToolsListed()) == []
    assert decide_list(Record(), 0, LISTED) == []


def test_a_deleted_server_is_gone_with_its_tools_and_secrets() -> None:
    deletion = facts.McpServerDeleted(request=mcp_servers_pb2.McpServerRequest(request_id="r2"))
    record = made(ADDED, LISTED, deletion)
    assert not record.HasField("server")
    assert not record.HasField("secrets")
    assert not record.tools
    with pytest.raises(NotFound):
        decide_delete(record, NAME, mcp_servers_pb2.McpServerRequest(request_id="r3"))
    assert decide_delete(record, NAME, deletion.request) == []
