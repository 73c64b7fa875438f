"""Names of budgets and of what they cover, and the streams that hold them."""

from mesh.events.store import StreamName

BUDGETS = "budgets"
USAGE = "usage"


def budget_stream(name: str) -> StreamName:
    """Stream of `tenants/{t}/budgets/{b}`."""
    _, tenant, _, budget = name.split("/")
    return StreamName(BUDGETS, tenant, (budget,))


def budget_name(stream: StreamName) -> str:
    """Name of the budget that the stream holds."""
    return f"tenants/{stream.tenant}/budgets/{stream.key[0]}"


def usage_stream(tenant: str) -> StreamName:
    """Stream of what a tenant, of that id, used."""
    return StreamName(USAGE, tenant, ("calls",))


def parent_of(name: str) -> str:
    """The tenant that a resource is in."""
    return "/".join(name.split("/", 2)[:2])


def agent_of(session: str) -> str:
    """The agent of a session; empty where the session is."""
    return session.rpartition("/sessions/")[0]


def covering(parent: str, session: str) -> tuple[str, ...]:
    """The scopes that cover a call of a tenant, for a session where it isn't empty."""
    return (parent, agent_of(session), session) if session else (parent,)
