"""The log as an audit trail, and calls that were refused."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.call import current_call
from mesh.errors import InvalidArgument
from mesh.events.memory import LogEntry
from mesh.events.store import IMPORTED, START, CommitDraft, NewEvent, StreamName
from mesh.principal import Principal, system
from services.auth import audit
from services.auth.settings import AuthSettings
from tests.support.access import Access, access
from tests.support.eventually import eventually
from weft.auth.v1 import api_key_service_pb2 as keys
from weft.auth.v1 import audit_service_pb2 as pb
from weft.auth.v1 import role_service_pb2 as roles
from weft.state.v1 import events_pb2 as state_facts

PARENT = "tenants/default"
ADMIN = f"{PARENT}/apiKeys/admin"


@pytest.fixture
async def made() -> AsyncIterator[Access]:
    async with access(settings=AuthSettings(denied_interval_seconds=0.01)) as one:
        yield one


async def listed(made: Access, **fields: Any) -> pb.ListAuditEntriesResponse:
    request = pb.ListAuditEntriesRequest(parent=PARENT, **fields)
    handler = made.handler("AuditService")
    response: pb.ListAuditEntriesResponse = await handler.list_audit_entries(request, made.call())
    return response


async def create_key(made: Access, api_key_id: str) -> None:
    """As a call does it, so that the log has who it was."""
    call = made.call()
    token = current_call.set(call)
    try:
        request = keys.CreateApiKeyRequest(parent=PARENT, api_key_id=api_key_id)
        await made.handler("ApiKeyService").create_api_key(request, call)
    finally:
        current_call.reset(token)


async def commit(
    made: Access, stream: StreamName, actor: str, second: int, causation: str = ""
) -> None:
    draft = CommitDraft(
        [NewEvent(state_facts.TurnCancelled())],
        second * 10**9,
        actor=actor,
        request_id="r1",
        causation_id=causation,
    )
    head = await made.events.head_at(stream, 2**63 - 1)
    await made.events.append(stream, draft, head)


def session(name: str, tenant: str = "default") -> StreamName:
    return StreamName("state", tenant, ("bot", name))


async def test_every_commit_is_listed_with_who_did_what_to_what(made: Access) -> None:
    await create_key(made, "k")
    await commit(made, session("s"), "tenants/default/apiKeys/k", 5)
    await commit(made, session("s", "acme"), "tenants/acme/apiKeys/k", 5)
    entries = (await listed(made)).entries
    created, *_, key, turn = [
        entry for entry in entries if entry.actions != ["weft.auth.v1.ApiKeyUsed"]
    ]
    assert (created.actor, created.resource) == ("system", PARENT)
    assert created.actions == [
        f"weft.auth.v1.{name}" for name in ("TenantCreated", "ApiKeyCreated", "RoleBindingCreated")
    ]
    assert (key.actor, key.resource) == (ADMIN, f"{PARENT}/apiKeys/k")
    assert (turn.actor, turn.resource) == (
        f"{PARENT}/apiKeys/k",
        f"{PARENT}/agents/bot/sessions/s",
    )
    assert turn.actions == ["weft.state.v1.TurnCancelled"]
    assert (turn.time.ToSeconds(), turn.request_id) == (5, "r1")
    stored = made.log.entries[turn.position - 1]
    assert stored.stream == "state.default.bot.s"
    head = await made.events.head_at(session("s"), 2**63 - 1)
    assert (turn.position, turn.hash) == (head.position, head.hash)


async def test_what_was_done_to_an_agents_split_is_among_what_was_done_to_the_agent(
    made: Access,
) -> None:
    await commit(made, StreamName("control", "default", ("agents", "bot")), ADMIN, 5)
    (entry,) = (await listed(made, resource=f"{PARENT}/agents/bot")).entries
    assert entry.resource == f"{PARENT}/agents/bot/split"


async def test_entries_are_filtered(made: Access) -> None:
    for second, (name, actor) in enumerate([("s1", "a"), ("s2", "a"), ("s1", "b"), ("s3", "b")]):
        await commit(made, session(name), f"{PARENT}/apiKeys/{actor}", 10 + second)
    await create_key(made, "k")

    async def seconds(**fields: Any) -> list[int]:
        entries = (await listed(made, **fields)).entries
        return [entry.time.ToSeconds() for entry in entries if entry.time.ToSeconds() < 100]

    assert await seconds(actor=f"{PARENT}/apiKeys/a") == [10, 11]
    assert await seconds(resource=f"{PARENT}/agents/bot/sessions/s1") == [10, 12]
    assert await seconds(resource=f"{PARENT}/agents/*") == [10, 11, 12, 13]
    assert await seconds(resource=f"{PARENT}/tools/*") == []
    request = pb.ListAuditEntriesRequest(parent=PARENT, resource=f"{PARENT}/apiKeys/k")
    handler = made.handler("AuditService")
    found = (await handler.list_audit_entries(request, made.call())).entries
    assert [list(entry.actions) for entry in found] == [["weft.auth.v1.ApiKeyCreated"]]


async def test_times_bound_what_is_listed(made: Access) -> None:
    await create_key(made, "k")
    entries = (await listed(made)).entries
    request = pb.ListAuditEntriesRequest(parent=PARENT)
    request.start_time.CopyFrom(entries[1].time)
    handler = made.handler("AuditService")
    later = await handler.list_audit_entries(request, made.call())
    assert [entry.position for entry in later.entries] == [e.position for e in entries[1:]]
    request = pb.ListAuditEntriesRequest(parent=PARENT)
    request.end_time.CopyFrom(entries[1].time)
    earlier = await handler.list_audit_entries(request, made.call())
    assert [entry.position for entry in earlier.entries] == [entries[0].position]


async def test_entries_come_in_pages_each_once(made: Access) -> None:
    for number in range(7):
        await commit(made, session(f"s{number}"), "a", number)
        await commit(made, session(f"s{number}", "acme"), "a", number)
    whole = [entry.position for entry in (await listed(made)).entries]
    found, token = [], ""
    for _ in range(20):
        page = await listed(made, page_size=2, page_token=token)
        assert len(page.entries) <= 2
        found += [entry.position for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert found == whole


async def test_a_call_looks_at_so_much_only(made: Access, request: pytest.FixtureRequest) -> None:
    stream, head = session("s"), START
    for _ in range(audit.SCANNED_COMMITS_MAX + 10):
        draft = CommitDraft([NewEvent(state_facts.TurnCancelled())], 10**9, actor="a")
        head = await made.events.append(stream, draft, head)
    page = await listed(made, actor=f"{PARENT}/apiKeys/nobody")
    assert not page.entries
    assert page.next_page_token
    rest = await listed(made, actor=f"{PARENT}/apiKeys/nobody", page_token=page.next_page_token)
    assert not rest.next_page_token


@pytest.mark.parametrize(
    "fields", [{"actor": "tenants/acme/apiKeys/k"}, {"resource": "tenants/acme/agents/*"}]
)
async def test_another_tenant_cant_be_asked_about(made: Access, fields: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        await listed(made, **fields)


async def test_refused_calls_are_noted_with_their_number(made: Access) -> None:
    nosy = Principal(f"{PARENT}/apiKeys/nosy", "default")
    for method in ("/weft.auth.v1.TenantService/CreateTenant", "/x.Y/Z"):
        for _ in range(100):
            made.directory.denied(nosy, method)
    made.directory.denied(system(), "/x.Y/Z")
    await eventually(lambda: any(e.stream == "auth.default.denied" for e in made.log.entries))
    entries = (await listed(made, actor=nosy.name)).entries
    (entry,) = entries
    assert list(entry.actions) == ["weft.auth.v1.AccessDenied"]
    assert set(entry.refused_methods) == {"/weft.auth.v1.TenantService/CreateTenant", "/x.Y/Z"}
    made.directory.denied(nosy, "/x.Y/Z")
    await eventually(lambda: sum(e.stream == "auth.default.denied" for e in made.log.entries) == 2)


async def test_refused_calls_dont_fill_memory_or_log(made: Access) -> None:
    for number in range(5_000):
        made.directory.denied(
            Principal(f"{PARENT}/apiKeys/k{number % 3}", "default"), f"/m/{number}"
        )
    assert len(made.directory._denials._counts) <= 1_024 + 3
    before = len(made.log.entries)
    await eventually(lambda: not made.directory._denials._counts)
    assert len(made.log.entries) - before < 12


async def test_what_is_made_of_a_role_is_found_by_its_name(made: Access) -> None:
    request = roles.CreateRoleRequest(parent=PARENT, role_id="r", permissions=["agents.get"])
    await made.handler("RoleService").create_role(request, made.call())
    found = (await listed(made, resource=f"{PARENT}/roles/r")).entries
    assert [list(entry.actions) for entry in found] == [["weft.auth.v1.RoleCreated"]]


async def test_what_an_import_brings_was_not_done_here(made: Access) -> None:
    await commit(made, session("came"), ADMIN, 5, IMPORTED)
    await commit(made, session("came"), ADMIN, 6)
    found = (await listed(made, resource=f"{PARENT}/agents/bot/sessions/came")).entries
    assert [entry.time.ToSeconds() for entry in found] == [6]


async def test_a_damaged_commit_is_listed_as_such_and_ends_no_page(made: Access) -> None:
    await commit(made, session("s"), ADMIN, 5)
    made.log.entries.append(LogEntry(str(session("s2")), 1, b"\xff\xff"))
    await commit(made, session("s3"), ADMIN, 6)
    *_, damaged, last = (await listed(made, actor=ADMIN)).entries
    assert damaged.actions == ["damaged"]
    assert damaged.resource == f"{PARENT}/agents/bot/sessions/s2"
    assert last.position == damaged.position + 1
    where = f"{PARENT}/agents/bot/sessions/s"
    assert [entry.resource for entry in (await listed(made, resource=where)).entries] == [where]
