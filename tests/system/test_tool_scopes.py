"""Tools that want permissions of whoever asks for a turn: what they had then counts, in the
background and after a crash too."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc.aio
import pytest

from tests.support.keyed import KeyedChannel
from tests.support.plans import plan
from tests.support.platform import TENANT, Platform, one_process
from tests.support.turn_client import TurnClient, events_of, kind_of
from weft.agents.v1 import agent_pb2, turn_service_pb2
from weft.auth.v1 import api_key_service_pb2 as keys_pb
from weft.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from weft.blobs.v1 import blob_service_pb2 as blobs_pb
from weft.blobs.v1.blob_service_pb2_grpc import BlobServiceStub

SECONDS = 20.0
POLL_SECONDS = 0.05


@pytest.fixture(scope="module")
async def weft(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with one_process(tmp_path_factory.mktemp("scopes") / "data") as running:
        await running.apply(
            "writer", agent_pb2.AgentSpec(tools=[agent_pb2.ToolBinding(tool="blob-write")])
        )
        yield running


def writes(blob: str) -> str:
    """A question at which the model writes a blob, and says what came of it."""
    call = {"tool": "blob-write", "arguments": {"blob": blob, "text": "x"}}
    return plan({"calls": [call]}, {"text": "done"})


async def operator(weft: Platform) -> Any:
    """A channel of somebody who may run agents, and may not put blobs."""
    request = keys_pb.CreateApiKeyRequest(parent=TENANT, roles=[f"{TENANT}/roles/operator"])
    made = await ApiKeyServiceStub(weft.open_channel).CreateApiKey(request, timeout=SECONDS)
    channel = cast(KeyedChannel, weft.open_channel)
    return KeyedChannel(channel.bare, made.secret)


async def is_there(weft: Platform, blob: str) -> bool:
    request = blobs_pb.ListBlobsRequest(parent=TENANT, prefix=blob)
    found = await BlobServiceStub(weft.open_channel).ListBlobs(request, timeout=SECONDS)
    return f"{TENANT}/blobs/{blob}" in {each.name for each in found.blobs}


async def as_operator(weft: Platform, question: str, *, background: bool) -> list[str]:
    """What the tool answered in an operator's turn."""
    theirs = await operator(weft)
    session = await weft.session(f"{TENANT}/agents/writer")
    ours = weft.channel
    weft.channel = cast(grpc.aio.Channel, theirs)
    try:
        if background:
            turn = await submitted(weft, session, question)
        else:
            client = TurnClient(session, question)
            await client.run(weft)
            turn = client.turn
    finally:
        weft.channel = ours
    return [
        event.tool_result.content
        for event in await events_of(weft, turn)
        if kind_of(event) == "tool_result"
    ]


async def submitted(weft: Platform, session: str, question: str) -> str:
    request = turn_service_pb2.SubmitTurnRequest(session=session, input=question)
    sent = await weft.turns.SubmitTurn(request, timeout=SECONDS)
    async with asyncio.timeout(SECONDS):
        while True:
            get = turn_service_pb2.GetTurnRequest(name=sent.turn)
            turn = (await weft.turns.GetTurn(get, timeout=SECONDS)).turn
            if turn.end_revision:
                return str(sent.turn)
            await asyncio.sleep(POLL_SECONDS)


@pytest.mark.parametrize("background", [False, True], ids=["run", "submitted"])
async def test_who_lacks_a_permission_gets_no_call(weft: Platform, background: bool) -> None:
    name = f"theirs-{int(background)}"
    answers = await as_operator(weft, writes(name), background=background)
    (answer,) = answers
    assert "permission denied" in answer
    assert "blobs.put" in answer
    assert not await is_there(weft, name)


async def test_who_has_it_does_also_in_the_background(weft: Platform) -> None:
    session = await weft.session(f"{TENANT}/agents/writer")
    client = TurnClient(session, writes("ours"))
    await client.run(weft)
    assert client.kinds[-1] == "completed"
    assert await is_there(weft, "ours")
    await submitted(weft, session, writes("ours-later"))
    assert await is_there(weft, "ours-later")


async def test_what_they_had_outlives_the_process(weft: Platform) -> None:
    """The next process resumes the turn as nobody's; the log says what its caller might do."""
    session = await weft.session(f"{TENANT}/agents/writer")
    await weft.arm("tool:blob-write:before")
    client = TurnClient(session, writes("resumed"))
    with pytest.raises(grpc.aio.AioRpcError):
        await client.run(weft)
    await weft.gone()
    await weft.start()
    await client.run(weft)
    assert client.kinds[-1] == "completed"
    assert await is_there(weft, "resumed")
