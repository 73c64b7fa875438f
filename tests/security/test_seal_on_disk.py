"""What lies on the disk: nothing of what was said, and no key that could open it."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.plans import plan
from tests.support.platform import Platform, platform
from tests.support.turn_client import TurnClient
from weft.agents.v1 import agent_pb2
from weft.state.v1 import session_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

MARK = "Zanzibar-canary"
LARGE_BYTES = 258_000
"""More than a commit keeps of one fact, and not more than a turn may say."""
TURNS = 60
"""Enough for a snapshot, which is made every hundred commits."""


@pytest.fixture
async def weft(tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(tmp_path / "data", WEFT_SECURITY_SECRETS_DIR=str(tmp_path / "keys")) as run:
        yield run


def forms_of(text: str) -> set[bytes]:
    """The text as it may lie there: as it is, and in base64 at each of three offsets."""
    plain = text.encode()
    encoded = [base64.b64encode(b"x" * skip + plain)[4:-4] for skip in range(3)]
    return {plain, plain.lower(), plain.hex().encode(), *encoded}


def files_with(folder: Path, texts: set[bytes]) -> list[str]:
    """Files below the folder that hold any of the texts."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(text in path.read_bytes() for text in texts)
    ]


async def converse(weft: Platform) -> str:
    """Says the mark in every way in which a turn can; returns the session."""
    binding = agent_pb2.ToolBinding(tool="calculator")
    spec = agent_pb2.AgentSpec(instructions=f"Say {MARK}.", tools=[binding])
    agent = await weft.apply("bot", spec)
    session = await weft.session(agent)
    call = {"tool": "calculator", "arguments": {"expression": f"1 + 1 # {MARK}"}}
    for number in range(TURNS):
        steps = [{"calls": [call]}] if number % 10 == 0 else []
        size = LARGE_BYTES if number == 1 else 10
        answer = {"text": f"{MARK} {'x' * size}", "tokens": 5}
        turn = TurnClient(session, plan(*steps, answer))
        await turn.run(weft)
        assert turn.ended
    return session


async def test_no_byte_of_what_was_said_lies_in_the_data_folder(weft: Platform) -> None:
    session = await converse(weft)
    said = forms_of(MARK)
    listed = session_service_pb2.ListSessionsRequest(parent=session.rpartition("/sessions/")[0])
    found = await SessionServiceStub(weft.open_channel).ListSessions(listed, timeout=10)
    assert [each.turn_count for each in found.sessions] == [TURNS]
    while_it_runs = files_with(weft.data_dir, said)
    await weft.stop()
    stored = [path.as_posix() for path in weft.data_dir.rglob("*") if path.is_file()]
    for kept in ("/EVENTS/", "/SNAPSHOTS/", "/OBJ_BLOBS/", "/KV_KEYS/"):
        assert any(f"/streams{kept}msgs/" in path for path in stored), kept
    assert while_it_runs == files_with(weft.data_dir, said) == []
    assert MARK not in weft.log_file.read_text()
    # It is all there for who has the key.
    await weft.start(WEFT_SECURITY_SECRETS_DIR=str(weft.data_dir.parent / "keys"))
    again = TurnClient(session, plan({"text": "still here"}))
    await again.run(weft)
    assert again.text == "still here"


async def test_the_data_folder_is_of_no_use_without_the_master_key(weft: Platform) -> None:
    session = await weft.session(await weft.apply("bot", agent_pb2.AgentSpec()))
    await TurnClient(session, plan({"text": "once"})).run(weft)
    await weft.stop()
    master = (weft.data_dir.parent / "keys" / "master.key").read_bytes().strip()
    raw = base64.b64decode(master)
    assert files_with(weft.data_dir, {master, raw, raw.hex().encode()}) == []
    with pytest.raises(AssertionError, match="WEFT_SECURITY_SECRETS_DIR"):
        await weft.start(WEFT_SECURITY_SECRETS_DIR=str(weft.data_dir.parent / "others"))
    assert not (weft.data_dir.parent / "others").exists()
    await weft.start(WEFT_SECURITY_SECRETS_DIR=str(weft.data_dir.parent / "keys"))
    again = TurnClient(session, plan({"text": "still here"}))
    await again.run(weft)
    assert again.ended
