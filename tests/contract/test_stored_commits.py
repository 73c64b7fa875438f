"""What earlier versions stored folds into the same states for ever."""

from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

from services.agents.domain import AGENT_FOLD
from services.state.domain import SESSION_FOLD
from tests.fixtures.stored_commits import FOLDER, fold_all, read_fixture
from weft.agents.v1 import events_pb2 as agent_facts
from weft.state.v1 import events_pb2 as session_facts
from weft.tools.v1 import events_pb2 as tool_facts

FIXTURES = sorted(FOLDER.glob("*.ndjson"))
CONTRACTS = (session_facts, agent_facts, tool_facts)


def fact_types(file: FileDescriptor) -> set[str]:
    """Messages of a file that no other message of it is made of."""
    messages = file.message_types_by_name.values()
    parts = {field.message_type for message in messages for field in message.fields}
    return {message.full_name for message in messages if message not in parts}


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
async def test_stored_commits_fold_into_the_states_of_their_time(path: Path) -> None:
    stored = read_fixture(path)
    assert stored.folded
    assert await fold_all(stored.log) == stored.folded


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.DESCRIPTOR.package)
def test_every_kind_of_fact_is_among_the_stored_commits(contract: object) -> None:
    """Fails for a new kind: make it in tests/fixtures/write_commits.py, and run that."""
    stored = {event_type for path in FIXTURES for event_type in read_fixture(path).event_types}
    assert fact_types(contract.DESCRIPTOR) - stored == set()  # type: ignore[attr-defined]


def test_folds_know_the_facts_of_their_contracts() -> None:
    known = {
        event.DESCRIPTOR.full_name for fold in (SESSION_FOLD, AGENT_FOLD) for event in fold.events
    }
    contracts = fact_types(session_facts.DESCRIPTOR) | fact_types(agent_facts.DESCRIPTOR)
    assert known == contracts
