"""Sessions that are exported, imported and erased."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.cli import session_records
from tests.support.command_line import Weft
from tests.support.memory_platform import MemoryPlatform
from weft.events.v1 import events_pb2 as envelopes
from weft.state.v1 import events_pb2 as facts

TALK = "tenants/default/agents/bot/sessions/talk"
SAID = 'Grüße — \u2028 and "quotes"\n'


@pytest.fixture
def talk(platform: MemoryPlatform, weft: Weft) -> str:
    """A session with four events."""
    weft("session", "create", "bot", "--id", "talk")

    def fill() -> None:
        platform.sessions.commit(TALK, facts.TurnAccepted(turn="t1", input=SAID))
        platform.sessions.commit(TALK, facts.TurnCompleted(turn="t1", text="Events."))
        platform.sessions.commit(TALK, facts.TurnCancelled(turn="t2", partial_text=SAID * 30_000))

    platform.on_loop(fill)
    return "bot/talk"


def events_of(weft: Weft, session: str) -> list[tuple[str, object]]:
    """What happened in a session, without when."""
    events = weft("session", "history", session, "-o", "json").data
    return [(event["type"], event["payload"]) for event in events]


@pytest.mark.parametrize("by", ["stdout", "file"])
def test_an_export_is_imported_as_it_was(
    weft: Weft, weft_process: Weft, talk: str, tmp_path: Path, by: str
) -> None:
    file = tmp_path / "talk.ndjson"
    if by == "file":
        exported = weft("session", "export", talk, "--to", str(file))
        assert file.stat().st_mode & 0o777 == 0o600
        assert exported.out == ""
        imported = weft("session", "import", "bot", str(file), "--id", "copy")
    else:
        text = weft("session", "export", talk, "-o", "yaml").out
        assert json.loads(text.splitlines()[0])["header"]["event_count"] == "4"
        assert len(text.encode().split(b"\n")) == 6
        imported = weft_process("session", "import", "bot", "--id", "copy", stdin=text)
    assert imported.code == 0, imported.err
    assert events_of(weft, "bot/copy") == events_of(weft, talk)


def test_an_import_goes_in_messages_of_bounded_size(
    platform: MemoryPlatform, weft: Weft, talk: str, tmp_path: Path
) -> None:
    def fill() -> None:
        for _ in range(1_500):
            platform.sessions.commit(TALK, facts.TurnStarted(turn="t2", owner="me"))
        for _ in range(4):
            platform.sessions.commit(TALK, facts.TurnCompleted(turn="t", text="x" * 400_000))

    platform.on_loop(fill)
    file = tmp_path / "talk.ndjson"
    weft("session", "export", talk, "--to", str(file))
    assert weft("session", "import", "bot", str(file)).code == 0
    messages = platform.sessions.imports
    assert sum(len(message.records) for message in messages) == 1 + 4 + 1_504
    assert all(len(m.records) <= session_records.BATCH_RECORDS_MAX for m in messages)
    assert all(m.ByteSize() < 1024 * 1024 or len(m.records) == 1 for m in messages)
    assert {message.parent for message in messages} == {"tenants/default/agents/bot"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [], "nothing to import"),
        (lambda lines: lines[1:], "no exported session"),
        (lambda lines: lines[:-1], "4 events were exported, 3 are here"),
        (lambda lines: [*lines, lines[-1]], "4 events were exported, 5 are here"),
        (lambda lines: [lines[0], *lines], "record 2 is no event"),
        (lambda lines: [*lines[:2], '{"event": "secret', *lines[3:]], "line 3 is no record"),
        (lambda lines: [*lines[:2], '{"evnt": {"id": "secret"}}'], "line 3 is no record"),
        (lambda lines: [*lines[:2], "[" * 100_000], "line 3 is no record"),
        (lambda lines: [lines[0].replace('"format":1', '"format":9'), *lines[1:]], "of format 1"),
    ],
)
def test_what_is_no_whole_export_makes_no_session(
    platform: MemoryPlatform,
    weft: Weft,
    talk: str,
    tmp_path: Path,
    change: Callable[[list[str]], list[str]],
    said: str,
) -> None:
    file = tmp_path / "talk.ndjson"
    weft("session", "export", talk, "--to", str(file))
    lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    file.write_text("".join(f"{line}\n" for line in change(lines)), encoding="utf-8")
    ran = weft("session", "import", "bot", str(file), "--id", "copy")
    assert (ran.code, said in ran.err, "secret" in ran.err) == (2, True, False)
    assert platform.sessions.imports == []
    assert weft("session", "show", "bot/copy").code == 3


def test_a_line_without_end_is_refused(weft: Weft, tmp_path: Path) -> None:
    file = tmp_path / "endless"
    with file.open("wb") as sparse:
        sparse.truncate(session_records.LINE_BYTES_MAX + 10)
    ran = weft("session", "import", "bot", str(file))
    assert (ran.code, "line 1 is too long" in ran.err) == (2, True)
    assert weft("session", "import", "bot", str(tmp_path / "nowhere")).code == 1


def test_a_fact_of_an_unknown_type_ends_the_export_and_leaves_no_file(
    platform: MemoryPlatform, weft: Weft, talk: str, tmp_path: Path
) -> None:
    def commit() -> None:
        platform.sessions.commit(TALK, envelopes.BlobReference(key="k"))
        unknown = platform.sessions.last_event()
        unknown.payload.type_url = "type.googleapis.com/weft.state.v9.Unheard"

    platform.on_loop(commit)
    ran = weft("session", "export", talk, "--to", str(tmp_path / "talk.ndjson"))
    assert (ran.code, "event 5 is of a type" in ran.err) == (1, True)
    assert list(tmp_path.glob("*talk*")) == []


def test_erase_is_refused_while_a_fork_lives(weft: Weft, talk: str) -> None:
    weft("session", "fork", talk, "--id", "other")
    assert weft("session", "erase", talk).code == 2
    assert weft("session", "erase", talk, "--yes").code == 1
    ran = weft("session", "erase", talk, "--yes", "--cascade")
    assert ran.out == "erased bot/other\nerased bot/talk\n"
