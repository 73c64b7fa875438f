"""`weft turn`: one question to an agent and all that is done to answer it."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import waiting
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.contracts import reason_name
from mesh.cli.failures import CommandFailed, usage_error
from mesh.cli.following import TurnFollower
from mesh.cli.inputs import parse_ahead, parse_span, read_argument
from mesh.cli.names import SESSION, TURN, resource_name, short_name
from mesh.cli.output import Output, moment, one_line, show_data, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.cli.transcript import Transcript, call_line, source_lines, usage_line

if TYPE_CHECKING:
    from weft.agents.v1 import turn_pb2
    from weft.agents.v1.stalled_turn_service_pb2_grpc import StalledTurnServiceStub
    from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub

turns = typer.Typer(help="Submit, show, follow and steer turns.", no_args_is_help=True)

TurnArgument = Annotated[
    str, typer.Argument(metavar="TURN", help="The turn: AGENT/SESSION/TURN or a full name.")
]
CallArgument = Annotated[
    str | None,
    typer.Argument(metavar="CALL", help="Id of the call; needed where more than one waits."),
]


@command(turns, "submit", example='weft turn submit librarian/talk "What changed today?" --watch')
def submit_turn(
    client: Client,
    session: Annotated[
        str, typer.Argument(metavar="SESSION", help="The session: AGENT/SESSION or a full name.")
    ],
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="The question; @FILE or - read it.")
    ],
    priority: Annotated[
        int | None, typer.Option(help="9 is the most urgent; 5 otherwise.", min=0, max=9)
    ] = None,
    not_before: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Not before this time (RFC 3339), or in 90s, 1h30m."),
    ] = None,
    start_deadline: Annotated[
        str | None, typer.Option(metavar="TIME", help="It fails where it hasn't begun by then.")
    ] = None,
    turn_timeout: Annotated[
        str | None, typer.Option(metavar="SPAN", help="How long the turn may run: 90s, 1h.")
    ] = None,
    request_id: Annotated[
        str, typer.Option(help="Names this request: the same id finds the same turn again.")
    ] = "",
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow it until it ends, as `weft turn watch` does.")
    ] = False,
) -> None:
    """Has a turn run in the background, once there is a slot for it; prints its name.

    It is kept once this returns, and waits in the queue `turns` until it begins:
    `weft queue show turns` tells how many wait. A repeated --request-id must come with the
    same question and options, so write times in full.
    """
    from weft.agents.v1 import turn_service_pb2 as pb

    request = pb.SubmitTurnRequest(
        session=resource_name(session, SESSION, client),
        input=read_argument(question),
        priority=priority,
        request_id=request_id,
    )
    if not_before is not None:
        request.not_before.FromDatetime(parse_ahead(not_before, "--not-before"))
    if start_deadline is not None:
        request.start_deadline.FromDatetime(parse_ahead(start_deadline, "--start-deadline"))
    if turn_timeout is not None:
        request.timeout.CopyFrom(parse_span(turn_timeout, "--turn-timeout"))
    submitted = client.call(_stub(client).SubmitTurn, request)
    if watch:
        _watch(client, submitted.turn)
    elif client.output is Output.TABLE:
        sys.stdout.write(f"{short_name(submitted.turn)}\n")
    else:
        show_data(client.output, {"turn": submitted.turn, "task": submitted.task})


@command(turns, "show", example="weft turn show librarian/talk/01j9x -o json")
def show_turn(client: Client, turn: TurnArgument) -> None:
    """Shows where a turn stands, its answer, and the calls that wait for a person."""
    _show(client, _get(client, resource_name(turn, TURN, client)))


@command(turns, "watch", example="weft turn watch librarian/talk/01j9x")
def watch_turn(client: Client, turn: TurnArgument) -> None:
    """Follows a turn from its beginning until it ends.

    A lost connection is attached again where it was. Exits 6 when the turn failed or was
    cancelled. While the turn waits for a person, this waits too, and says what to type.
    """
    name = resource_name(turn, TURN, client)
    _get(client, name)
    _watch(client, name)


@command(turns, "stalled", example="weft turn stalled")
def list_stalled_turns(client: Client, limit: Limit = LIMIT) -> None:
    """Lists the turns that have stalled: they run, and nothing happens to them any more.

    `weft turn show` shows one with the calls that run, `weft turn skip-call` skips such a
    call, `weft turn fail` fails the turn.
    """
    from weft.agents.v1 import stalled_turn_service_pb2 as pb

    columns = {
        "turn": lambda t: short_name(t.name),
        "steps": lambda t: t.step_count,
        "stalled": lambda t: moment(t.stalled_time),
        "at": lambda t: one_line(t.stalled_doing),
    }
    request = pb.ListStalledTurnsRequest(parent=client.parent)
    method = _stalled_stub(client).ListStalledTurns
    found = fetch(client, method, request, lambda page: page.turns, limit)
    show_list(client.output, found, columns)


@command(turns, "skip-call", example='weft turn skip-call librarian/talk/01j9x --reason "it hangs"')
def skip_call(
    client: Client,
    turn: TurnArgument,
    call: Annotated[
        str | None,
        typer.Argument(metavar="CALL", help="Id of the call; needed where more than one runs."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the model and the record.")] = "",
) -> None:
    """Skips a tool call that runs: the model is told so, and the turn goes on.

    What the tool may have done by then isn't undone.
    """
    from weft.agents.v1 import stalled_turn_service_pb2 as pb

    name = resource_name(turn, TURN, client)
    request = pb.SkipCallRequest(
        name=name, call_id=call or _only_running_call(client, name), reason=reason
    )
    _show(client, client.call(_stalled_stub(client).SkipCall, request).turn)


@command(turns, "fail", example='weft turn fail librarian/talk/01j9x --reason "it hangs"')
def fail_turn(
    client: Client,
    turn: TurnArgument,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
) -> None:
    """Fails a turn at once, whoever runs it; what waits behind it begins.

    `weft turn cancel` waits for whoever runs it.
    """
    from weft.agents.v1 import stalled_turn_service_pb2 as pb

    request = pb.FailTurnRequest(name=resource_name(turn, TURN, client), reason=reason)
    _show(client, client.call(_stalled_stub(client).FailTurn, request).turn)


@command(turns, "cancel", example='weft turn cancel librarian/talk/01j9x --reason "wrong question"')
def cancel_turn(
    client: Client,
    turn: TurnArgument,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
) -> None:
    """Cancels a turn; what it had written is kept. A turn that ended stays as it is."""
    from weft.agents.v1 import turn_service_pb2 as pb

    name = resource_name(turn, TURN, client)
    request = pb.CancelTurnRequest(name=name, reason=reason)
    _show(client, client.call(_stub(client).CancelTurn, request).turn)


@command(turns, "approve", example="weft turn approve librarian/talk/01j9x --deny --comment no")
def approve_call(
    client: Client,
    turn: TurnArgument,
    call: CallArgument = None,
    deny: Annotated[bool, typer.Option("--deny", help="Deny it; the model is told so.")] = False,
    comment: Annotated[str, typer.Option(help="Why, for the model and the record.")] = "",
) -> None:
    """Approves a tool call that waits for it, or denies it."""
    from weft.agents.v1 import turn_service_pb2 as pb
    from weft.state.v1 import session_pb2

    name = resource_name(turn, TURN, client)
    request = pb.DecideApprovalRequest(
        name=name,
        call_id=call or _only_call(client, name, session_pb2.CALL_STATUS_WAITING_APPROVAL),
        approved=not deny,
        comment=comment,
    )
    _show(client, client.call(_stub(client).DecideApproval, request).turn)


@command(turns, "resolve", example='weft turn resolve librarian/talk/01j9x --completed "sent"')
def resolve_call(
    client: Client,
    turn: TurnArgument,
    call: CallArgument = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="It didn't happen: make the call.")
    ] = False,
    completed: Annotated[
        str | None, typer.Option(metavar="TEXT", help="It happened, with this result.")
    ] = None,
    failed: Annotated[
        str | None, typer.Option(metavar="TEXT", help="It didn't happen, and shall not: why.")
    ] = None,
) -> None:
    """Says what became of an irreversible tool call whose end is unknown.

    Exactly one of --retry, --completed and --failed is needed.
    """
    from weft.agents.v1 import turn_service_pb2 as pb
    from weft.state.v1 import events_pb2, session_pb2

    if [retry, completed is not None, failed is not None].count(True) != 1:
        raise usage_error("give exactly one of --retry, --completed and --failed")
    resolution = events_pb2.RESOLUTION_RETRY
    if completed is not None:
        resolution = events_pb2.RESOLUTION_COMPLETED
    elif failed is not None:
        resolution = events_pb2.RESOLUTION_FAILED
    name = resource_name(turn, TURN, client)
    request = pb.ResolveInDoubtRequest(
        name=name,
        call_id=call or _only_call(client, name, session_pb2.CALL_STATUS_IN_DOUBT),
        resolution=resolution,
        content=completed or failed or "",
    )
    _show(client, client.call(_stub(client).ResolveInDoubt, request).turn)


def _stub(client: Client) -> "TurnServiceStub":
    from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub

    stub: TurnServiceStub = client.stub(TurnServiceStub)
    return stub


def _stalled_stub(client: Client) -> "StalledTurnServiceStub":
    from weft.agents.v1.stalled_turn_service_pb2_grpc import StalledTurnServiceStub

    stub: StalledTurnServiceStub = client.stub(StalledTurnServiceStub)
    return stub


def _watch(client: Client, name: str) -> None:
    transcript = Transcript(client.output)
    for event in TurnFollower(client, turn=name).events():
        transcript.show(event)
        if event.WhichOneof("event") in waiting.EVENTS:
            waiting.say_what_to_type(client, name, event)


def _get(client: Client, name: str) -> "turn_pb2.Turn":
    from weft.agents.v1 import turn_service_pb2 as pb

    return client.call(_stub(client).GetTurn, pb.GetTurnRequest(name=name)).turn


def _only_call(client: Client, turn: str, status: int) -> str:
    """Id of the one call that waits in that way; CommandFailed where it isn't one."""
    calls = [c.call.id for c in waiting.waiting_calls(client, turn) if c.status == status]
    if len(calls) == 1:
        return calls[0]
    if not calls:
        raise CommandFailed(f"no call of turn {short_name(turn)} waits for this")
    raise usage_error("more than one call waits; name one of them", *calls)


def _only_running_call(client: Client, turn: str) -> str:
    calls = [state.call.id for state in _get(client, turn).running_calls]
    if len(calls) == 1:
        return calls[0]
    if not calls:
        raise CommandFailed(f"no call of turn {short_name(turn)} runs")
    raise usage_error("more than one call runs; name one of them", *calls)


def _stall(turn: "turn_pb2.Turn") -> str:
    if not turn.HasField("stalled_time"):
        return ""
    return f"since {moment(turn.stalled_time)}, at {turn.stalled_doing}"


def _show(client: Client, turn: "turn_pb2.Turn") -> None:
    from weft.state.v1 import session_pb2

    fields = {
        "turn": short_name(turn.name),
        "status": session_pb2.TurnStatus.Name(turn.status).removeprefix("TURN_STATUS_"),
        "input": turn.input,
        "answer": turn.text,
        "sources": "\n".join(source_lines(turn.sources)),
        "error": turn.error.message and f"{turn.error.message} ({reason_name(turn.error.reason)})",
        "stalled": _stall(turn),
        "running": "\n".join(
            f"{state.call.id}: {call_line(state.call)}" for state in turn.running_calls
        ),
        "waiting": "\n".join(
            line
            for state in turn.waiting_calls
            for line in waiting.command_lines(short_name(turn.name), state)
        ),
        "steps": turn.step_count,
        "resumed": turn.resume_count or "",
        "used": usage_line(turn.usage),
        "created": moment(turn.create_time),
        "ended": moment(turn.end_time),
    }
    show_message(client.output, turn, fields)
