"""What travels with a call: its deadline, its request id and its trace.

Both paths make their `Call` here, so that a handler can't tell them apart.
"""

import re
from collections.abc import Iterable, Sequence
from time import monotonic

from mesh.call import Call, current_call
from mesh.ids import new_request_id
from mesh.principal import system

AUTHORIZATION_KEY = "authorization"
IDENTITY_KEY = "x-weft-identity"
INSTANCE_KEY = "x-weft-instance"
REQUEST_ID_KEY = "x-request-id"
TRACEPARENT_KEY = "traceparent"

Metadata = Iterable[tuple[str, str | bytes]]

_request_id = re.compile(r"[A-Za-z0-9._:-]{1,128}").fullmatch
# W3C Trace Context, version 00; ids of zeros are not valid.
_traceparent = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


def outgoing_call(
    method: str,
    default_seconds: float,
    timeout: float | None,
    metadata: Metadata | None,
    caller: str = "",
) -> Call:
    """The call that this task is about to make, for the service `caller`.

    It takes deadline, request id, principal and trace from the call that this task answers,
    if it answers one; otherwise Weft itself calls. A `timeout` can only bring the
    deadline nearer; without either it is `default_seconds` away. Work that goes on after
    its call has to set a `current_call` of its own first, or it is bound by that call's
    deadline.
    """
    given = _text_metadata(metadata) if metadata else {}
    parent = current_call.get()
    if parent is None:
        seconds = default_seconds if timeout is None else timeout
        call = _new_call(method, seconds, given)
        call.principal, call.caller = system(), caller
        return call
    deadline = parent.deadline
    if timeout is not None:
        deadline = min(deadline, parent.clock.monotonic() + timeout)
    return Call(
        method,
        deadline,
        _valid_request_id(given) or parent.request_id,
        parent.principal,
        caller,
        traceparent=_valid_traceparent(given) or parent.traceparent,
        metadata=given,
        clock=parent.clock,
    )


def incoming_call(
    method: str,
    default_seconds: float,
    timeout: float | None,
    metadata: Metadata | None,
    peer: str,
    seconds_max: float,
) -> Call:
    """The call that arrived from `peer` over the wire with `metadata`, `timeout` seconds
    from its deadline, or None where the caller set none; at most `seconds_max` away.

    Nobody has said yet who calls: its principal is None.
    """
    given = _text_metadata(metadata) if metadata else {}
    seconds = default_seconds if timeout is None else min(timeout, seconds_max)
    return _new_call(method, seconds, given, peer)


def wire_metadata(call: Call) -> Sequence[tuple[str, str]]:
    """The metadata that carries `call` to another process."""
    own = {**call.metadata, REQUEST_ID_KEY: call.request_id}
    if call.traceparent:
        own[TRACEPARENT_KEY] = call.traceparent
    return tuple(own.items())


def _new_call(method: str, seconds: float, given: dict[str, str], peer: str = "") -> Call:
    return Call(
        method,
        monotonic() + seconds,
        _valid_request_id(given) or new_request_id(),
        None,
        "",
        peer,
        _valid_traceparent(given),
        given,
    )


def _text_metadata(metadata: Metadata) -> dict[str, str]:
    """By key in lower case; of a key that comes again the values are joined (RFC 9110, 5.3),
    so that two credentials are none."""
    pairs = tuple(metadata)
    # What gRPC hands over is in lower case already; mostly that is all there is to it.
    given = {key: value for key, value in pairs if value.__class__ is str and key.islower()}
    if len(given) == len(pairs):
        return given
    given = {}
    for key, value in pairs:
        if isinstance(value, str):
            name = key.lower()
            given[name] = f"{given[name]}, {value}" if name in given else value
    return given


def _valid_request_id(given: dict[str, str]) -> str:
    value = given.get(REQUEST_ID_KEY)
    return value if value and _request_id(value) else ""


def _valid_traceparent(given: dict[str, str]) -> str:
    value = given.get(TRACEPARENT_KEY)
    return value if value and _traceparent(value) else ""
