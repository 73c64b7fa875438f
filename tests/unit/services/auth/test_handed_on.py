"""What one process tells another of a credential that it let in."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from mesh.errors import CredentialInvalid
from mesh.principal import Principal
from services.auth.settings import AuthSettings
from tests.support.access import Access, MovedClock, access
from weft.auth.v1 import api_key_service_pb2 as keys
from weft.auth.v1 import auth_service_pb2 as auth
from weft.auth.v1 import role_service_pb2 as roles

METHOD = "/weft.vectors.v1.VectorService/GetCollection"
PARENT = "tenants/default"
NAME = f"{PARENT}/apiKeys/k"
VIEWER = f"{PARENT}/roles/viewer"
KINDS = ("key", "token")


@pytest.fixture
def moved() -> MovedClock:
    return MovedClock()


@pytest.fixture
async def one(moved: MovedClock) -> AsyncIterator[Access]:
    settings = AuthSettings(stale_seconds_max=1e6)
    async with access(clock=moved.clock, settings=settings) as made:
        yield made


async def shown(one: Access, kind: str, seconds: int = 600) -> Principal:
    """Who calls with a new key for readers, or with a token for it."""
    request = keys.CreateApiKeyRequest(
        parent=PARENT, api_key_id="k", roles=[VIEWER], scopes=["agents.*"]
    )
    request.ttl.FromSeconds(seconds)
    created = await one.handler("ApiKeyService").create_api_key(request, one.call())
    if kind == "key":
        return one.principal(created.secret)
    exchange = auth.ExchangeTokenRequest(api_key=created.secret)
    exchanged = await one.handler("AuthService").exchange_token(exchange, one.call())
    return one.principal(exchanged.token)


def recalled(one: Access, principal: Principal) -> Principal:
    """Who a process takes it for to which the call is handed on."""
    text = one.directory.sign(principal, "gateway", METHOD, 5, handed_on=True)
    identity = one.directory.verify(text, METHOD)
    assert identity.shown is not None
    return one.directory.recall(identity.shown)


def refused(one: Access, principal: Principal) -> bool:
    try:
        recalled(one, principal)
    except CredentialInvalid:
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
async def test_they_are_there_who_they_are_here(one: Access, kind: str) -> None:
    principal = await shown(one, kind)
    assert recalled(one, principal) == principal
    # What is decided of a principal is kept by which object it is.
    assert recalled(one, principal) is recalled(one, principal)
    assert one.directory.valid(recalled(one, principal))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_revoked_credential_is_refused_there(one: Access, kind: str) -> None:
    principal = await shown(one, kind)
    assert not refused(one, principal)
    await one.handler("ApiKeyService").revoke_api_key(
        keys.RevokeApiKeyRequest(name=NAME), one.call()
    )
    assert refused(one, principal)


async def test_a_revoked_token_is_refused_there(one: Access) -> None:
    principal = await shown(one, "token")
    assert not refused(one, principal)
    request = auth.RevokeTokenRequest(parent=PARENT, token_id=principal.token_id)
    await one.handler("AuthService").revoke_token(request, one.call())
    assert refused(one, principal)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_expired_credential_is_refused_there(
    one: Access, moved: MovedClock, kind: str
) -> None:
    principal = await shown(one, kind, seconds=20)
    for _ in range(2):
        assert not refused(one, principal)
    moved.seconds = 21
    for _ in range(2):
        assert refused(one, principal)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_taken_back_isnt_given_there(one: Access, kind: str) -> None:
    principal = await shown(one, kind)
    assert recalled(one, principal).allows("agents.get", f"{PARENT}/agents/bot")
    bindings = one.directory.state(PARENT).bindings
    (binding,) = [each.name for each in bindings if NAME in each.members]
    request = roles.DeleteRoleBindingRequest(name=binding)
    await one.handler("RoleService").delete_role_binding(request, one.call())
    assert not recalled(one, principal).allows("agents.get", f"{PARENT}/agents/bot")


async def test_a_token_gives_no_more_there_than_when_it_was_issued(one: Access) -> None:
    principal = await shown(one, "token")
    request = roles.CreateRoleBindingRequest(
        parent=PARENT, role=f"{PARENT}/roles/developer", members=[NAME]
    )
    await one.handler("RoleService").create_role_binding(request, one.call())
    assert not recalled(one, principal).allows("agents.create", PARENT)
    assert recalled(one, principal).scopes == {"agents.*"}


async def test_what_was_given_back_is_given_there_too(one: Access) -> None:
    principal = await shown(one, "token")
    less = replace(principal, grants=())
    assert not recalled(one, less).grants
    assert recalled(one, principal).allows("agents.get", f"{PARENT}/agents/bot")


async def test_a_secret_of_another_key_is_not_theirs(one: Access) -> None:
    principal = await shown(one, "key")
    admin = one.principal(one.admin_key)
    forged = Principal(principal.name, "default", secret_id=admin.secret_id)
    assert refused(one, forged)
