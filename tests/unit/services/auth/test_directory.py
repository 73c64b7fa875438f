"""What every process knows of credentials, on a log in memory."""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from mesh.clock import SYSTEM
from mesh.errors import (
    CredentialInvalid,
    EventStoreUnavailable,
    FailedPrecondition,
    LimitExceeded,
    Unavailable,
)
from mesh.events.memory import MemoryEventStore, MemoryLog
from mesh.events.store import (
    EVERYTHING,
    START,
    CommitDraft,
    Head,
    NewEvent,
    Selection,
    StreamName,
)
from mesh.ids import new_id
from mesh.principal import system
from mesh.security import api_keys
from services.auth import domain
from services.auth.access import TenantAccess
from services.auth.checkpoint import CHECKPOINT_COMMITS
from services.auth.directory import AccessDirectory
from services.auth.first_start import first_start, recover_admin
from services.auth.settings import AuthSettings
from services.auth.signing import SigningKeys
from tests.support.access import Access, MovedClock, access
from tests.support.eventually import eventually
from tests.support.forging import Forge
from tests.support.memory_keyring import MemoryKeyring
from weft.auth.v1 import access_pb2
from weft.auth.v1 import api_key_service_pb2 as keys
from weft.auth.v1 import auth_service_pb2 as auth
from weft.auth.v1 import events_pb2 as facts
from weft.auth.v1 import role_service_pb2 as roles

PARENT = "tenants/default"


@pytest.fixture
async def one() -> AsyncIterator[Access]:
    async with access() as made:
        yield made


async def create(made: Access, api_key_id: str = "k", **more: object) -> keys.CreateApiKeyResponse:
    request = keys.CreateApiKeyRequest(parent=PARENT, api_key_id=api_key_id, **more)  # type: ignore[arg-type]
    response: keys.CreateApiKeyResponse = await made.handler("ApiKeyService").create_api_key(
        request, made.call()
    )
    return response


async def revoke(made: Access, api_key_id: str = "k") -> None:
    request = keys.RevokeApiKeyRequest(name=f"{PARENT}/apiKeys/{api_key_id}")
    await made.handler("ApiKeyService").revoke_api_key(request, made.call())


async def exchange(made: Access, secret: str) -> str:
    request = auth.ExchangeTokenRequest(api_key=secret)
    token: str = (await made.handler("AuthService").exchange_token(request, made.call())).token
    return token


def refused(made: Access, credential: str) -> bool:
    try:
        made.principal(credential)
    except CredentialInvalid:
        return True
    return False


class TestAuthenticating:
    async def test_a_key_says_who_presents_it(self, one: Access) -> None:
        created = await create(one, roles=[f"{PARENT}/roles/viewer"], scopes=["agents.*"])
        principal = one.principal(created.secret)
        assert principal.name == created.api_key.name
        assert principal.tenant == "default"
        assert principal.allows("agents.get", f"{PARENT}/agents/bot")
        assert not principal.allows("models.list", PARENT)
        assert one.directory.authenticate(f"bearer {created.secret}") is principal

    async def test_a_key_whose_checksum_is_right_needs_the_secret(self, one: Access) -> None:
        head, key_id, secret, _ = one.admin_key.split("_")
        other = ("b" if secret[0] == "a" else "a") + secret[1:]
        body = f"{head}_{key_id}_{other}"
        assert refused(one, f"{body}_{zlib.crc32(body.encode()):08x}")

    async def test_a_revoked_key_is_refused_at_once_with_its_tokens(self, one: Access) -> None:
        created = await create(one)
        token = await exchange(one, created.secret)
        for credential in (created.secret, token):
            assert one.principal(credential).name == created.api_key.name
        await revoke(one)
        assert refused(one, created.secret)
        assert refused(one, token)

    async def test_expiry_is_seen_in_what_was_verified_before(self) -> None:
        moved = MovedClock()
        async with access(clock=moved.clock, settings=AuthSettings(stale_seconds_max=1e6)) as made:
            request = keys.CreateApiKeyRequest(parent=PARENT)
            request.ttl.FromSeconds(600)
            handler = made.handler("ApiKeyService")
            created = await handler.create_api_key(request, made.call())
            token = await exchange(made, created.secret)
            principals = [made.principal(each) for each in (token, created.secret)]
            for credential, principal, seconds in zip(
                (token, created.secret), principals, (301, 300), strict=True
            ):
                assert made.directory.valid(principal)
                moved.seconds += seconds
                assert refused(made, credential)
                assert refused(made, credential)
                assert not made.directory.valid(principal)

    async def test_a_token_ends_with_the_key_that_it_is_for(self) -> None:
        async with access() as made:
            request = keys.CreateApiKeyRequest(parent=PARENT)
            request.ttl.FromSeconds(20)
            created = await made.handler("ApiKeyService").create_api_key(request, made.call())
            principal = made.principal(await exchange(made, created.secret))
            assert principal.expire_ns is not None
            assert principal.expire_ns <= time.time_ns() + 20 * 10**9 + 10**9

    async def test_a_rotated_key_has_two_secrets_for_a_while(self) -> None:
        moved = MovedClock()
        async with access(clock=moved.clock, settings=AuthSettings(stale_seconds_max=1e6)) as made:
            created = await create(made)
            before = made.principal(created.secret)
            request = keys.RotateApiKeyRequest(name=created.api_key.name)
            request.overlap.FromSeconds(60)
            rotated = await made.handler("ApiKeyService").rotate_api_key(request, made.call())
            assert made.principal(created.secret).name == made.principal(rotated.secret).name
            assert made.directory.valid(before)
            moved.seconds = 61
            assert refused(made, created.secret)
            assert not made.directory.valid(before)
            assert made.directory.valid(made.principal(rotated.secret))

    async def test_a_key_in_use_isnt_verified_twice(
        self, one: Access, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        header = f"Bearer {one.admin_key}"
        before = one.directory.authenticate(header)
        verified: list[object] = []
        monkeypatch.setattr(api_keys, "hmac_of", lambda pepper, key: verified.append(key))
        assert all(one.directory.authenticate(header) == before for _ in range(1_000))
        assert not verified

    async def test_what_is_remembered_is_bounded(self) -> None:
        async with access(settings=AuthSettings(verified_max=3)) as made:
            for _ in range(5):
                made.principal(await exchange(made, made.admin_key))
            assert len(made.directory._verified) == 3


class TestChanges:
    async def test_taking_a_role_back_ends_what_it_gave(self, one: Access) -> None:
        created = await create(one, roles=[f"{PARENT}/roles/viewer"])
        token = await exchange(one, created.secret)
        principals = [one.principal(each) for each in (created.secret, token)]
        changes: list[int] = []
        ended = one.directory.on_change(lambda: changes.append(1))
        (name,) = [
            each.name
            for each in one.directory.state(PARENT).bindings
            if created.api_key.name in each.members
        ]
        request = roles.DeleteRoleBindingRequest(name=name)
        await one.handler("RoleService").delete_role_binding(request, one.call())
        assert changes
        for credential, principal in zip((created.secret, token), principals, strict=True):
            assert not one.directory.valid(principal)
            assert not one.principal(credential).grants
        ended()
        seen = len(changes)
        await revoke(one)
        assert len(changes) == seen

    async def test_giving_more_leaves_what_runs_alone(self, one: Access) -> None:
        created = await create(one, roles=[f"{PARENT}/roles/viewer"])
        principal = one.principal(created.secret)
        request = roles.CreateRoleBindingRequest(
            parent=PARENT, role=f"{PARENT}/roles/worker", members=[created.api_key.name]
        )
        await one.handler("RoleService").create_role_binding(request, one.call())
        assert one.directory.valid(principal)
        assert one.principal(created.secret).allows("agents.run", PARENT)

    async def test_a_token_gives_no_more_than_when_it_was_issued(self, one: Access) -> None:
        created = await create(one, roles=[f"{PARENT}/roles/viewer"])
        token = await exchange(one, created.secret)
        request = roles.CreateRoleBindingRequest(
            parent=PARENT, role=f"{PARENT}/roles/worker", members=[created.api_key.name]
        )
        await one.handler("RoleService").create_role_binding(request, one.call())
        assert not one.principal(token).allows("agents.run", PARENT)
        assert one.principal(await exchange(one, created.secret)).allows("agents.run", PARENT)

    async def test_weft_itself_is_always_valid(self, one: Access) -> None:
        assert one.directory.valid(system())


class TestProcesses:
    async def test_another_process_sees_a_change_a_moment_later(self, one: Access) -> None:
        async with access(other=one) as two:
            created = await create(one)
            token = await exchange(one, created.secret)
            await eventually(lambda: not refused(two, created.secret))
            assert two.principal(token).name == created.api_key.name
            await revoke(two)
            await eventually(lambda: refused(one, created.secret) and refused(one, token))

    async def test_what_another_process_made_is_known_once_it_is_asked_for(
        self, one: Access
    ) -> None:
        async with access(other=one) as two:
            created = await create(one)
            await asyncio.gather(*(two.directory.caught_up() for _ in range(3)))
            assert two.principal(created.secret).name == created.api_key.name

    async def test_a_first_administrator_is_made_once(self) -> None:
        events, keyring = MemoryEventStore(), MemoryKeyring()
        directories = [AccessDirectory(events, keyring) for _ in range(4)]
        await asyncio.gather(*(each.start() for each in directories))
        made = await asyncio.gather(*(first_start(each) for each in directories))
        (key,) = [each for each in made if each is not None]
        for directory in directories:
            await eventually(lambda directory=directory: bool(directory.tenants))  # type: ignore[misc]
            principal = directory.authenticate(f"Bearer {key}")
            assert principal.allows("agents.run", PARENT)
            assert principal.allows_platform("auth.create_tenant")
            assert await first_start(directory) is None
            # All sign with the same key.
            assert len(directory.signing.keys) == 1
            assert directory.signing_key().kid == directories[0].signing_key().kid
        assert list(keyring.secrets) == ["pepper", f"signing.{directories[0].signing_key().kid}"]
        for directory in directories:
            await directory.stop()

    async def test_who_lost_every_key_gets_another_one(self, one: Access) -> None:
        key = await recover_admin(one.directory)
        principal = one.principal(key)
        assert principal.name != one.principal(one.admin_key).name
        assert principal.allows_platform("auth.create_tenant")

    async def test_uses_are_noted_beside_the_calls(self, one: Access) -> None:
        created = await create(one)
        async with access(other=one) as two:
            for made in (one, two):
                for _ in range(3):
                    made.principal(created.secret)
            await eventually(
                lambda: domain.existing_api_key(
                    one.directory.state(PARENT), created.api_key.name
                ).api_key.HasField("last_used_time")
            )
        noted = [
            event.type
            async for page in one.events.read(domain.access_stream("default"))
            for stored in page
            for event in stored.commit.events
            if event.type == facts.ApiKeyUsed.DESCRIPTOR.full_name
            and facts.ApiKeyUsed.FromString(event.payload.value).api_key == created.api_key.name
        ]
        assert len(noted) == 1

    async def test_a_checkpoint_spares_the_next_process_the_history(self, one: Access) -> None:
        settings = AuthSettings(contact_interval_seconds=0.05, signing_lead_seconds=5)
        async with access(other=one, settings=settings) as two:
            created = await create(one)
            stream = domain.denied_stream("default")
            head = START
            for _ in range(CHECKPOINT_COMMITS):
                head = await one.events.append(stream, denial(), head)
            snapshot = StreamName("auth", "_system", ("directory",))
            await eventually(lambda: bool(one.log.snapshots[str(snapshot)]))
            assert not refused(two, created.secret)
        await revoke(one)
        late = AccessDirectory(one.events, one.keyring)
        await late.start()
        assert late.authenticate(f"Bearer {one.admin_key}")
        with pytest.raises(CredentialInvalid):
            late.authenticate(f"Bearer {created.secret}")
        assert late.tenants["default"].state == one.directory.tenants["default"].state
        await late.stop()


def denial() -> CommitDraft:
    return CommitDraft([NewEvent(facts.AccessDenied(count=1))], time.time_ns())


class FailingStore(MemoryEventStore):
    """Can't be reached while `away`; a watch that waits goes on waiting, as with NATS.
    While `full` it stores nothing, while `mute` it doesn't say that it did."""

    away = False
    full = False
    mute = False

    async def last_position(self, selection: Selection = EVERYTHING) -> int:
        if self.away:
            raise EventStoreUnavailable("away")
        return await super().last_position(selection)

    async def append(self, stream: StreamName, draft: CommitDraft, head: Head) -> Head:
        if self.away:
            raise EventStoreUnavailable("away")
        if self.full:
            raise LimitExceeded("full")
        stored = await super().append(stream, draft, head)
        if self.mute:
            raise EventStoreUnavailable("mute")
        return stored


class TestOutOfReach:
    async def test_known_credentials_stay_valid_for_a_while_then_none_is(self) -> None:
        moved = MovedClock()
        events, keyring = FailingStore(), MemoryKeyring()
        settings = AuthSettings(stale_seconds_max=60, contact_interval_seconds=0.02)
        directory = AccessDirectory(events, keyring, moved.clock, settings)
        await directory.start()
        key = await first_start(directory)
        events.away = True
        await asyncio.sleep(0.1)
        moved.seconds = 55
        assert directory.authenticate(f"Bearer {key}")
        moved.seconds = 65
        with pytest.raises(Unavailable):
            directory.authenticate(f"Bearer {key}")
        with pytest.raises(Unavailable):
            directory.authenticate("Bearer nonsense")
        events.away = False
        await eventually(lambda: directory._following.trusted_until > moved.monotonic())
        assert directory.authenticate(f"Bearer {key}")
        await directory.stop()

    async def test_a_log_that_cant_be_read_refuses_all(self, one: Access) -> None:
        stream = domain.access_stream("acme")
        draft = CommitDraft([NewEvent(StringValue(value="?"))], time.time_ns())
        await one.events.append(stream, draft, START)
        await eventually(lambda: one.directory._following.failure is not None)
        with pytest.raises(Unavailable):
            one.principal(one.admin_key)

    async def test_what_couldnt_be_noted_is_noted_later(self) -> None:
        log = MemoryLog()
        events = FailingStore(log)
        directory = AccessDirectory(events, MemoryKeyring())
        await directory.start()
        key = await first_start(directory)
        events.away = True
        assert directory.authenticate(f"Bearer {key}")
        await asyncio.sleep(0.05)
        events.away = False
        await directory.stop()
        last = log.entries[-1]
        assert last.stream == "auth.default.access"
        assert b"ApiKeyUsed" in last.data


class TestSigningKeys:
    async def test_a_new_key_signs_once_everybody_knows_it(self) -> None:
        moved = MovedClock()
        async with access(clock=moved.clock, settings=AuthSettings(stale_seconds_max=1e6)) as made:
            first_key = made.directory.signing_key()
            first = first_key.kid
            token = await exchange(made, made.admin_key)
            request = auth.RotateSigningKeyRequest()
            handler = made.handler("AuthService")
            rotated = await handler.rotate_signing_key(request, made.call())
            assert rotated.sign_time.ToNanoseconds() >= moved.now_ns() + 5 * 10**9
            assert made.directory.signing_key().kid == first
            moved.seconds = 11
            assert made.directory.signing_key().kid == rotated.kid
            assert made.principal(token)
            assert made.principal(await exchange(made, made.admin_key))
            jwks = await handler.get_jwks(auth.GetJwksRequest(), made.call())
            assert [key.kid for key in jwks.keys] == [rotated.kid, first]
            assert jwks.keys[0].x != jwks.keys[1].x
            # The private part goes once nobody signs with it, the public one once nothing
            # that it signed is valid.
            moved.seconds = 120
            await made.directory._tend()
            assert set(made.keyring.secrets) == {"pepper", f"signing.{rotated.kid}"}
            assert made.directory.public_key(first) is not None
            moved.seconds = 2_000
            assert made.directory.public_key(first) is None
            now = moved.now_ns() // 10**9
            forge = Forge(first_key, f"{PARENT}/apiKeys/admin")
            assert refused(made, forge.with_claims(iat=now, exp=now + 300))

    async def test_keys_are_rotated_by_themselves(self) -> None:
        moved = MovedClock()
        settings = AuthSettings(signing_key_days_max=1, stale_seconds_max=1e9)
        async with (
            access(clock=moved.clock, settings=settings) as one,
            access(other=one, clock=moved.clock, settings=settings) as two,
        ):
            moved.seconds = 90_000
            await asyncio.gather(one.directory._tend(), two.directory._tend())
            assert len(one.directory.signing.keys) == 2
            await asyncio.gather(one.directory._tend(), two.directory._tend())
            assert len(one.directory.signing.keys) == 2

    async def test_keys_arent_rotated_without_end(self, one: Access) -> None:
        handler = one.handler("AuthService")
        for _ in range(15):
            await handler.rotate_signing_key(auth.RotateSigningKeyRequest(), one.call())
        with pytest.raises(FailedPrecondition, match="too often"):
            await handler.rotate_signing_key(auth.RotateSigningKeyRequest(), one.call())
        assert len(one.directory.signing.keys) == 16
        assert one.directory.signing_key()
        assert len(one.keyring.secrets) == 17

    async def test_keys_that_arent_stored_leave_no_private_part(self) -> None:
        events, keyring = FailingStore(), MemoryKeyring()
        signing = SigningKeys(events, keyring, SYSTEM, AuthSettings())
        await signing.start()
        events.full = True
        with pytest.raises(LimitExceeded):
            await signing.rotate()
        events.full, events.away = False, True
        assert len(keyring.secrets) == 1
        for _ in range(3):
            with pytest.raises(EventStoreUnavailable):
                await signing.rotate()
        events.away, events.mute = False, True
        with pytest.raises(EventStoreUnavailable):
            await signing.rotate()
        assert len(keyring.secrets) == 2
        events.mute = False
        await signing.rotate()
        kids = [key.kid for key in signing.state.keys]
        assert len(kids) == 3
        assert set(keyring.secrets) == {f"signing.{kid}" for kid in kids}

    async def test_a_lost_key_is_replaced(self, one: Access) -> None:
        lost = one.directory.signing_key().kid
        await one.keyring.destroy(f"signing.{lost}")
        async with access(other=one) as two:
            assert two.directory.signing_key().kid != lost
            assert two.principal(await exchange(two, one.admin_key))


def test_a_state_shows_no_secret() -> None:
    state = domain.State(tenant=access_pb2.Tenant(name="tenants/t"))
    stored = state.api_keys.add(secret_hmacs=[b"h" * 32])
    stored.api_key.name = "tenants/t/apiKeys/k"
    stored.api_key.secrets.add(id=new_id())
    access_of = TenantAccess(state, {})
    assert "hhhh" not in repr(access_of.secrets)
