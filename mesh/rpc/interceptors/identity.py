"""Learns who calls: another service by its signed identity, or anybody by a credential."""

import weakref
from collections.abc import AsyncIterator
from typing import Any, Protocol

from mesh.call import Call
from mesh.clock import NANOSECONDS
from mesh.errors import CredentialInvalid
from mesh.principal import Principal
from mesh.rpc.methods import Handler, MethodSpec
from mesh.rpc.open_methods import PUBLIC
from mesh.rpc.propagation import AUTHORIZATION_KEY, IDENTITY_KEY
from mesh.security.authenticator import Authenticator


class Identities(Protocol):
    """Checks the identities that Weft's own processes send each other."""

    def verify(self, text: str) -> tuple[Principal, str]:
        """On whose behalf a call is made, and which service makes it. One that was checked
        before is known. CredentialInvalid where it isn't valid."""
        ...

    def knows_identity(self, text: str) -> bool:
        """Whether it was checked before and found valid."""
        ...


class PeerIdentity:
    """Takes the identity that another of Weft's services sent along, if one did."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        def identified(request: Any, call: Call) -> Any:
            if call.peer and IDENTITY_KEY in call.metadata:
                identity = self._identities.verify(call.metadata[IDENTITY_KEY])
                call.principal, call.caller = identity
            return inner(request, call)

        return identified

    stream = unary


def _end_with_credential(call: Call) -> None:
    """Brings the deadline of a stream forward to where its credential expires."""
    expire_ns = call.principal.expire_ns if call.principal is not None else None
    if expire_ns is not None:
        seconds = (expire_ns - call.clock.now_ns()) / NANOSECONDS
        call.deadline = min(call.deadline, call.clock.monotonic() + seconds)


class Authenticate:
    """Sets the call's principal, by the header `authorization`; raises CredentialInvalid.

    Calls that have one already come from within the process or from another service.
    A stream ends with CredentialInvalid as soon as its caller's credential is revoked, and
    by its deadline when the credential expires.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._streams: weakref.WeakSet[Call] = weakref.WeakSet()
        authenticator.on_change(self._end_revoked)

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        # What a client streams can go on as long as what it is sent.
        return self.stream(spec, inner) if spec.client_streaming else self._known(spec, inner)

    def stream(self, spec: MethodSpec, inner: Handler) -> Handler:
        authenticated = self._known(spec, inner)

        def kept(request: Any | AsyncIterator[Any], call: Call) -> Any:
            messages = authenticated(request, call)
            if call.peer:
                self._streams.add(call)
                _end_with_credential(call)
            return messages

        return kept

    def _known(self, spec: MethodSpec, inner: Handler) -> Handler:
        if spec.path in PUBLIC:
            return inner
        authenticate = self._authenticator.authenticate

        def authenticated(request: Any, call: Call) -> Any:
            if call.principal is None:
                call.principal = authenticate(call.metadata.get(AUTHORIZATION_KEY, ""))
            return inner(request, call)

        return authenticated

    def _end_revoked(self) -> None:
        for call in list(self._streams):
            if call.principal is None or call.end is None:
                continue
            if not self._authenticator.valid(call.principal):
                call.end(CredentialInvalid("the credential isn't valid any more"))
