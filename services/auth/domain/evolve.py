"""How the facts of a tenant's access fold into its state."""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.events.fold import Fold, Place
from services.auth.domain.queries import existing_api_key, has_passed, is_valid
from weft.auth.v1 import access_pb2
from weft.auth.v1 import events_pb2 as facts

API_KEYS_MAX = 1_024
SECRETS_MAX = 8
REQUESTS_MAX = 256

State = access_pb2.AccessState


def evolve(state: State, event: Message, place: Place) -> State:
    """The state after `event`. Takes `state` over."""
    _STEPS[type(event)](state, event, place)
    request = getattr(event, "request", None)
    if request is not None and request.request_id:
        if len(state.requests) >= REQUESTS_MAX:
            del state.requests[0]
        state.requests.append(request)
    state.revision = place.revision
    return state


def _tenant_created(state: State, event: facts.TenantCreated, place: Place) -> None:
    state.tenant.CopyFrom(event.tenant)
    state.tenant.create_time.CopyFrom(place.time)


def _api_key_created(state: State, event: facts.ApiKeyCreated, place: Place) -> None:
    if len(state.api_keys) >= API_KEYS_MAX:
        _drop_ended_key(state, place.time)
    stored = state.api_keys.add(api_key=event.api_key, secret_hmacs=[event.secret_hmac])
    stored.api_key.create_time.CopyFrom(place.time)
    stored.api_key.secrets[0].create_time.CopyFrom(place.time)


def _api_key_rotated(state: State, event: facts.ApiKeyRotated, place: Place) -> None:
    stored = existing_api_key(state, event.api_key)
    key, now_ns = stored.api_key, place.time.ToNanoseconds()
    ends = event.previous_expire_time
    for secret in key.secrets:
        if not has_passed(secret, "expire_time", ends.ToNanoseconds()):
            secret.expire_time.CopyFrom(ends)
    kept = [
        (secret, digest)
        for secret, digest in zip(key.secrets, stored.secret_hmacs, strict=True)
        if not has_passed(secret, "expire_time", now_ns)
    ][-(SECRETS_MAX - 1) :]
    secrets = [secret for secret, _ in kept]
    digests = [digest for _, digest in kept]
    del key.secrets[:], stored.secret_hmacs[:]
    key.secrets.extend([*secrets, event.secret])
    key.secrets[-1].create_time.CopyFrom(place.time)
    stored.secret_hmacs.extend([*digests, event.secret_hmac])


def _api_key_revoked(state: State, event: facts.ApiKeyRevoked, place: Place) -> None:
    stored = existing_api_key(state, event.api_key)
    stored.api_key.revoke_time.CopyFrom(place.time)
    del stored.secret_hmacs[:], stored.api_key.secrets[:]
    _forget_member(state, event.api_key)


def _api_key_used(state: State, event: facts.ApiKeyUsed, place: Place) -> None:
    stored = existing_api_key(state, event.api_key)
    stored.api_key.last_used_time.CopyFrom(place.time)


def _token_revoked(state: State, event: facts.TokenRevoked, place: Place) -> None:
    now_ns = place.time.ToNanoseconds()
    live = [each for each in state.revoked_tokens if each.expire_time.ToNanoseconds() > now_ns]
    del state.revoked_tokens[:]
    state.revoked_tokens.extend([*live, event.token])


def _rotated(state: State, event: facts.WrappingKeyRotated, place: Place) -> None:
    """It is for the audit; keys aren't part of the state."""


def _role_created(state: State, event: facts.RoleCreated, place: Place) -> None:
    state.roles.append(event.role)


def _role_updated(state: State, event: facts.RoleUpdated, place: Place) -> None:
    for role in state.roles:
        if role.name == event.role.name:
            role.CopyFrom(event.role)


def _role_deleted(state: State, event: facts.RoleDeleted, place: Place) -> None:
    _remove_named(state.roles, event.role)


def _binding_created(state: State, event: facts.RoleBindingCreated, place: Place) -> None:
    state.bindings.append(event.binding)
    state.bindings[-1].create_time.CopyFrom(place.time)


def _binding_deleted(state: State, event: facts.RoleBindingDeleted, place: Place) -> None:
    _remove_named(state.bindings, event.binding)


def _drop_ended_key(state: State, now: Timestamp) -> None:
    """Makes room: the oldest key that isn't valid any more goes."""
    for index, stored in enumerate(state.api_keys):
        if not is_valid(stored.api_key, now.ToNanoseconds()):
            _forget_member(state, stored.api_key.name)
            del state.api_keys[index]
            return


def _forget_member(state: State, api_key: str) -> None:
    """A key of the same name that is made later must not find what this one had."""
    for binding in state.bindings:
        if api_key in binding.members:
            binding.members.remove(api_key)
    kept = [binding for binding in state.bindings if binding.members]
    if len(kept) < len(state.bindings):
        del state.bindings[:]
        state.bindings.extend(kept)


def _remove_named(entries: Any, name: str) -> None:
    for index, entry in enumerate(entries):
        if entry.name == name:
            del entries[index]
            return


_STEPS: dict[type[Message], Callable[[State, Any, Place], None]] = {
    facts.TenantCreated: _tenant_created,
    facts.ApiKeyCreated: _api_key_created,
    facts.ApiKeyRotated: _api_key_rotated,
    facts.ApiKeyRevoked: _api_key_revoked,
    facts.ApiKeyUsed: _api_key_used,
    facts.TokenRevoked: _token_revoked,
    facts.WrappingKeyRotated: _rotated,
    facts.RoleCreated: _role_created,
    facts.RoleUpdated: _role_updated,
    facts.RoleDeleted: _role_deleted,
    facts.RoleBindingCreated: _binding_created,
    facts.RoleBindingDeleted: _binding_deleted,
}

ACCESS_FOLD: Fold[State] = Fold(
    version=1,
    events=tuple(_STEPS),
    initial=access_pb2.AccessState,
    evolve=evolve,
    encode=lambda state: state.SerializeToString(deterministic=True),
    decode=access_pb2.AccessState.FromString,
)
