"""Who may do what: tenants, API keys, tokens, roles, and the audit trail.

Owns: tenants, their API keys, roles and role bindings (one aggregate per tenant), and the
keys that tokens are signed with.
Serves: `weft.auth.v1.AuthService`, `TenantService`, `ApiKeyService`, `RoleService`,
`AuditService`.
Emits: the facts of `weft.auth.v1` on `auth.<tenant>.access`, `auth.<tenant>.denied` and
`auth._system.signing`.
Consumes: those, in the `AccessDirectory` of every process; the envelopes of all commits of
a tenant, for the audit.

`directory.py` is what every process has, also one without this service: it knows in memory
which credentials are valid. The RPCs decide by `domain` and commit through it.
"""
