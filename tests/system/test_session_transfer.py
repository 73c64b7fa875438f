"""Exports and imports over the wire, and the check of the log, on a real host."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from tests.support.keyed import KeyedChannel
from tests.support.platform import Platform, one_process, platform
from tests.support.session_calls import SessionCalls
from weft.agents.v1 import agent_pb2, agent_service_pb2
from weft.auth.v1 import audit_service_pb2, tenant_service_pb2
from weft.auth.v1.tenant_service_pb2_grpc import TenantServiceStub
from weft.state.v1 import session_service_pb2, state_service_pb2

BIG = "\N{MUSICAL SYMBOL G CLEF}" * 65_000
OTHER_TENANT = "tenants/other"
EXPORTED = "weft.state.v1.SessionExported"


def essence(records: list[session_service_pb2.SessionRecord]) -> list[tuple[str, int, bytes]]:
    """What of the events, behind the first, an import leaves as it is."""
    events = [record.event for record in records[2:]]
    return [(each.type, each.time.ToNanoseconds(), each.payload.value) for each in events]


async def other_calls(running: Platform) -> SessionCalls:
    """Calls of the administrator of another tenant, which is made for it."""
    tenants: Any = TenantServiceStub(running.open_channel)
    made = tenant_service_pb2.CreateTenantRequest(tenant_id=OTHER_TENANT.split("/")[1])
    key = (await tenants.CreateTenant(made, timeout=10)).api_key_secret
    channel: Any = running.open_channel
    return SessionCalls(cast(grpc.aio.Channel, KeyedChannel(channel.bare, key)))


async def other_agent(calls: SessionCalls, agent_id: str = "elsewhere") -> str:
    request = agent_service_pb2.CreateAgentRequest(
        parent=OTHER_TENANT, agent_id=agent_id, spec=agent_pb2.AgentSpec()
    )
    return str((await calls.agents.CreateAgent(request, timeout=10)).agent.name)


async def exported_by(calls: SessionCalls, session: str) -> list[str]:
    """Who exported the session, as the audit trail has it."""
    request = audit_service_pb2.ListAuditEntriesRequest(
        parent=session.partition("/agents/")[0], resource=session
    )
    entries = (await calls.audit.ListAuditEntries(request, timeout=10)).entries
    return [each.actor for each in entries if EXPORTED in each.actions]


async def watched_until(calls: SessionCalls, stream: str) -> set[str]:
    """The types of the other tenant's events, as who watches all of them sees them, up to the
    first of that stream."""
    watch = state_service_pb2.WatchEventsRequest(name=OTHER_TENANT, after_position=0)
    seen = set()
    async for response in calls.state.WatchEvents(watch, timeout=20):
        seen.add(response.event.type)
        if response.event.stream == stream:
            break
    return seen


async def test_a_session_moves_to_another_tenant_and_goes_on_there(tmp_path: Path) -> None:
    async with platform(tmp_path / "data") as running:
        calls = SessionCalls(running.open_channel)
        agent = await calls.agent()
        session = await calls.create(agent)
        for question in ("one", BIG, "three"):
            await calls.run(session, question)
        records = await calls.export(session)
        others = await other_calls(running)
        imported = await others.import_(await other_agent(others), records, "moved")
        assert imported == f"{OTHER_TENANT}/agents/elsewhere/sessions/moved"
        again = await others.export(imported)
        assert essence(again) == essence(records)
        assert session not in str(again[1].event.payload.value)
        verify = state_service_pb2.VerifyReplayRequest(name=imported)
        assert (await others.state.VerifyReplay(verify)).matches
        assert await exported_by(others, imported) == [f"{OTHER_TENANT}/apiKeys/admin"]
        assert await others.run(imported, "and now?")
        await other_agent(others, "later")
        seen = await watched_until(others, "agents.other.later")
        assert "weft.state.v1.SessionImported" in seen
        assert EXPORTED not in seen
        assert await calls.listed() == [session]
        assert await others.listed(f"{OTHER_TENANT}/agents/-") == [imported]


async def test_an_import_runs_nothing(tmp_path: Path) -> None:
    """A turn that was open in the export, with a call that waited to be approved. In one process,
    since its file is looked into."""
    async with one_process(tmp_path / "data") as running:
        calls = SessionCalls(running.open_channel)
        tools = [agent_pb2.ToolBinding(tool="calculator", requires_approval=True)]
        agent = await running.apply("careful", agent_pb2.AgentSpec(tools=tools))
        session = await calls.create(agent)
        plan = [{"calls": [{"tool": "calculator", "arguments": {"expression": "6*7"}}]}]
        await calls.run(session, json.dumps({"steps": [*plan, {"text": "done"}]}))
        records = await calls.export(session)
        imported = await calls.import_(agent, records)
        got = await calls.sessions.GetSession(session_service_pb2.GetSessionRequest(name=imported))
        assert (got.session.active_turn, got.session.turn_count) == ("", 1)
        again = await calls.export(imported)
        assert again[-1].event.type.endswith("TurnCancelled")
        assert len(again) == len(records) + 1
        # Cut before the model answered: the turn had an owner, who is gone elsewhere.
        short = records[:3]
        short[0].header.event_count = 2
        owned = await calls.import_(agent, short)
        assert await running.stop() == 0
        with closing(sqlite3.connect(tmp_path / "data" / "agents.sqlite3")) as tables:
            (opened,) = tables.execute("SELECT count(*) FROM open_turns").fetchone()
            assert opened == 1, "only the one that waits in the first session"
        await running.start()
        calls = SessionCalls(running.open_channel)
        assert len(await calls.export(owned)) == len(short) + 1


async def test_a_broken_stream_of_requests_stores_nothing(tmp_path: Path) -> None:
    async with platform(tmp_path / "data") as running:
        calls = SessionCalls(running.open_channel)
        agent = await calls.agent()
        session = await calls.create(agent)
        await calls.run(session, "one")
        records = await calls.export(session)
        for broken in (records[:-1], [*records, records[-1]], records[1:], []):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await calls.import_(agent, broken, "broken")
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert await calls.listed() == [session]
        assert await calls.import_(agent, records, "broken")


async def test_the_log_is_verified_over_the_wire(tmp_path: Path) -> None:
    async with platform(tmp_path / "data") as running:
        calls = SessionCalls(running.open_channel)
        session = await calls.create(await calls.agent())
        await calls.run(session, BIG)
        responses = await calls.verify()
        last = responses[-1]
        assert (last.done, list(last.problems)) == (True, [])
        assert last.stream_count >= 2
        assert last.commit_count >= 4
        assert not any(response.done for response in responses[:-1])
