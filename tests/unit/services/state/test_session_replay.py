"""A session's log folds into the same state, whichever way and wherever it is folded."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.events.aggregate import Repository
from mesh.events.memory import MemoryEventStore
from mesh.events.store import START, CommitDraft, NewEvent
from services.state import domain
from tests.support.processes import ROOT
from tests.support.session_log import SESSION, SessionLog, folded
from tests.support.session_walk import state_hashes, walked
from weft.state.v1 import session_pb2

STREAM = domain.session_stream(SESSION)
PROCESS_SECONDS_MAX = 60
WALKS = st.builds(walked, st.integers(0, 10_000), st.integers(1, 120))
EVENT_TYPES_OF_ANY_WALK = {event.__name__ for event in domain.SESSION_FOLD.events} - {
    "SessionForked",
    "SessionImported",
    "SessionErased",
}


async def stored(log: SessionLog, snapshot_commits: int) -> MemoryEventStore:
    """A store with the log's commits, written as the process that owns the session does."""
    store = MemoryEventStore()
    repository = Repository(store, domain.SESSION_FOLD, snapshot_commits=snapshot_commits)
    aggregate = repository.open(STREAM)
    for _, facts in log.commits:
        await aggregate.execute(always(facts))
    return store


def always(facts: Sequence[Message]) -> Callable[[session_pb2.SessionState], Sequence[Message]]:
    return lambda state: facts


def test_walks_see_every_kind_of_fact() -> None:
    facts = {type(fact).__name__ for seed in range(40) for _, fact in walked(seed, 60).facts}
    assert facts == EVENT_TYPES_OF_ANY_WALK


@settings(max_examples=60)
@given(log=WALKS, snapshot_commits=st.integers(1, 9), cut=st.integers(0, 10_000))
async def test_snapshot_and_tail_give_what_the_whole_log_gives(
    log: SessionLog, snapshot_commits: int, cut: int
) -> None:
    store = await stored(log, snapshot_commits)
    repository = Repository(store, domain.SESSION_FOLD, snapshot_commits=snapshot_commits)
    revision = 1 + cut % log.state.revision
    short = await repository.load(STREAM, until_revision=revision)
    whole = await repository.load(STREAM, until_revision=revision, snapshots=False)
    assert domain.state_hash(short.state) == domain.state_hash(whole.state)
    assert short.head == whole.head
    assert short.state.revision == revision


@settings(max_examples=60)
@given(log=WALKS)
async def test_what_the_writer_holds_is_what_its_log_says(log: SessionLog) -> None:
    store = MemoryEventStore()
    head = START
    for time_ns, facts in log.commits:
        draft = CommitDraft([NewEvent(fact) for fact in facts], time_ns)
        head = await store.append(STREAM, draft, head)
    loaded = await Repository(store, domain.SESSION_FOLD).load(STREAM)
    assert loaded.state == log.state


@settings(max_examples=60)
@given(log=WALKS)
def test_folding_leaves_the_facts_as_they_are(log: SessionLog) -> None:
    before = [fact.SerializeToString(deterministic=True) for _, fact in log.facts]
    first = folded(log.facts).SerializeToString(deterministic=True)
    assert folded(log.facts).SerializeToString(deterministic=True) == first
    assert [fact.SerializeToString(deterministic=True) for _, fact in log.facts] == before


@settings(max_examples=60)
@given(log=WALKS)
def test_a_state_that_was_written_and_read_goes_on_the_same_way(log: SessionLog) -> None:
    middle = len(log.facts) // 2
    state = folded(log.facts[:middle])
    read = session_pb2.SessionState.FromString(domain.SESSION_FOLD.encode(state))
    for place, fact in log.facts[middle:]:
        read = domain.evolve(read, fact, place)
    assert domain.state_hash(read) == domain.state_hash(log.state)


@pytest.mark.parametrize("seed", [1, 2])
def test_states_are_the_same_bytes_in_every_process(seed: int) -> None:
    said = {
        subprocess.run(
            [sys.executable, "-m", "tests.support.session_walk", str(seed), "120"],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "generated"))),
            },
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=PROCESS_SECONDS_MAX,
        ).stdout.strip()
        for hash_seed in ("1", "4242")
    }
    assert said == {state_hashes(seed, 120)}
