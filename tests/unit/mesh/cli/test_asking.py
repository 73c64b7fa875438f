"""Asking, and following a turn through what can happen to it."""

import pytest

from mesh.ids import id_from
from tests.support.command_line import Weft
from tests.support.memory_platform import MemoryPlatform
from tests.support.memory_turns import Event, Script, call_of, completed, model_step, token
from weft.agents.v1 import turn_pb2
from weft.errors.v1 import errors_pb2
from weft.models.v1 import models_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import events_pb2

ANSWER = (
    Event(tool_call=Event.ToolCalled(call=call_of("search"), effect=options_pb2.EFFECT_READ)),
    Event(tool_result=Event.ToolResult(call_id="call-1", content="three passages")),
    token("Events are "),
    token("stored.", offset=11),
    model_step("Events are stored."),
    completed("Events are stored.", ("docs/events.md", "Events")),
)
STORED = "Events are stored.\n\nSources:\n  [1] Events (docs/events.md, line 3)\n"
APPROVAL = Event(approval_required=Event.ApprovalRequired(call=call_of("send")))
IN_DOUBT = Event(in_doubt=Event.InDoubt(call=call_of("send")))


def test_ask_streams_the_answer_with_its_sources_and_keeps_the_rest_off_stdout(
    platform: MemoryPlatform, weft: Weft
) -> None:
    platform.turns.scripts["how"] = Script(ANSWER)
    ran = weft("ask", "bot", "how")
    assert ran.code == 0
    assert ran.out == STORED
    assert '→ search {"n": 1}' in ran.err
    assert "← three passages" in ran.err


def test_ask_makes_a_session_and_goes_on_in_one_that_is_named(
    platform: MemoryPlatform, weft: Weft
) -> None:
    platform.turns.scripts["how"] = Script(ANSWER)
    weft("ask", "bot", "how")
    weft("ask", "bot", "how", "--session", "talk")
    weft("ask", "bot", "how", "--session", "bot/talk")
    made, by_id, by_path = (request.session for request in platform.turns.requests)
    assert made.startswith("tenants/default/agents/bot/sessions/")
    assert by_id == by_path == "tenants/default/agents/bot/sessions/talk"


def test_ask_refuses_a_session_of_another_agent(weft: Weft) -> None:
    ran = weft("ask", "bot", "how", "--session", "other/talk")
    assert ran.code == 2
    assert "session other/talk isn't one of agent bot" in ran.err


def test_ask_as_json_prints_one_event_a_line(platform: MemoryPlatform, weft: Weft) -> None:
    platform.turns.scripts["how"] = Script(ANSWER)
    ran = weft("ask", "bot", "how", "-o", "json")
    assert ran.code == 0
    assert [next(iter(item.keys() - {"offset", "time"})) for item in ran.items] == [
        "accepted",
        "tool_call",
        "tool_result",
        "token",
        "token",
        "model_step",
        "completed",
    ]


@pytest.mark.parametrize("restarts", [False, True], ids=["refused", "server-restarted"])
@pytest.mark.parametrize("cut_after", range(7))
@pytest.mark.parametrize("repeated", [0, 2])
def test_a_lost_connection_is_attached_again_and_text_is_printed_once(
    platform: MemoryPlatform, weft: Weft, cut_after: int, restarts: bool, repeated: int
) -> None:
    script = Script(ANSWER, cut_after=cut_after, restarts=restarts, repeated=repeated)
    platform.turns.scripts["how"] = script
    ran = weft("ask", "bot", "how")
    assert (ran.code, ran.out) == (0, STORED)
    requests = platform.turns.requests
    assert len({request.request_id for request in requests}) == 1
    # Before the acceptance is seen the request itself is repeated, later never.
    assert len(requests) == (2 if cut_after == 0 else 1)


@pytest.mark.parametrize(
    ("events", "out"),
    [
        pytest.param(
            [token("Ev"), token("Events", attempt=1), model_step("Events")],
            "Events\n",
            id="continued",
        ),
        pytest.param(
            [token("Events"), token("Ev", attempt=1), token("ents!", attempt=1, offset=2)],
            "Events!\n",
            id="repeated-and-continued",
        ),
        pytest.param(
            [token("Evil"), token("Good", attempt=1), model_step("Good")],
            "Evil\nGood\n",
            id="contradicted",
        ),
        pytest.param(
            [token("Good"), token("Evil", attempt=1), token("Good", attempt=0), model_step("Evil")],
            "Good\nEvil\n",
            id="late-token-of-an-older-attempt",
        ),
        pytest.param(
            [token("Too long"), token("Too", attempt=1), model_step("Too")],
            "Too long\nToo\n",
            id="shortened",
        ),
        pytest.param([token("nts", offset=3), model_step("Events")], "Events\n", id="gap"),
        pytest.param(
            [model_step("First."), token("Second.", step=2), model_step("Second.", step=2)],
            "First.\nSecond.\n",
            id="two-steps",
        ),
    ],
)
def test_text_that_is_taken_back_is_written_anew_and_other_text_once(
    platform: MemoryPlatform, weft: Weft, events: list[Event], out: str
) -> None:
    final = completed(out.splitlines()[-1])
    platform.turns.scripts["how"] = Script([*events, final])
    ran = weft("ask", "bot", "how")
    assert ran.out == out
    assert ("taken back" in ran.err) == (len(out.splitlines()) > 1 and "First." not in out)


def test_control_characters_of_a_model_never_reach_the_terminal(
    platform: MemoryPlatform, weft: Weft
) -> None:
    platform.turns.scripts["how"] = Script([token("a\x1b[2Jb\x07"), completed("a\x1b[2Jb\x07")])
    ran = weft("ask", "bot", "how")
    assert ran.out == "a[2Jb\n"


def test_a_failed_turn_exits_6_with_its_reason(platform: MemoryPlatform, weft: Weft) -> None:
    error = turn_pb2.TurnError(
        reason=errors_pb2.REASON_MODEL_UNAVAILABLE, message="the model can't be reached"
    )
    platform.turns.scripts["how"] = Script([Event(failed=Event.Failed(error=error))])
    ran = weft("ask", "bot", "how")
    assert ran.code == 6
    assert ran.out == ""
    session, _, said = ran.err.partition("\n")
    assert session.startswith("session bot/")
    assert said == (
        "weft: the turn failed: the model can't be reached\n  reason: MODEL_UNAVAILABLE\n"
    )


def test_a_cancelled_turn_keeps_its_partial_text_and_exits_6(
    platform: MemoryPlatform, weft: Weft
) -> None:
    cancelled = Event.Cancelled(reason="changed my mind", partial_text="Events ar")
    platform.turns.scripts["how"] = Script([token("Events "), Event(cancelled=cancelled)])
    ran = weft("ask", "bot", "how")
    assert (ran.code, ran.out) == (6, "Events ar\n")
    assert "the turn was cancelled: changed my mind" in ran.err


def test_detach_prints_the_turns_name_which_watch_then_follows(
    platform: MemoryPlatform, weft: Weft
) -> None:
    platform.turns.scripts["how"] = Script(ANSWER)
    asked = weft("ask", "bot", "how", "--session", "talk", "--request-id", "r1", "--detach")
    session = "tenants/default/agents/bot/sessions/talk"
    assert asked.out == f"bot/talk/{id_from(session, 'r1')}\n"
    watched = weft("turn", "watch", asked.out.strip())
    assert (watched.code, watched.out) == (0, STORED)


def test_a_repeated_request_id_finds_the_same_turn_in_the_same_session(
    platform: MemoryPlatform, weft: Weft
) -> None:
    platform.turns.scripts["how"] = Script(ANSWER)
    first, again = (
        weft("ask", "bot", "how", "--request-id", "r1", "--detach", "-o", "json").data["turn"]
        for _ in range(2)
    )
    assert first == again


def test_ask_gives_the_turn_the_timeout(platform: MemoryPlatform, weft: Weft) -> None:
    platform.turns.scripts["how"] = Script(ANSWER)
    weft("ask", "bot", "how", "--timeout", "7.5")
    assert platform.turns.requests[0].timeout.ToMilliseconds() == 7500


@pytest.mark.parametrize(
    ("event", "commands"),
    [
        (APPROVAL, ["weft turn approve {turn} call-1", "weft turn approve {turn} call-1 --deny"]),
        (IN_DOUBT, ["weft turn resolve {turn} call-1 --retry"]),
    ],
    ids=["approval", "in-doubt"],
)
def test_a_turn_that_waits_says_the_exact_command_to_type(
    platform: MemoryPlatform, weft: Weft, event: Event, commands: list[str]
) -> None:
    platform.turns.scripts["how"] = Script([event])
    ran = weft("ask", "bot", "how", "--session", "talk", "--request-id", "r1")
    turn = f"bot/talk/{id_from('tenants/default/agents/bot/sessions/talk', 'r1')}"
    assert ran.code == 1
    lines = [line.strip() for line in ran.err.splitlines()]
    for command in [*commands, "Then: weft turn watch {turn}"]:
        assert command.format(turn=turn) in lines


@pytest.mark.parametrize(
    ("event", "arguments", "decided"),
    [
        (APPROVAL, ["approve", "--comment", "fine"], {"approved": True, "comment": "fine"}),
        (APPROVAL, ["approve", "--deny"], {"approved": False}),
        (IN_DOUBT, ["resolve", "--retry"], {"resolution": events_pb2.RESOLUTION_RETRY}),
        (
            IN_DOUBT,
            ["resolve", "--completed", "sent"],
            {"resolution": events_pb2.RESOLUTION_COMPLETED, "content": "sent"},
        ),
        (
            IN_DOUBT,
            ["resolve", "--failed", "lost"],
            {"resolution": events_pb2.RESOLUTION_FAILED, "content": "lost"},
        ),
    ],
)
def test_a_decision_names_the_only_call_that_waits_and_the_turn_goes_on(
    platform: MemoryPlatform,
    weft: Weft,
    event: Event,
    arguments: list[str],
    decided: dict[str, object],
) -> None:
    platform.turns.scripts["how"] = Script([event], after_decision=ANSWER)
    turn = weft("ask", "bot", "how", "--detach").out.strip()
    command, *options = arguments
    assert weft("turn", command, turn, *options).code == 0
    (decision,) = platform.turns.decisions
    assert decision.call_id == "call-1"
    assert {name: getattr(decision, name) for name in decided} == decided
    assert weft("turn", "watch", turn).out == STORED


def test_a_decision_without_a_waiting_call_fails(platform: MemoryPlatform, weft: Weft) -> None:
    platform.turns.scripts["how"] = Script(ANSWER)
    turn = weft("ask", "bot", "how", "--detach").out.strip()
    ran = weft("turn", "approve", turn)
    assert ran.code == 1
    assert "waits for this" in ran.err


def test_resolve_needs_exactly_one_answer(weft: Weft) -> None:
    ran = weft("turn", "resolve", "bot/talk/t1", "--retry", "--failed", "no")
    assert ran.code == 2
    assert "exactly one of" in ran.err


def test_a_cancelled_turn_is_shown_as_such(platform: MemoryPlatform, weft: Weft) -> None:
    platform.turns.scripts["how"] = Script([APPROVAL])
    turn = weft("ask", "bot", "how", "--detach").out.strip()
    assert weft("turn", "cancel", turn, "--reason", "enough").code == 0
    assert weft("turn", "show", turn, "-o", "json").data["status"] == "TURN_STATUS_CANCELLED"
    assert weft("turn", "watch", turn).code == 6


def test_a_stalled_turn_is_listed_and_its_only_call_skipped(
    platform: MemoryPlatform, weft: Weft
) -> None:
    platform.turns.scripts["how"] = Script([token("so ")])
    turn = weft("ask", "bot", "how", "--detach").out.strip()
    assert weft("turn", "stalled", "-o", "json").data == []
    name = platform.turns.stall("tool call send (call-1)", call_of("send"))
    (listed,) = weft("turn", "stalled", "-o", "json").data
    assert (listed["name"], listed["stalled_doing"]) == (name, "tool call send (call-1)")
    shown = weft("turn", "show", turn).out
    assert "since 1970-01-01 00:01:40.000Z, at tool call send (call-1)" in shown
    assert "call-1: send" in shown
    assert weft("turn", "skip-call", turn, "--reason", "it hangs").code == 0
    ran = weft("turn", "skip-call", turn)
    assert (ran.code, "no call of turn" in ran.err) == (1, True)
    assert weft("turn", "fail", turn, "--reason", "it hangs").code == 0
    watched = weft("turn", "watch", turn)
    assert watched.code == 6
    assert "✗ it hangs" in watched.err
    assert "the turn failed: it hangs" in watched.err


def test_of_several_calls_that_run_one_is_named(platform: MemoryPlatform, weft: Weft) -> None:
    platform.turns.scripts["how"] = Script([token("so ")])
    turn = weft("ask", "bot", "how", "--detach").out.strip()
    calls = [models_pb2.ToolCall(id=call_id, tool="send") for call_id in ("one", "two")]
    platform.turns.stall("tool calls", *calls)
    ran = weft("turn", "skip-call", turn)
    assert ran.code == 2
    assert ran.err.splitlines()[1:] == ["  one", "  two"]
    assert weft("turn", "skip-call", turn, "two").code == 0
    assert [call.id for call in platform.turns.running_calls()] == ["one"]


def test_a_stall_is_told_to_who_watches(platform: MemoryPlatform, weft: Weft) -> None:
    stalled = Event.Stalled(doing="model step 1")
    stalled.idle.FromSeconds(121)
    platform.turns.scripts["how"] = Script([Event(stalled=stalled), *ANSWER])
    assert "Stalled: nothing for 121 s, at model step 1." in weft("ask", "bot", "how").err


def test_usage_is_told_after_the_answer(platform: MemoryPlatform, weft: Weft) -> None:
    done = Event.Completed(text="4", usage=models_pb2.Usage(input_tokens=12, output_tokens=3))
    platform.turns.scripts["how"] = Script([Event(completed=done)])
    assert "12 tokens read, 3 written" in weft("ask", "bot", "how").err
