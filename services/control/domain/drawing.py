"""Which portion a key gets, such as a session its agent's revision."""

import hashlib
from collections.abc import Sequence

from weft.control.v1 import splits_pb2


def drawn(portions: Sequence[splits_pb2.Portion], key: str) -> splits_pb2.Portion:
    """The portion that `key` falls into: the same one each time, and of many keys each
    portion gets its share. At least one portion has a weight."""
    total = sum(portion.weight for portion in portions)
    digest = hashlib.sha256(key.encode()).digest()
    # 64 bits for sums below 2^24: no portion is favoured by what anybody could see.
    place = int.from_bytes(digest[:8], "big") * total >> 64
    for portion in portions:
        place -= portion.weight
        if place < 0:
            return portion
    raise ValueError("a split without weights takes nothing")
