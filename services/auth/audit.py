"""The event log, read as an audit trail."""

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from mesh.call import Call
from mesh.clock import NANOSECONDS
from mesh.errors import DataDamaged, InvalidArgument
from mesh.events.envelope import sealed_commit
from mesh.events.store import (
    IMPORTED,
    EventStore,
    Head,
    SealedCommit,
    Selection,
    StoredCommit,
    StreamName,
)
from mesh.principal import covers
from mesh.rpc.pages import read_page_number, write_page_token
from services.auth import domain
from services.auth.domain.names import AREA
from services.auth.requests import PAGE_SIZE
from weft.auth.v1 import audit_service_pb2 as pb
from weft.auth.v1 import events_pb2 as facts

SCANNED_COMMITS_MAX = 10_000
"""Commits that one call looks at; it then answers with what it found and a token."""
OPENED_COMMITS_MAX = 1_000
"""Commits of access among them, which are opened for what they are about."""
CLOCKS_APART_SECONDS = 60
"""How far the time at which a commit was decided may be from when it was stored."""

_POSITION_MAX = 2**63
_DAMAGED = "damaged"
_DENIED = facts.AccessDenied.DESCRIPTOR.full_name
_COLLECTIONS = {
    "agents": "agents",
    "blobs": "blobs",
    "budgets": "budgets",
    "functions": "functions",
    "instances": "instances",
    "schedules": "schedules",
    "scheduler": "queues",
    "tools": "tools",
}
"""Areas whose streams are a resource each, with the collection that it is in."""


@dataclass(frozen=True, slots=True)
class _Range:
    """Behind which position to look, and up to which."""

    after: int
    until: int


class Audit:
    """`weft.auth.v1.AuditService`."""

    def __init__(self, events: EventStore) -> None:
        self._events = events

    async def list_audit_entries(
        self, request: pb.ListAuditEntriesRequest, call: Call
    ) -> pb.ListAuditEntriesResponse:
        """A page of what was done in the tenant, oldest first."""
        _check(request)
        where = await self._range(request)
        size = request.page_size or PAGE_SIZE
        response = pb.ListAuditEntriesResponse()
        scanned = opened = 0
        last = where.after
        async with aclosing(self._commits(request, where)) as commits:
            async for sealed in commits:
                bound = scanned >= SCANNED_COMMITS_MAX or opened >= OPENED_COMMITS_MAX
                if bound or len(response.entries) >= size:
                    response.next_page_token = write_page_token(str(last), request.parent)
                    break
                scanned += 1
                last = sealed.position
                stored = _parsed(sealed)
                if stored is None:
                    # Whose it was and when can't be told: it may be any that is asked for.
                    entry = _damaged(sealed)
                elif _may_match(request, stored):
                    opened += _is_of_access(stored)
                    entry = await self._entry(stored)
                else:
                    continue
                if _concerns(request.resource, entry.resource):
                    response.entries.append(entry)
        return response

    async def _commits(
        self, request: pb.ListAuditEntriesRequest, where: _Range
    ) -> AsyncGenerator[SealedCommit, None]:
        of_tenant = Selection.of_tenant(domain.tenant_of(request.parent))
        until = min(where.until, await self._events.last_position())
        async with aclosing(self._events.scan(of_tenant, where.after, until)) as commits:
            async for sealed in commits:
                yield sealed

    async def _range(self, request: pb.ListAuditEntriesRequest) -> _Range:
        after, until = 0, _POSITION_MAX
        apart_ns = CLOCKS_APART_SECONDS * NANOSECONDS
        if request.HasField("start_time"):
            after = await self._events.position_at(request.start_time.ToNanoseconds() - apart_ns)
        if request.HasField("end_time"):
            until = await self._events.position_at(request.end_time.ToNanoseconds() + apart_ns)
        token = read_page_number(request.page_token, request.parent, _POSITION_MAX)
        return _Range(max(after, token or 0), until)

    async def _entry(self, stored: StoredCommit) -> pb.AuditEntry:
        commit = stored.commit
        entry = pb.AuditEntry(
            position=stored.position,
            time=commit.time,
            actor=commit.actor,
            resource=_resource(StreamName.parse(commit.stream)),
            actions=dict.fromkeys(event.type for event in commit.events),
            request_id=commit.request_id,
            hash=stored.hash,
        )
        if _is_of_access(stored):
            try:
                await self._say_more(entry, stored)
            except (DataDamaged, DecodeError):
                entry.actions.append(_DAMAGED)
        return entry

    async def _say_more(self, entry: pb.AuditEntry, stored: StoredCommit) -> None:
        """What a commit of access is about only its payloads tell, and they hold nothing
        that their reader may not see."""
        opened = await self._open(stored)
        if opened is None:
            return
        if opened.commit.events[0].type == _DENIED:
            denied = [facts.AccessDenied.FromString(e.payload.value) for e in opened.commit.events]
            entry.refused_methods.extend(each.method for each in denied)
            return
        fact = domain.ACCESS_FOLD.open(opened.commit.events[0])
        if isinstance(fact, facts.ApiKeyUsed):
            entry.resource = fact.api_key
        elif fact is not None and fact.HasField("request"):
            entry.resource = fact.request.resource  # type: ignore[attr-defined]

    async def _open(self, stored: StoredCommit) -> StoredCommit | None:
        commit = stored.commit
        before = Head(commit.revision - 1, commit.previous_position, commit.previous_hash)
        pages = self._events.read(
            StreamName.parse(commit.stream), before, until_revision=commit.revision
        )
        async with aclosing(pages):
            async for page in pages:
                return page[0]
        return None


def _check(request: pb.ListAuditEntriesRequest) -> None:
    tenant = domain.tenant_of(request.parent)
    for field in ("actor", "resource"):
        name = getattr(request, field)
        if name and (name.count("/") < 1 or domain.tenant_of(name) != tenant):
            raise InvalidArgument.of(field, f"must be in {request.parent}")


def _parsed(sealed: SealedCommit) -> StoredCommit | None:
    try:
        return sealed_commit(*sealed)
    except DataDamaged:
        return None


def _damaged(sealed: SealedCommit) -> pb.AuditEntry:
    return pb.AuditEntry(
        position=sealed.position,
        resource=_resource(StreamName.parse(sealed.stream)),
        actions=[_DAMAGED],
        hash=hashlib.sha256(sealed.data).digest(),
    )


def _may_match(request: pb.ListAuditEntriesRequest, stored: StoredCommit) -> bool:
    """Whether the envelope passes; what it is about is looked at once it is known. Of an
    import only that it took place was done here; the rest happened elsewhere."""
    if stored.commit.causation_id == IMPORTED:
        return False
    time_ns = stored.commit.time.ToNanoseconds()
    if request.HasField("start_time") and time_ns < request.start_time.ToNanoseconds():
        return False
    if request.HasField("end_time") and time_ns >= request.end_time.ToNanoseconds():
        return False
    if request.actor and stored.commit.actor != request.actor:
        return False
    if _is_of_access(stored):
        return True
    return _concerns(request.resource, _resource(StreamName.parse(stored.commit.stream)))


def _concerns(pattern: str, resource: str) -> bool:
    return not pattern or covers(pattern, resource)


def _is_of_access(stored: StoredCommit) -> bool:
    return stored.commit.stream.startswith(f"{AREA}.")


def _resource(stream: StreamName) -> str:
    """Name of the resource that a stream holds; of the tenant where it is no resource's."""
    tenant = domain.tenant_name(stream.tenant)
    if stream.area in ("exports", "state") and len(stream.key) == 2:
        return f"{tenant}/agents/{stream.key[0]}/sessions/{stream.key[1]}"
    if stream.area == "control" and len(stream.key) == 2:
        return f"{tenant}/{stream.key[0]}/{stream.key[1]}/split"
    if stream.area in _COLLECTIONS and len(stream.key) == 1:
        return f"{tenant}/{_COLLECTIONS[stream.area]}/{stream.key[0]}"
    return tenant
