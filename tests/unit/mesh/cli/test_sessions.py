"""Sessions, their history, and the tail of the log."""

import threading
import time

import pytest

from tests.support.command_line import Weft
from tests.support.memory_platform import MemoryPlatform
from weft.events.v1 import events_pb2 as envelopes
from weft.state.v1 import events_pb2 as facts

TALK = "tenants/default/agents/bot/sessions/talk"


@pytest.fixture
def talk(platform: MemoryPlatform, weft: Weft) -> str:
    """A session with four events in three commits; their positions are 1, 3 and 5."""
    weft("session", "create", "bot", "--id", "talk")

    def fill() -> None:
        accepted = facts.TurnAccepted(turn="t1", input="What is\nstored?")
        platform.sessions.commit(TALK, accepted)
        step = facts.ModelStepCompleted(turn="t1", step=1)
        platform.sessions.commit(TALK, step, facts.TurnCompleted(turn="t1", text="Events."))

    platform.on_loop(fill)
    return "bot/talk"


def test_create_list_and_show(weft: Weft) -> None:
    created = weft("session", "create", "bot", "--id", "talk", "--policy", "enqueue", "-o", "json")
    assert created.data["submit_policy"] == "SUBMIT_POLICY_ENQUEUE"
    assert "bot/talk" in weft("session", "list").out
    assert "bot/talk" in weft("session", "list", "bot").out
    assert "bot/talk" not in weft("session", "list", "other").out
    assert "enqueue" in weft("session", "show", "bot/talk").out


def test_history_is_time_type_and_a_line(weft: Weft, talk: str) -> None:
    rows = weft("session", "history", talk).out.splitlines()[1:]
    assert [row.split()[3] for row in rows] == [
        "SessionCreated",
        "TurnAccepted",
        "ModelStepCompleted",
        "TurnCompleted",
    ]
    assert rows[1].endswith("TurnAccepted        t1: What is stored?")
    after = weft("session", "history", talk, "--after-revision", "3", "-o", "json").data
    assert [event["payload"]["text"] for event in after] == ["Events."]


def test_state_at_a_revision_and_at_a_time(weft: Weft, talk: str) -> None:
    now = weft("session", "state", talk, "-o", "json").data
    at_revision = weft("session", "state", talk, "--revision", "2", "-o", "json").data
    at_time = weft("session", "state", talk, "--time", "2023-11-14T22:13:23Z", "-o", "json").data
    assert now["state"]["revision"] == "4"
    assert at_revision == at_time
    assert at_revision["state"]["revision"] == "2"
    assert weft("session", "state", talk, "--revision", "9").code == 3


@pytest.mark.parametrize(
    "options", [["--time", "yesterday"], ["--revision", "0"], ["--revision", "1", "--time", "2020"]]
)
def test_a_state_that_cant_be_meant_is_a_usage_error(
    weft: Weft, talk: str, options: list[str]
) -> None:
    assert weft("session", "state", talk, *options).code == 2


def test_fork_names_its_origin(weft: Weft, talk: str) -> None:
    forked = weft("session", "fork", talk, "--revision", "2", "--id", "other", "-o", "json").data
    assert forked["name"].endswith("/sessions/other")
    assert forked["forked_from"] == {"session": TALK, "revision": "2"}


def test_verify_exits_1_where_a_hash_differs(
    platform: MemoryPlatform, weft: Weft, talk: str
) -> None:
    assert weft("session", "verify", talk, "-o", "json").data["matches"] is True
    platform.sessions.damaged.add(TALK)
    ran = weft("session", "verify", talk, "-o", "json")
    assert (ran.code, ran.data["matches"]) == (1, False)
    assert "the live state's hash differs" in ran.err


@pytest.mark.parametrize(
    ("options", "types"),
    [
        (["--all", "-n", "4"], ["SessionCreated", "TurnAccepted", "ModelStepC", "TurnCompleted"]),
        (["--after-position", "3", "-n", "2"], ["ModelStepCompleted", "TurnCompleted"]),
        (["--since", "2023-11-14T22:13:25Z", "-n", "1"], ["ModelStepCompleted"]),
        (["--all", "--type", "TurnCompleted", "-n", "1"], ["TurnCompleted"]),
        (["--all", "--type", "weft.state.v1.TurnAccepted", "-n", "1"], ["TurnAccepted"]),
    ],
)
@pytest.mark.parametrize("name", [[], ["bot"], ["bot/talk"], ["tenants/default"], [TALK]])
def test_tail_begins_where_it_is_told(
    weft: Weft, talk: str, name: list[str], options: list[str], types: list[str]
) -> None:
    ran = weft("events", "tail", *name, *options, "-o", "json")
    assert ran.code == 0
    got = [item["type"].rsplit(".", 1)[1] for item in ran.items]
    assert all(full.startswith(start) for full, start in zip(got, types, strict=True))


@pytest.mark.parametrize("cut", range(1, 4))
def test_tail_goes_on_after_a_lost_connection_without_gap_or_duplicate(
    platform: MemoryPlatform, weft: Weft, talk: str, cut: int
) -> None:
    # Also between two events of one commit, which share their position.
    platform.on_loop(lambda: platform.sessions.cuts.append(cut))
    ran = weft("events", "tail", "--all", "-n", "4", "-o", "json")
    assert [item["revision"] for item in ran.items] == ["1", "2", "3", "4"]
    assert "The connection is lost" in ran.err


def test_tail_prints_what_is_committed_from_now_on(
    platform: MemoryPlatform, weft: Weft, talk: str
) -> None:
    done = threading.Event()

    def commit_until_seen() -> None:
        while not done.wait(0.05):
            platform.on_loop(
                lambda: platform.sessions.commit(TALK, facts.TurnStarted(turn="t2", owner="me"))
            )

    committer = threading.Thread(target=commit_until_seen)
    committer.start()
    try:
        ran = weft("events", "tail", "-n", "1")
    finally:
        done.set()
        committer.join()
    assert ran.code == 0
    assert ran.out.endswith("TurnStarted  t2 by me\n")


def test_tail_ends_with_its_timeout(weft: Weft, talk: str) -> None:
    began = time.monotonic()
    ran = weft("events", "tail", "--timeout", "0.3")
    assert (ran.code, ran.out) == (124, "")
    assert time.monotonic() - began >= 0.3


def test_an_event_of_an_unknown_type_is_shown_with_its_bytes(
    platform: MemoryPlatform, weft: Weft, talk: str
) -> None:
    def commit() -> None:
        platform.sessions.commit(TALK, envelopes.BlobReference(key="k"))
        unknown = platform.sessions.last_event()
        unknown.type = "weft.state.v9.Unheard"
        unknown.payload.type_url = "type.googleapis.com/weft.state.v9.Unheard"

    platform.on_loop(commit)
    event = weft("session", "history", talk, "-o", "json").data[-1]
    assert event["payload"] == {
        "@type": "type.googleapis.com/google.protobuf.BytesValue",
        "value": "CgFr",
    }
    called = weft("call", "StateService/ListEvents", "-d", f'{{"parent": "{TALK}"}}')
    assert called.code == 0
    assert "weft.state.v9.Unheard" in weft("events", "tail", "--all", "-n", "5", "-o", "json").out


@pytest.mark.parametrize("since", ["soon", "10", "1h30", "1e999d", ""])
def test_a_since_that_is_no_time_is_a_usage_error(weft: Weft, since: str) -> None:
    assert weft("events", "tail", "--since", since).code == 2
