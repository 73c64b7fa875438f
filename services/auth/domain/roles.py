"""The roles that come with Weft.

- `viewer` reads: definitions, sessions, tools, functions, documents, blobs.
- `operator` is on call: sees what viewers see, runs and approves turns, reads the audit
  trail, checks the log, and revokes credentials that leaked. It makes nothing.
- `developer` builds: agents, tools, functions, collections, blobs, sessions. It doesn't
  approve, since what waits for approval is meant to be seen by somebody else than its author.
- `worker` is an application that runs agents which others made.
- `admin` may do all, also what later versions add.
"""

from functools import lru_cache

from mesh.principal import EVERYTHING
from services.auth.domain.names import role_name
from weft.auth.v1 import access_pb2

ADMIN = "admin"

_VIEWER = frozenset(
    {
        *("agents.get", "agents.list", "agents.list_stalled", "auth.get_tenant", "models.list"),
        *("blobs.get", "blobs.list", "blobs.stat"),
        *("models.get_budget", "models.get_usage", "models.list_budgets"),
        *("control.get_split", "control.list_splits", "functions.get", "functions.list"),
        *("scheduler.get", "scheduler.get_queue", "scheduler.list", "scheduler.list_queues"),
        *("scheduler.get_schedule", "scheduler.list_schedules", "scheduler.list_workers"),
        *("state.get", "state.list", "state.watch", "tools.get", "tools.list"),
        *("tools.get_mcp_server", "tools.list_mcp_servers"),
        *("vectors.get", "vectors.list", "vectors.search"),
    }
)
_SCHEDULES = frozenset(
    {
        *("scheduler.create_schedule", "scheduler.update_schedule", "scheduler.delete_schedule"),
        *("scheduler.pause_schedule", "scheduler.trigger_schedule"),
    }
)
_OPERATOR = _VIEWER | {
    *("agents.approve", "agents.run", "state.create", "state.export", "state.verify"),
    *("auth.audit", "auth.check", "auth.get_api_key", "auth.list_api_keys"),
    *("auth.list_role_bindings", "auth.list_roles"),
    *("auth.revoke_api_key", "auth.revoke_token"),
    *("scheduler.cancel", "scheduler.create_queue", "scheduler.discard", "scheduler.pause"),
    *("scheduler.redrive", "scheduler.retry", "scheduler.submit", "scheduler.update_queue"),
    *("agents.fail", "agents.skip", "scheduler.fail", "scheduler.skip"),
    *("models.delete_budget", "models.set_budget"),
    *("control.set_split", "functions.read_logs", "tools.refresh_mcp_server"),
    *_SCHEDULES,
}
_DEVELOPER = _VIEWER | {
    *("agents.create", "agents.delete", "agents.run", "agents.update", "auth.list_roles"),
    *("blobs.delete", "blobs.put", "blobs.sign"),
    "control.set_split",
    *("functions.delete", "functions.deploy", "functions.invoke", "functions.read_logs"),
    *("models.embed", "models.generate"),
    *("state.create", "state.export", "state.fork", "state.import"),
    *("scheduler.cancel", "scheduler.create_queue", "scheduler.retry", "scheduler.submit"),
    *_SCHEDULES,
    *("state.verify", "tools.delete", "tools.invoke", "tools.register"),
    "tools.refresh_mcp_server",
    *("vectors.create", "vectors.delete", "vectors.write"),
}
_WORKER = frozenset(
    {
        *("agents.get", "agents.run", "models.embed", "models.generate", "models.list"),
        "state.create",
        *("blobs.get", "blobs.list", "blobs.put", "blobs.sign", "blobs.stat"),
        *("functions.get", "functions.invoke", "functions.list"),
        *("scheduler.get", "scheduler.submit", "scheduler.work"),
        *("state.get", "state.watch", "tools.get", "tools.invoke", "tools.list"),
        *("vectors.get", "vectors.list", "vectors.search", "vectors.write"),
    }
)
BUILT_IN = {
    ADMIN: frozenset({EVERYTHING}),
    "developer": _DEVELOPER,
    "operator": _OPERATOR,
    "viewer": _VIEWER,
    "worker": _WORKER,
}
"""Permissions by id of the role."""

ADMIN_ONLY = frozenset(
    {
        *("auth.create_api_key", "auth.rotate_api_key"),
        *("auth.create_role", "auth.update_role", "auth.delete_role"),
        *("auth.create_role_binding", "auth.delete_role_binding"),
        *("auth.create_tenant", "auth.list_tenants"),
        *(
            "auth.rotate_signing_key",
            "auth.rotate_tenant_key",
            "auth.rotate_master_key",
            *("control.drain_instance", "control.dump_instance", "control.get_status"),
            *("control.list_instances", "control.list_routes"),
            "scheduler.work_shared",
            "state.erase",
            # It may start programs on the server, and holds credentials.
            *("tools.add_mcp_server", "tools.delete_mcp_server"),
        ),
    }
)
"""What no other built-in role gives: what hands out access, concerns the deployment, starts
programs there, or destroys for good."""


@lru_cache(maxsize=1_024)
def built_in_roles(tenant: str) -> dict[str, access_pb2.Role]:
    """The built-in roles of the tenant of that id, by name."""
    roles = (
        access_pb2.Role(
            name=role_name(tenant, role_id),
            display_name=role_id.capitalize(),
            permissions=sorted(permissions),
            built_in=True,
        )
        for role_id, permissions in BUILT_IN.items()
    )
    return {role.name: role for role in roles}
