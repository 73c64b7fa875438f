"""Learns who calls: another service by its signed identity, or anybody by a credential."""

import weakref
from collections.abc import Callable
from typing import Protocol

from mesh.call import Call
from mesh.clock import NANOSECONDS
from mesh.errors import CredentialInvalid, PermissionDenied
from mesh.principal import Principal
from mesh.rpc.propagation import AUTHORIZATION_KEY
from mesh.security.authenticator import Authenticator
from mesh.security.identity import Identity, ShownKey
from mesh.security.tokens import AccessToken


class Identities(Protocol):
    """Checks the identities that Weft's own processes send each other."""

    def verify(self, text: str, method: str) -> Identity:
        """On whose behalf `/package.Service/Method` is called here, and by which service.
        One that was checked before is known. CredentialInvalid where it isn't valid for it."""
        ...

    def knows_identity(self, text: str) -> bool:
        """Whether it was checked before and found valid."""
        ...


def identify(
    call: Call,
    identity: Identity,
    recall: Callable[[ShownKey | AccessToken], Principal],
    *,
    public: bool,
) -> None:
    """Takes over who calls by what a service's identity says.

    A call from outside that the service hands on is taken for what it is, its principal's
    own; of a public method it is nobody's. CredentialInvalid where somebody is needed to call,
    or a credential comes beside the identity: one of them isn't the caller's. PermissionDenied
    by the peer's certificate.
    """
    call.caller = identity.caller
    _check_certificate(call)
    call.principal = None if public else identity.principal
    if public or identity.shown is not None:
        call.relayed_by, call.caller = call.caller, ""
    if public:
        return
    if identity.shown is not None:
        call.principal = recall(identity.shown)
    if call.principal is None or AUTHORIZATION_KEY in call.metadata:
        raise CredentialInvalid("the identity isn't that of the credential")


def _check_certificate(call: Call) -> None:
    """PermissionDenied where certificates are used, and that of the peer isn't one of a process
    with the service that it says to be. An identity alone could have been copied."""
    if call.acts_as is not None and not call.acts_as(call.caller):
        raise PermissionDenied(f"the peer's certificate isn't one of {call.caller}")


class CredentialWatch:
    """Ends streams with CredentialInvalid as soon as their caller's credential is revoked,
    and by their deadline when it expires."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._streams: weakref.WeakSet[Call] = weakref.WeakSet()
        authenticator.on_change(self._end_revoked)

    def add(self, call: Call) -> None:
        """Watches a stream that begins."""
        self._streams.add(call)
        expire_ns = call.principal.expire_ns if call.principal is not None else None
        if expire_ns is not None:
            seconds = (expire_ns - call.clock.now_ns()) / NANOSECONDS
            call.deadline = min(call.deadline, call.clock.monotonic() + seconds)

    def _end_revoked(self) -> None:
        for call in list(self._streams):
            if call.principal is None or call.end is None:
                continue
            if not self._authenticator.valid(call.principal):
                call.end(CredentialInvalid("the credential isn't valid any more"))
