"""What the facts of a split fold into."""

from collections.abc import Iterable

from google.protobuf.message import Message

from mesh.events.fold import Fold, Place
from weft.control.v1 import events_pb2 as facts
from weft.control.v1 import splits_pb2

PAST_MAX = 16
CHANGES_MAX = 32
REQUESTS_MAX = 64

State = splits_pb2.SplitState
Fact = facts.SplitSet | facts.SplitPromoted | facts.SplitRolledBack


def evolve(state: State, event: Message, place: Place) -> State:
    """The state after `event`. Takes `state` over."""
    split = state.split
    if isinstance(event, facts.SplitSet):
        split.name = event.split
        _keep(state)
        _policy(split, event)
        _change(state, splits_pb2.SPLIT_ACTION_SET, event.portions, event, place)
    elif isinstance(event, facts.SplitPromoted):
        _keep(state)
        split.ClearField("rollback_policy")
        _change(state, splits_pb2.SPLIT_ACTION_PROMOTED, [event.portion], event, place)
    elif isinstance(event, facts.SplitRolledBack):
        del state.past[: event.past_count]
        _policy(split, event)
        by_policy = event.HasField("failures")
        action = (
            splits_pb2.SPLIT_ACTION_ROLLED_BACK_BY_POLICY
            if by_policy
            else splits_pb2.SPLIT_ACTION_ROLLED_BACK
        )
        _change(state, action, event.portions, event, place)
    return state


def _keep(state: State) -> None:
    """The present portions become those to go back to."""
    if not state.split.portions:
        return
    kept = splits_pb2.PastPortions(portions=state.split.portions)
    if state.split.HasField("rollback_policy"):
        kept.rollback_policy.CopyFrom(state.split.rollback_policy)
    past = [kept, *state.past][:PAST_MAX]
    state.ClearField("past")
    state.past.extend(past)


def _policy(split: splits_pb2.Split, event: facts.SplitSet | facts.SplitRolledBack) -> None:
    split.ClearField("rollback_policy")
    if event.HasField("rollback_policy"):
        split.rollback_policy.CopyFrom(event.rollback_policy)


def _change(
    state: State,
    action: "splits_pb2.SplitAction.ValueType",
    portions: Iterable[splits_pb2.Portion],
    event: Fact,
    place: Place,
) -> None:
    split = state.split
    present = _since(split.portions, portions, place.revision)
    split.ClearField("portions")
    split.portions.extend(present)
    split.etag = f"r{place.revision}"
    state.revision = place.revision
    change = splits_pb2.SplitChange(
        action=action,
        portions=present,
        actor=event.actor,
        reason=event.reason,
        change_time=place.time,
        revision=place.revision,
    )
    changes = [change, *split.changes][:CHANGES_MAX]
    split.ClearField("changes")
    split.changes.extend(changes)
    if event.HasField("request"):
        if len(state.requests) >= REQUESTS_MAX:
            del state.requests[0]
        state.requests.append(event.request)


def _since(
    before: Iterable[splits_pb2.Portion], after: Iterable[splits_pb2.Portion], revision: int
) -> list[splits_pb2.Portion]:
    """The portions with the revision since which each takes calls without a break."""
    since = {(each.version, each.agent_revision): each.since_revision for each in before}
    return [
        splits_pb2.Portion(
            version=each.version,
            agent_revision=each.agent_revision,
            weight=each.weight,
            since_revision=(since.get((each.version, each.agent_revision), 0) or revision)
            if each.weight
            else 0,
        )
        for each in after
    ]


SPLIT_FOLD: Fold[State] = Fold(
    version=1,
    events=(facts.SplitSet, facts.SplitPromoted, facts.SplitRolledBack),
    initial=splits_pb2.SplitState,
    evolve=evolve,
    encode=lambda state: state.SerializeToString(deterministic=True),
    decode=splits_pb2.SplitState.FromString,
)
