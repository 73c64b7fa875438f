"""The keys that tokens are signed with. Times are Unix time in nanoseconds."""

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.errors import FailedPrecondition
from mesh.events.fold import Fold, Place
from mesh.events.store import StreamName
from services.auth.domain.names import AREA
from weft.auth.v1 import access_pb2
from weft.auth.v1 import events_pb2 as facts

SIGNING_STREAM = StreamName(AREA, "_system", ("signing",))
KEYS_MAX = 16

SigningState = access_pb2.SigningState


def decide_rotation(
    state: SigningState,
    kid: str,
    public_key: bytes,
    *,
    now_ns: int,
    sign_ns: int,
    valid_ns: int,
) -> list[Message]:
    """Makes `kid` the key that signs from `sign_ns` on. Those before it verify what they
    signed until then, for as long as that is valid: `valid_ns`.

    Raises FailedPrecondition where so many keys are still valid that there is no room.
    """
    if sum(not has_expired(key, now_ns) for key in state.keys) >= KEYS_MAX:
        raise FailedPrecondition("the signing keys were rotated too often: try again later")
    expire = _timestamp(sign_ns + valid_ns)
    retired = [
        facts.SigningKeyRetired(kid=key.kid, expire_time=expire)
        for key in state.keys
        if not key.HasField("expire_time")
    ]
    created = facts.SigningKeyCreated(kid=kid, public_key=public_key, sign_time=_timestamp(sign_ns))
    return [created, *retired]


def decide_first(state: SigningState, kid: str, public_key: bytes, *, now_ns: int) -> list[Message]:
    """Makes the first key, which signs at once; nothing where there is one."""
    if state.keys:
        return []
    return decide_rotation(state, kid, public_key, now_ns=now_ns, sign_ns=now_ns, valid_ns=0)


def is_aged(state: SigningState, now_ns: int, age_ns: int) -> bool:
    """Whether the newest key is older than `age_ns`."""
    return bool(state.keys) and state.keys[-1].create_time.ToNanoseconds() + age_ns <= now_ns


def has_expired(key: access_pb2.SigningKey, now_ns: int) -> bool:
    """Whether what the key signed isn't valid any more."""
    return key.HasField("expire_time") and key.expire_time.ToNanoseconds() <= now_ns


def evolve(state: SigningState, event: Message, place: Place) -> SigningState:
    """The state after `event`. Takes `state` over."""
    if isinstance(event, facts.SigningKeyCreated):
        now_ns = place.time.ToNanoseconds()
        live = [key for key in state.keys if not has_expired(key, now_ns)]
        del state.keys[:]
        state.keys.extend(live)
        state.keys.add(
            kid=event.kid,
            public_key=event.public_key,
            create_time=place.time,
            sign_time=event.sign_time,
        )
    elif isinstance(event, facts.SigningKeyRetired):
        for key in state.keys:
            if key.kid == event.kid:
                key.expire_time.CopyFrom(event.expire_time)
    state.revision = place.revision
    return state


def _timestamp(time_ns: int) -> Timestamp:
    moment = Timestamp()
    moment.FromNanoseconds(time_ns)
    return moment


SIGNING_FOLD: Fold[SigningState] = Fold(
    version=1,
    events=(facts.SigningKeyCreated, facts.SigningKeyRetired),
    initial=access_pb2.SigningState,
    evolve=evolve,
    encode=lambda state: state.SerializeToString(deterministic=True),
    decode=access_pb2.SigningState.FromString,
)
