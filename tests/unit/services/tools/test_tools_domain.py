"""The rules of a registered tool."""

import pytest

from mesh.errors import DataDamaged, NotFound, RequestIdReused
from services.tools.domain import (
    REQUESTS_MAX,
    Command,
    Delete,
    Register,
    ToolState,
    answered,
    decide,
    evolve,
    evolve_commit,
    tool_name,
    tool_stream,
    with_etag,
)
from weft.events.v1 import events_pb2 as envelope_pb2
from weft.tools.v1 import tools_pb2

NAME = tool_name("acme", "credit")


def tool(description: str = "") -> tools_pb2.Tool:
    return tools_pb2.Tool(name=NAME, description=description)


def after(*commands: tuple[str, Command]) -> ToolState:
    state = ToolState()
    for request_id, command in commands:
        for fact in decide(state, command):
            state = evolve(state, fact, request_id)
    return state


def test_a_registered_tool_is_there_until_it_is_deleted() -> None:
    first, second = Register(tool("1"), b"1"), Register(tool("2"), b"2")
    assert after(("r1", first), ("r2", second)).tool == tool("2")
    assert after(("r1", first), ("r2", Delete(NAME))).tool is None


def test_what_is_not_there_is_not_deleted() -> None:
    with pytest.raises(NotFound, match=NAME):
        decide(ToolState(), Delete(NAME))
    with pytest.raises(NotFound):
        decide(after(("r1", Register(tool(), b"")), ("r2", Delete(NAME))), Delete(NAME))


def test_a_repeated_request_gets_its_own_answer() -> None:
    state = after(("r1", Register(tool("1"), b"1")), ("r2", Register(tool("2"), b"2")))
    earlier = answered(state, "r1", b"1")
    assert earlier is not None
    assert earlier.tool == tool("1")
    assert answered(state, "r3", b"1") is None


@pytest.mark.parametrize("digest", [b"2", b""])
def test_a_request_id_with_another_body_is_refused(digest: bytes) -> None:
    with pytest.raises(RequestIdReused):
        answered(after(("r1", Register(tool(), b"1"))), "r1", digest)


def test_the_last_requests_are_known() -> None:
    count = REQUESTS_MAX + 5
    state = after(*((f"r{number}", Register(tool(), b"")) for number in range(count)))
    assert len(state.requests) == REQUESTS_MAX
    assert answered(state, f"r{count - 1}", b"")
    assert answered(state, "r0", b"") is None


@pytest.mark.parametrize("may_ignore", [True, False])
def test_an_unknown_event_is_passed_over_only_where_it_may_be(may_ignore: bool) -> None:
    event = envelope_pb2.Event(type="weft.tools.v1.ToolPainted", may_ignore=may_ignore)
    commit = envelope_pb2.Commit(stream="tools.acme.credit", events=[event])
    if may_ignore:
        assert evolve_commit(ToolState(), commit) == ToolState()
        return
    with pytest.raises(DataDamaged, match="ToolPainted"):
        evolve_commit(ToolState(), commit)


def test_an_etag_follows_the_definition_alone() -> None:
    first, again, other = with_etag(tool()), tool(), with_etag(tool("other"))
    again.create_time.GetCurrentTime()
    again.etag = "old"
    assert with_etag(again).etag == first.etag
    assert other.etag != first.etag


def test_a_name_and_its_stream() -> None:
    assert NAME == "tenants/acme/tools/credit"
    assert str(tool_stream(NAME)) == "tools.acme.credit"
