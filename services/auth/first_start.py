"""The first administrator of a deployment, and another one where their key is lost."""

from mesh.clock import SYSTEM, Clock
from mesh.errors import AlreadyExists
from mesh.ids import new_id
from mesh.principal import system
from mesh.security.api_keys import new_api_key
from services.auth import domain
from services.auth.directory import AccessDirectory

FIRST_TENANT = "default"
FIRST_API_KEY = "admin"


async def first_start(directory: AccessDirectory, clock: Clock = SYSTEM) -> str | None:
    """Makes the tenant `default` and its administrator's API key, which also administers the
    deployment, where there is no tenant yet. Of processes that start at once one makes it.

    Returns the key, which nobody can be told again; None where there is a tenant.
    """
    if directory.tenants:
        return None
    key = new_api_key()
    command = domain.CreateTenant(
        request=_request(clock),
        tenant=FIRST_TENANT,
        display_name="Default",
        api_key=FIRST_API_KEY,
        binding=f"{FIRST_API_KEY}-{new_id()}",
        secret=domain.Secret(key.id, directory.hmac_of(key)),
        platform=True,
    )
    try:
        await directory.change(FIRST_TENANT, command)
    except AlreadyExists:
        return None
    return key.text


async def recover_admin(
    directory: AccessDirectory, tenant: str = FIRST_TENANT, clock: Clock = SYSTEM
) -> str:
    """Makes another administrator's API key in the tenant of that id, which administers the
    deployment where the tenant is the first one. For who holds the data folder and the
    master key, and has lost every API key. Raises NotFound where there is no such tenant.
    """
    key = new_api_key()
    api_key = f"{FIRST_API_KEY}-{new_id()}"
    command = domain.CreateApiKey(
        request=_request(clock),
        name=domain.api_key_name(tenant, api_key),
        display_name="Administrator (recovered)",
        scopes=(),
        expire_ns=0,
        secret=domain.Secret(key.id, directory.hmac_of(key)),
        roles=(domain.role_name(tenant, domain.ADMIN),),
        bindings=(f"{domain.tenant_name(tenant)}/roleBindings/{api_key}",),
        resource="",
        platform=tenant == FIRST_TENANT,
    )
    await directory.change(tenant, command)
    return key.text


def _request(clock: Clock) -> domain.Request:
    return domain.Request(new_id(), b"", system(), clock.now_ns())
