"""Every user of NATS x every subject: what the catalogue doesn't grant is refused."""

import json
from collections.abc import AsyncIterator

import pytest

from mesh.runtime.nats_server import NatsEndpoint
from mesh.runtime.nats_users import ADMIN, HOST, SERVICE_API
from services.catalog import CATALOGUE
from tests.security.bus import STREAMS, USERS, RawClient, bus, logged_in, others

SUBJECT_IS_FULL = 10077
AREAS = (
    *("agents", "auth", "blobs", "budgets", "control", "exports", "functions", "instances"),
    *("mcp", "models", "schedules", "scheduler", "state", "tools", "usage", "vectors"),
)
API = "$JS.API"

# Written by hand, so that a wrong rule doesn't prove itself: a short name for each group
# of subjects, and who has it.
LOG = {
    *("STREAM.INFO.EVENTS", "STREAM.MSG.GET.EVENTS", "DIRECT.GET.EVENTS", "DIRECT.GET.SNAPSHOTS"),
    *("STREAM.MSG.GET.OBJ_BLOBS", "DIRECT.GET.SNAPSHOTS.weft.snapshots.state.t.k"),
    "hear weft.live.events.>",
}
BLOBS = {"$O.BLOBS.C.refused", "$O.BLOBS.M.refused"}
TOKENS = {
    *("weft.tokens.state.t.refused", "STREAM.CREATE.TOKENS", "DIRECT.GET.TOKENS"),
    "hear weft.tokens.>",
}
LEASES = {
    *("STREAM.CREATE.KV_LEASES", "STREAM.INFO.KV_LEASES", "DIRECT.GET.KV_LEASES"),
    "hear weft.leases.>",
}
CACHES = {
    *("weft.cache.t.refused", "STREAM.INFO.CACHE", "DIRECT.GET.CACHE"),
    "hear weft.live.cache.>",
}
READ_KEYS = {
    *("STREAM.INFO.KV_KEYS", "STREAM.MSG.GET.KV_KEYS", "DIRECT.GET.KV_KEYS"),
    "hear $KV.KEYS.>",
}
KEEPS_KEYS = {
    *("$KV.KEYS.refused", "$KV.KEYS.master", "$KV.KEYS.secret.pepper", "$KV.KEYS.tenant.t"),
    *(f"$KV.KEYS.data.t.{area}{rest}" for area in AREAS for rest in ("", ".k.s")),
}
DESTROYS = {"STREAM.MSG.DELETE.KV_KEYS"}
ERASES = {
    *("STREAM.PURGE.SNAPSHOTS", "STREAM.PURGE.TOKENS", "DIRECT.GET.OBJ_BLOBS"),
    *("STREAM.MSG.DELETE.SNAPSHOTS", "STREAM.MSG.DELETE.OBJ_BLOBS"),
}


def writes(*areas: str) -> set[str]:
    """What appending to these areas takes, with the log that it is settled by."""
    subjects = {
        f"weft.{kind}.{area}.t.refused" for kind in ("events", "snapshots") for area in areas
    }
    keys = {f"$KV.KEYS.data.t.{area}" for area in areas}
    if "state" in areas:
        keys.add("$KV.KEYS.data.t.state.k.s")
    return subjects | keys | LOG | BLOBS


# Each process has a lease, and with it a place in the registry.
PROCESS = LOG | LEASES | READ_KEYS
GRANTED = {
    "agents": writes("agents", "state") | TOKENS | PROCESS,
    "auth": writes("auth") | PROCESS | KEEPS_KEYS | DESTROYS,
    "blobs": writes("blobs") | PROCESS,
    "control": writes("control", "instances") | PROCESS,
    "functions": writes("functions") | PROCESS,
    "gateway": writes("auth", "instances") | PROCESS,
    "models": writes("budgets", "usage") | PROCESS | CACHES,
    "scheduler": writes("scheduler", "schedules") | PROCESS,
    "state": writes("exports", "state") | PROCESS | DESTROYS | ERASES | CACHES,
    "tools": writes("mcp", "tools") | PROCESS | CACHES,
    "vectors": PROCESS,
    "admin": {
        *(f"STREAM.{call}.{name}" for call in ("CREATE", "UPDATE", "INFO") for name in STREAMS),
        *("STREAM.NAMES", "STREAM.PURGE.SNAPSHOTS", "STREAM.MSG.GET.KV_KEYS"),
        *("$KV.KEYS.master", "$KV.KEYS.secret.pepper"),
    },
}
GRANTED["host"] = set[str]().union(*(GRANTED[entry.name] for entry in CATALOGUE))
for name in (*(entry.name for entry in CATALOGUE), "host"):
    # Of its own name, so that nobody ends another's lease, or speaks for it.
    GRANTED[name] = GRANTED[name] | {f"$KV.LEASES.{name}.refused"}

CALLS = (
    *("STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.INFO"),
    *("STREAM.MSG.GET", "STREAM.MSG.DELETE", "STREAM.SNAPSHOT", "STREAM.RESTORE", "DIRECT.GET"),
    *("CONSUMER.CREATE", "CONSUMER.NAMES", "CONSUMER.LIST", "STREAM.PEER.REMOVE"),
    "STREAM.LEADER.STEPDOWN",
)
SUBJECTS = (
    *(f"weft.{kind}.{area}.t.refused" for kind in ("events", "snapshots") for area in AREAS),
    *("weft.cache.t.refused", "weft.live.cache.t.refused"),
    *("weft.events.refused", "weft.live.events.state.t.refused", "weft.tokens.state.t.refused"),
    *("$O.BLOBS.C.refused", "$O.BLOBS.M.refused", "$KV.LEASES.refused", "$KV.KEYS.refused"),
    *(f"$KV.LEASES.{each}.refused" for each in (*(entry.name for entry in CATALOGUE), "host")),
    *sorted(KEEPS_KEYS - {"$KV.KEYS.refused"}),
    *("$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.WEFT.INFO", "$JS.ACK.EVENTS.refused", "refused"),
)
API_CALLS = (
    *(f"{call}.{name}" for call in CALLS for name in STREAMS),
    *(f"CONSUMER.DURABLE.CREATE.{name}.refused" for name in STREAMS),
    *(f"CONSUMER.CREATE.{name}.refused.weft.events.>" for name in STREAMS),
    *("STREAM.NAMES", "STREAM.LIST", "INFO", "DIRECT.GET.SNAPSHOTS.weft.snapshots.state.t.k"),
    "DIRECT.GET.KV_KEYS.$KV.KEYS.refused",
)
HEARD = (
    *(">", "*.>", "weft.>", "weft.events.>", "weft.live.events.>", "weft.live.>", "weft.tokens.>"),
    *(
        "weft.snapshots.>",
        "weft.cache.>",
        "weft.live.cache.>",
        "$KV.KEYS.>",
        "$KV.LEASES.>",
        "weft.leases.>",
        "$O.BLOBS.>",
        "$JS.>",
        "$JS.API.>",
    ),
    *("$JS.EVENT.ADVISORY.>", "$SYS.>", "_INBOX.>", "_R_.>", "weft.js.>"),
)
PAYLOADS = {
    "STREAM.PURGE": {"filter": "weft.none"},
    "STREAM.MSG.GET": {"seq": 1},
    "STREAM.MSG.DELETE": {"seq": 1_000_000},
    "DIRECT.GET": {"seq": 1},
}


@pytest.fixture(scope="module")
async def endpoint(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsEndpoint]:
    async with bus(tmp_path_factory.mktemp("bus")) as endpoint:
        yield endpoint


async def may(client: RawClient, api: str, name: str) -> set[str]:
    """All that it may do, by the names of the table."""
    inboxes = [other.inbox for other in others(USERS[name])]
    # Of no effect where one is let through: no API takes that payload.
    sent = [*SUBJECTS, *(f"{api}.{call}" for call in API_CALLS), *(f"{box}.x" for box in inboxes)]
    allowed = await client.tries(sent, [*HEARD, *(f"{box}.>" for box in inboxes)])
    return {subject.removeprefix(f"{api}.") for subject in allowed}


def test_every_user_has_a_row() -> None:
    assert {entry.name for entry in CATALOGUE} <= GRANTED.keys()
    assert set(USERS) <= GRANTED.keys()


@pytest.mark.parametrize("name", sorted(USERS))
async def test_a_user_may_do_what_its_row_says_and_nothing_else(
    endpoint: NatsEndpoint, name: str
) -> None:
    user = USERS[name]
    async with logged_in(endpoint.url, endpoint.login(user)) as client:
        assert await may(client, user.api, name) == GRANTED[name]
        wrong_api = SERVICE_API if user.api == API else API
        assert not await client.tries([f"{wrong_api}.{call}" for call in API_CALLS])


@pytest.mark.parametrize("name", sorted(USERS))
async def test_what_is_granted_works(endpoint: NatsEndpoint, name: str) -> None:
    user = USERS[name]
    async with logged_in(endpoint.url, endpoint.login(user)) as client:
        for granted in sorted(GRANTED[name]):
            if granted.startswith("hear ") or ".CREATE." in granted or ".UPDATE." in granted:
                continue
            if granted in SUBJECTS:
                answer = await client.asks(granted, b"granted")
                # Of one key a few values are kept; more were put before by other users.
                full = answer.get("error", {}).get("err_code") == SUBJECT_IS_FULL
                assert answer.get("seq") or full, granted
                continue
            payload = next((PAYLOADS[call] for call in PAYLOADS if granted.startswith(call)), {})
            if granted.startswith("DIRECT.GET.SNAPSHOTS."):
                payload = {}
            answer = await client.asks(f"{user.api}.{granted}", json.dumps(payload).encode())
            # Nothing at that place, rather than nobody who may ask.
            error = answer.get("error", {"err_code": 10037})
            assert error["err_code"] in (10037, 10057, 10043), (granted, answer)


async def test_nothing_that_was_refused_had_an_effect(endpoint: NatsEndpoint) -> None:
    async with (
        logged_in(endpoint.url, endpoint.login(ADMIN)) as admin,
        logged_in(endpoint.url, endpoint.login(USERS["vectors"])) as client,
    ):
        before = await shape(admin)
        await may(client, USERS["vectors"].api, "vectors")
        assert await shape(admin) == before


async def shape(admin: RawClient) -> dict[str, object]:
    """All streams, with when they were made and what they hold, but for the leases, of which
    each user may write."""
    names = (await admin.asks(f"{API}.STREAM.NAMES"))["streams"]
    filtered = json.dumps({"subjects_filter": ">"}).encode()
    found = {name: await admin.asks(f"{API}.STREAM.INFO.{name}", filtered) for name in names}
    return {
        name: (info["created"], info["config"], info["state"] if name != "KV_LEASES" else None)
        for name, info in found.items()
    }


@pytest.mark.parametrize("name", sorted(entry.name for entry in CATALOGUE))
async def test_no_answer_of_the_server_goes_where_its_user_may_not_write(
    endpoint: NatsEndpoint, name: str
) -> None:
    # nats-server doesn't ask whether one may publish to the reply subject that one names.
    user = USERS[name]
    aims = [
        *(f"weft.events.{area}.t.deputy" for area in AREAS),
        *("weft.live.events.state.t.deputy", "$KV.KEYS.deputy", "_INBOX_host.deputy"),
        "_INBOX_admin.deputy",
    ]
    async with (
        logged_in(endpoint.url, endpoint.login(USERS[HOST])) as host,
        logged_in(endpoint.url, endpoint.login(ADMIN)) as admin,
        logged_in(endpoint.url, endpoint.login(user)) as client,
    ):
        assert len(await host.tries([], ["weft.live.events.>", "$KV.KEYS.>", "_INBOX_host.>"])) == 3
        assert await admin.tries([], ["_INBOX_admin.>"])
        for subject in user.publish:
            for aim in aims:
                await client.client.publish(subject.replace(">", "x"), b'{"seq":1}', aim)
        await client.settle()
        heard = [message.subject for message in (*host.heard, *admin.heard)]
        assert [subject for subject in heard if "deputy" in subject] == []
        assert "deputy" not in json.dumps(await shape(admin))
