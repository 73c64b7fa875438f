"""The port through which the edge learns who calls. `services/auth` implements it."""

from collections.abc import Callable
from typing import Protocol

from mesh.principal import Principal
from mesh.security.identity import ShownKey
from mesh.security.tokens import AccessToken


class Authenticator(Protocol):
    """Knows, in memory, which credentials are valid; follows the log for what changes.

    A credential that was revoked anywhere is refused here within a moment of the
    commit, and no later than 5 s after it.
    """

    def authenticate(self, authorization: str) -> Principal:
        """Whose credential the header `authorization` holds: `Bearer` with an API key or
        with a token. One that was verified before costs microseconds.

        Raises CredentialInvalid; its text never says what about it was wrong.
        """
        ...

    def recall(self, shown: ShownKey | AccessToken) -> Principal:
        """Whose credential it is that another process of the deployment let in. It costs
        microseconds. Raises CredentialInvalid where it isn't valid any more, or not known
        here yet."""
        ...

    async def caught_up(self) -> bool:
        """Reads what the log has by now; whether that was more than was known."""
        ...

    def knows(self, authorization: str) -> bool:
        """Whether `authenticate` let that header in before."""
        ...

    def valid(self, principal: Principal) -> bool:
        """Whether what `authenticate` returned still is what it would return."""
        ...

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls back after credentials, roles or bindings changed; returns what ends that."""
        ...

    def denied(self, principal: Principal, method: str) -> None:
        """Notes that a call of `/package.Service/Method` was refused to the principal, for
        the audit trail. Costs microseconds and never fails."""
        ...
