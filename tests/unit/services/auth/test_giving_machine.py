"""Whatever callers do, and in whatever order: nobody ends up with more than was given by
somebody who had it."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mesh.errors import WeftError
from mesh.principal import Principal
from services.auth import domain
from services.auth.access import TenantAccess
from tests.support.access_tenant import T, Tenant

PERMISSIONS = ("agents.get", "agents.run", "auth.audit", "models.list")
PATTERNS = ("agents.get", "agents.run", "agents.*", "auth.audit", "models.list")
RESOURCES = (T, f"{T}/agents/a", f"{T}/agents/b", f"{T}/agents/b/sessions/s")
BOUND = ("", T, f"{T}/agents/*", f"{T}/agents/a", f"{T}/agents/*/sessions/s")
KEYS = ("k0", "k1", "k2", "k3")
ROLES = ("r0", "r1", "r2")

keys, roles = st.sampled_from(KEYS), st.sampled_from(ROLES)
patterns = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True)
scopes = st.lists(st.sampled_from(PATTERNS), max_size=2, unique=True)
Rights = frozenset[tuple[str, str]]


def rights(principal: Principal) -> Rights:
    """What a principal may do, of all that there is."""
    pairs = itertools.product(PERMISSIONS, RESOURCES)
    return frozenset(pair for pair in pairs if principal.allows(*pair))


class Giving(RuleBasedStateMachine):
    @initialize(given=st.tuples(patterns, patterns, patterns), narrow=scopes)
    def prepare(self, given: tuple[list[str], ...], narrow: list[str]) -> None:
        self.tenant = Tenant()
        self.numbers = itertools.count()
        for role, permissions in zip(ROLES, given, strict=True):
            self.tenant.role(role, *permissions)
        for name in KEYS:
            self.tenant.key(name, scopes=narrow if name == "k3" else ())

    def all_rights(self) -> dict[str, Rights]:
        access = TenantAccess(self.tenant.state, {})
        return {name: rights(key.principal()) for name, key in access.keys.items()}

    def tried(self, caller: str, *arguments: object, what: str, **named: object) -> bool:
        """Whether it was allowed. Nobody but the caller had anything to give."""
        before = self.all_rights()
        had = before.get(f"{T}/apiKeys/{caller}", frozenset())
        try:
            getattr(self.tenant, what)(*arguments, by=caller, **named)
        except WeftError:
            assert self.all_rights() == before
            return False
        for name, after in self.all_rights().items():
            assert after <= before.get(name, frozenset()) | had
        return True

    @rule(role=roles, member=keys, resource=st.sampled_from(BOUND))
    def administrator_gives(self, role: str, member: str, resource: str) -> None:
        number = next(self.numbers)
        self.tenant.bind(f"b{number}", role, member, by="admin", resource=resource)

    @rule(caller=keys, role=roles, member=keys, resource=st.sampled_from(BOUND))
    def somebody_gives(self, caller: str, role: str, member: str, resource: str) -> None:
        name = f"b{next(self.numbers)}"
        self.tried(caller, name, role, member, what="bind", resource=resource)

    @rule(caller=keys, role=roles, permissions=patterns)
    def somebody_changes_a_role(self, caller: str, role: str, permissions: list[str]) -> None:
        self.tried(caller, role, *permissions, what="update_role")

    @rule(caller=keys, role=roles, narrow=scopes, resource=st.sampled_from(BOUND))
    def somebody_makes_a_key(
        self, caller: str, role: str, narrow: list[str], resource: str
    ) -> None:
        name = f"n{next(self.numbers)}"
        self.tried(caller, name, role, what="key", scopes=narrow, resource=resource)

    @rule(caller=keys, victim=keys | st.just("admin"))
    def somebody_rotates(self, caller: str, victim: str) -> None:
        held = self.all_rights()
        if self.tried(caller, victim, f"s{next(self.numbers)}", what="rotate"):
            assert held[f"{T}/apiKeys/{victim}"] <= held[f"{T}/apiKeys/{caller}"]

    @invariant()
    def the_state_survives_its_bytes(self) -> None:
        if hasattr(self, "tenant"):
            fold, state = domain.ACCESS_FOLD, self.tenant.state
            assert fold.decode(fold.encode(state)) == state


TestGiving = Giving.TestCase
TestGiving.settings = settings(max_examples=60, stateful_step_count=30)
