"""Ids that sort by the time they were made: ULIDs in lower case.

48 bits of milliseconds and 80 random bits in Crockford's base 32, 26 characters
(the ULID specification). Two ids made in one process always sort in the order in
which they were made: within a millisecond the random part is counted up. In lower
case they are valid resource ids and NATS tokens.
"""

import hashlib
import itertools
import re
import secrets
import threading
import time

RESOURCE_ID = r"[a-z0-9][a-z0-9-]{0,62}"
"""Pattern of the ids in resource names (AIP-122), as the contracts have it."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
_RANDOM_BITS = 80

_PROCESS = secrets.token_hex(8)
_requests = itertools.count(1)
_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """A fresh id of 26 characters, greater than all that this process made before."""
    global _last
    milliseconds = time.time_ns() // 1_000_000
    with _lock:
        if milliseconds > _last >> _RANDOM_BITS:
            _last = milliseconds << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
        else:
            # The same millisecond, or a clock that stepped back, must not break the order.
            _last += 1
        value = _last
    return _encode(value)


def new_request_id() -> str:
    """A fresh id for a call that came without one: cheap, and unique as `new_id` is."""
    return f"{_PROCESS}-{next(_requests):x}"


def new_instance_id(user: str) -> str:
    """A fresh id for a process that is that user of NATS, which the id's end says: nobody else
    may then write what is kept under it. ValueError for a name that a resource id can't end with,
    such as one of more than 36 characters."""
    instance = f"{new_id()}-{user}"
    if not re.fullmatch(RESOURCE_ID, instance) or not user:
        raise ValueError(f"a user of NATS whose processes have leases can't be named {user!r}")
    return instance


def user_of_instance(instance: str) -> str:
    """The user of NATS that an instance's id names: all behind the first hyphen, for names may
    have hyphens and what is before has none. Empty where it names none."""
    return instance.partition("-")[2]


def id_from(*parts: str) -> str:
    """An id of 26 characters that is the same for the same `parts`.

    Used where a repeated request must find what its first attempt made.
    """
    digest = hashlib.sha256("\x00".join(parts).encode()).digest()
    return _encode(int.from_bytes(digest[:16], "big"))


def cluster_id(log_id: str) -> str:
    """Id of the deployment whose event store's `log_id()` that is: 16 hexadecimal digits."""
    return hashlib.sha256(log_id.encode()).hexdigest()[:16]


def _encode(value: int) -> str:
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(120, -1, -10)])
