"""Credentials of NATS: rotated under load, handed to subscribers, kept from others."""

import asyncio
import json
import re
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from mesh.errors import AlreadyExists, EventStoreUnavailable, FailedPrecondition, NotFound
from mesh.events.jetstream.connection import Login, NotPermitted, connect
from mesh.events.jetstream.store import JetStreamEventStore, connect_store
from mesh.events.store import START, CommitDraft, Head, NewEvent, StreamName
from mesh.runtime.host import Host
from mesh.runtime.nats_access import Subscriber
from mesh.runtime.nats_credentials import NatsCredentials, ensure_seed, reload_server
from mesh.runtime.nats_server import EmbeddedNats, NatsEndpoint
from mesh.runtime.nats_users import ADMIN, HOST, BusUser
from mesh.runtime.settings import RuntimeSettings
from services.catalog import CATALOGUE, access
from tests.security.bus import USERS, RawClient, bus, logged_in
from tests.support.edge import open_access
from tests.support.processes import until
from tests.support.weft_up import weft, weft_up

ALL = tuple(USERS.values())
SUBSCRIPTIONS = 300
SEED = re.compile(rb"SU[A-Z2-7]{56}")


@pytest.fixture
async def endpoint(tmp_path: Path) -> AsyncIterator[NatsEndpoint]:
    async with bus(tmp_path / "data") as endpoint:
        yield endpoint


@pytest.fixture
async def store(endpoint: NatsEndpoint) -> AsyncIterator[JetStreamEventStore]:
    store = await connect_store(
        endpoint.url, name="test", login=endpoint.login(USERS[HOST]), makes_streams=False
    )
    yield store
    await store.close()


def draft(text: str) -> CommitDraft:
    return CommitDraft([NewEvent(StringValue(value=text))], 0)


async def texts_of(store: JetStreamEventStore, stream: StreamName) -> list[str]:
    texts = []
    async for page in store.read(stream):
        for stored in page:
            value = StringValue()
            assert stored.commit.events[0].payload.Unpack(value)
            texts.append(value.value)
    return texts


async def is_let_in(url: str, login: Login) -> bool:
    try:
        await (await connect(url, name="asking", login=login, timeout=1.0)).close()
    except EventStoreUnavailable:
        return False
    return True


async def test_rotation_under_load_loses_nothing_and_ends_the_old_keys(
    endpoint: NatsEndpoint, store: JetStreamEventStore, tmp_path: Path
) -> None:
    stream = StreamName("state", "acme", ("bot", "s1"))
    acknowledged: list[str] = []
    stopping = asyncio.Event()

    async def append() -> None:
        head: Head = START
        while not stopping.is_set():
            text = str(len(acknowledged))
            head = await store.append(stream, draft(text), head)
            acknowledged.append(text)

    old_seed = tmp_path / "old.nkey"
    old_seed.write_bytes((endpoint.folder / "host.nkey").read_bytes())
    appending = asyncio.create_task(append())
    for _ in range(3):
        before = len(acknowledged)
        await until(lambda before=before: len(acknowledged) > before + 50)  # type: ignore[misc]
        NatsCredentials(endpoint.folder, ALL).rotate()
        assert await reload_server(endpoint.folder)
    before = len(acknowledged)
    await until(lambda: len(acknowledged) > before + 50)
    stopping.set()
    await appending

    assert await texts_of(store, stream) == acknowledged
    assert await is_let_in(endpoint.url, endpoint.login(USERS[HOST]))
    assert not await is_let_in(endpoint.url, Login(old_seed, USERS[HOST].inbox))


async def test_a_subscriber_hears_its_tenant_and_nothing_else(
    endpoint: NatsEndpoint, store: JetStreamEventStore, tmp_path: Path
) -> None:
    credentials = NatsCredentials(endpoint.folder, ALL)
    made = credentials.admit("acme", "billing", tmp_path / "acme.nkey")
    assert stat.S_IMODE((tmp_path / "acme.nkey").stat().st_mode) == 0o600
    assert await reload_server(endpoint.folder)
    async with logged_in(endpoint.url, Login(tmp_path / "acme.nkey")) as client:
        heard = [made.subject, "weft.live.events.state.acme.bot.s1", "weft.live.events.*.acme.x"]
        assert len(await client.tries([], heard)) == len(heard)
        client.heard.clear()
        for tenant in ("acme", "beta", "acme-2", "_system"):
            stream = StreamName("state", tenant, ("bot", "s2"))
            await store.append(stream, draft("hello"), START)
        await until(lambda: bool(client.heard))
        await client.settle()
        assert [message.subject for message in client.heard] == [
            "weft.live.events.state.acme.bot.s2"
        ]
        await refused_everything_else(client)


async def refused_everything_else(client: RawClient) -> None:
    sent = [
        *("weft.events.state.acme.bot.s1", "weft.live.events.state.acme.bot.s1", "weft.x", "x"),
        *("$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.DIRECT.GET.EVENTS", "$KV.KEYS.x"),
        *("$JS.API.CONSUMER.CREATE.EVENTS", "weft.js.DIRECT.GET.EVENTS", "_INBOX.x"),
        *("$SYS.REQ.SERVER.PING", "$SYS.REQ.USER.INFO"),
    ]
    heard = [
        *(">", "*.>", "weft.>", "weft.live.>", "weft.live.events.>", "weft.live.events.*.*.>"),
        *("weft.live.events.*.beta.>", "weft.live.events.state.*.>", "weft.events.*.acme.>"),
        *("weft.live.events.auth._system.>", "weft.tokens.state.acme.>", "weft.snapshots.>"),
        *("$JS.>", "$KV.>", "$O.>", "$SYS.>", "_INBOX.>", "_INBOX_host.>", "_R_.>"),
    ]
    assert await client.tries(sent, heard) == set()


async def test_subscribers_outlast_a_restart_until_they_are_revoked(tmp_path: Path) -> None:
    data, login = tmp_path / "data", Login(tmp_path / "acme.nkey")
    credentials = NatsCredentials(data / "nats", ALL)
    async with bus(data) as endpoint:
        credentials.admit("acme", "one", tmp_path / "acme.nkey")
        with pytest.raises(AlreadyExists):
            credentials.admit("acme", "one", tmp_path / "other.nkey")
        assert await reload_server(endpoint.folder)
    server = EmbeddedNats(data, ALL, port=0)
    endpoint = await server.start()
    try:
        async with logged_in(endpoint.url, login) as client:
            credentials.revoke("acme", "one")
            assert await reload_server(endpoint.folder)
            await until(lambda: not client.client.is_connected)
        with pytest.raises((nats.errors.Error, OSError)):
            await nats.connect(endpoint.url, nkeys_seed=str(login.seed_file), allow_reconnect=False)
        with pytest.raises(NotFound):
            credentials.revoke("acme", "one")
    finally:
        await server.stop()


@pytest.mark.parametrize("tenant", ["_system", "*", ">", "a.b", "", "ACME", "a b", "a" * 64])
def test_no_subscriber_is_made_of_what_is_no_tenant(tenant: str) -> None:
    with pytest.raises(ValueError, match="doesn't match"):
        Subscriber(tenant, "default", "U")


async def test_a_folder_of_one_user_is_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "nats"
    folder.mkdir()
    (folder / "user.nkey").touch(0o600)
    async with bus(tmp_path) as endpoint:
        assert await is_let_in(endpoint.url, endpoint.login(ADMIN))
    assert not (folder / "user.nkey").exists()


async def test_a_process_of_one_service_works_as_that_service_alone(tmp_path: Path) -> None:
    (blobs,) = (entry for entry in CATALOGUE if entry.name == "blobs")
    settings = RuntimeSettings(data_dir=tmp_path, grpc_port=0, http_port=0, nats_port=0)
    async with Host([blobs], settings, open_access) as host:
        with pytest.raises(EventStoreUnavailable):
            await host.events.connection.request("weft.events.tools.t.x", b"", {}, timeout=0.3)
        assert all(host.readiness().values())


async def test_whatever_holds_a_secret_is_its_owners_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    settings = RuntimeSettings(data_dir=data, grpc_port=0, http_port=0, nats_port=0)
    async with Host(CATALOGUE, settings, access):
        NatsCredentials(data / "nats", ALL).admit("acme", "one", tmp_path / "acme.nkey")
        files = [path for path in data.rglob("*") if path.is_file()]
        secret = [path for path in files if SEED.search(path.read_bytes())]
        assert {path.suffix for path in secret} == {".nkey"}
        named = {"nats.conf", "access.conf", "subscribers.json", "users.acl", "valkey.conf"}
        guarded = secret + [path for path in files if path.name in named]
        assert named < {path.name for path in guarded}
        for path in guarded:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, path
        sockets = [path for path in (data / "valkey").iterdir() if path.is_socket()]
        assert [stat.S_IMODE(path.stat().st_mode) for path in sockets] == [0o600]
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_commands_make_list_rotate_and_revoke_on_a_running_server(tmp_path: Path) -> None:
    data, seed = tmp_path / "data", tmp_path / "acme.nkey"
    asked = ("nats-credentials", "create", "--tenant", "acme", "--data-dir", data, "-o", "json")
    with weft_up(tmp_path / "log", "--data-dir", data, "--port", "0", "--http-port", "0") as up:
        made = json.loads(weft(*asked, "--to", seed).out)
        assert made["subject"] == "weft.live.events.*.acme.>"
        assert made["url"] == f"nats://{up.said['nats']}"
        assert SEED.match(Path(made["seed_file"]).read_bytes())
        assert weft(*asked, "--to", seed).code != 0
        listed = weft("nats-credentials", "list", "--data-dir", data)
        assert made["nkey"] in listed.out
        rotated = weft("credentials", "rotate", "--data-dir", data)
        assert "the running server has them" in rotated.out
        assert up.weft("agent", "list").code == 0
        ended = weft("nats-credentials", "revoke", "--tenant", "acme", "--data-dir", data)
        assert ended.code == 0, ended.err
        assert weft("nats-credentials", "list", "--data-dir", data).out == ""
        assert not SEED.search(up.log.encode())
    assert "no server runs" in weft("credentials", "rotate", "--data-dir", data).out


def test_for_a_server_of_ones_own_the_entry_is_printed(tmp_path: Path) -> None:
    asked = ("nats-credentials", "create", "--tenant", "acme", "--to", tmp_path / "acme.nkey")
    made = weft(*asked, NATS_URL="nats://127.0.0.1:1")
    entry = json.loads(made.out.splitlines()[-1])
    assert entry["permissions"] == {
        "publish": ["_nowhere"],
        "subscribe": ["weft.live.events.*.acme.>"],
    }


async def test_giving_up_on_a_server_that_refuses_takes_no_longer_than_was_said(
    endpoint: NatsEndpoint, tmp_path: Path
) -> None:
    # One cancellation in some hundred used to get lost in a task that tried on for ever.
    ensure_seed(tmp_path / "unknown.nkey")
    login = Login(tmp_path / "unknown.nkey", USERS[HOST].inbox)
    for _ in range(20):
        seconds = [0.05 + 0.005 * each for each in range(20)]
        asked = [
            connect(endpoint.url, name="asking", login=login, timeout=each) for each in seconds
        ]
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, EventStoreUnavailable) for answer in answers)


def lacking(kind: str, subject: str) -> BusUser:
    """The user `host` without one of its rights."""
    less: Any = {kind: tuple(each for each in getattr(USERS[HOST], kind) if each != subject)}
    return replace(USERS[HOST], **less)


@pytest.mark.parametrize(
    ("right", "wanted"),
    [
        (("hears", "weft.leases.>"), "subscribe to weft.leases.>"),
        (("sends", "$KV.LEASES.host.*"), "publish to $KV.LEASES.host."),
        (("calls", "STREAM.MSG.GET.EVENTS"), "publish to $JS.API.STREAM.MSG.GET.EVENTS"),
        (("gets", "DIRECT.GET.EVENTS"), "publish to $JS.API.DIRECT.GET.EVENTS"),
    ],
    ids=["hear", "send", "call", "get"],
)
async def test_a_right_that_an_older_access_conf_lacks_is_named_at_the_start(
    tmp_path: Path, right: tuple[str, str], wanted: str
) -> None:
    user = lacking(*right)
    assert user != USERS[HOST]
    server = EmbeddedNats(tmp_path / "nats", (ADMIN, user), port=0)
    try:
        endpoint = await server.start()
        settings = RuntimeSettings(
            data_dir=tmp_path / "data",
            grpc_port=0,
            http_port=0,
            nats_url=endpoint.url,
            nats_seed_file=endpoint.login(USERS[HOST]).seed_file,
            nats_admin_seed_file=endpoint.login(ADMIN).seed_file,
        )
        with pytest.raises(EventStoreUnavailable) as refused:
            async with Host(CATALOGUE, settings, access):
                pass
    finally:
        await server.stop()
    assert wanted in refused.value.message
    assert "`weft credentials configuration`" in refused.value.message


async def test_a_subscription_that_is_not_permitted_is_refused_each_time(
    store: JetStreamEventStore,
) -> None:
    # NATS says so before it answers a ping that was sent behind the subscription, and only then.
    async def heard(message: object) -> None:
        """Nobody sends any."""

    for number in range(SUBSCRIPTIONS):
        with pytest.raises(NotPermitted):
            await store.connection.subscribe(f"elsewhere.{number}", heard)


async def test_a_seed_of_admin_that_nobody_named_is_what_is_missed(
    tmp_path: Path, endpoint: NatsEndpoint
) -> None:
    settings = RuntimeSettings(
        data_dir=tmp_path / "process",
        grpc_port=0,
        http_port=0,
        nats_url=endpoint.url,
        nats_seed_file=endpoint.login(USERS[HOST]).seed_file,
    )
    with pytest.raises(FailedPrecondition, match="WEFT_RUNTIME_NATS_ADMIN_SEED_FILE"):
        async with Host(CATALOGUE, settings, access):
            pass


async def test_a_login_that_nats_refuses_is_told_as_that_and_once(
    endpoint: NatsEndpoint, tmp_path: Path, log_lines: list[dict[str, Any]]
) -> None:
    ensure_seed(tmp_path / "unknown.nkey")
    for login, said in (
        (Login(tmp_path / "unknown.nkey"), f"doesn't know the seed in {tmp_path}"),
        (Login(), "WEFT_RUNTIME_NATS_SEED_FILE"),
    ):
        with pytest.raises(EventStoreUnavailable, match=re.escape(said)):
            await connect(endpoint.url, name="asking", login=login, timeout=1)
        levels = [line["log_level"] for line in log_lines if line["event"] == "nats_error"]
        log_lines.clear()
        assert levels.count("warning") == 1
        assert len(levels) > 1, "it tries again"


@pytest.mark.parametrize("held", [None, b"", b"\xff\xfe", b"SUnonsense"])
async def test_a_file_without_a_seed_is_told(tmp_path: Path, held: bytes | None) -> None:
    file = tmp_path / "user.nkey"
    if held is not None:
        file.write_bytes(held)
    with pytest.raises(FailedPrecondition, match=re.escape(str(file))):
        await connect("nats://127.0.0.1:1", name="x", login=Login(file), timeout=1)
