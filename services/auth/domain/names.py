"""Names of resources of access, and the streams that hold them."""

from mesh.events.store import StreamName

AREA = "auth"


def access_stream(tenant: str) -> StreamName:
    """Stream of what may be done in the tenant of that id."""
    return StreamName(AREA, tenant, ("access",))


def denied_stream(tenant: str) -> StreamName:
    """Stream of the calls that were refused in the tenant of that id."""
    return StreamName(AREA, tenant, ("denied",))


def tenant_of(name: str) -> str:
    """Id of the tenant of `tenants/{t}`, or of a name under it."""
    return name.split("/", 2)[1]


def tenant_name(tenant: str) -> str:
    """Name of the tenant of that id."""
    return f"tenants/{tenant}"


def api_key_name(tenant: str, api_key: str) -> str:
    """Name of an API key; both are ids."""
    return f"tenants/{tenant}/apiKeys/{api_key}"


def role_name(tenant: str, role: str) -> str:
    """Name of a role; both are ids."""
    return f"tenants/{tenant}/roles/{role}"
