"""`weft session`: conversations, as the log of their events says."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed, usage_error
from mesh.cli.inputs import parse_time
from mesh.cli.names import AGENT, SESSION, check_id, resource_name, short_name
from mesh.cli.output import moment, one_line, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.cli.summaries import summary, type_name
from mesh.cli.transcript import usage_line

if TYPE_CHECKING:
    from weft.models.v1 import models_pb2
    from weft.state.v1 import session_pb2, state_service_pb2
    from weft.state.v1.session_service_pb2_grpc import SessionServiceStub
    from weft.state.v1.state_service_pb2_grpc import StateServiceStub

sessions = typer.Typer(
    help="Make, list, rebuild, fork, verify, move and erase sessions.", no_args_is_help=True
)

VERIFY_SECONDS = 600.0
"""Deadline of folding a whole session again."""

SessionArgument = Annotated[
    str, typer.Argument(metavar="SESSION", help="The session: AGENT/SESSION or a full name.")
]


class Policy(StrEnum):
    """What becomes of a turn that is submitted while another one runs."""

    REJECT = "reject"
    ENQUEUE = "enqueue"
    INTERRUPT = "interrupt"


@command(sessions, "list", example="weft session list librarian --limit 20")
def list_sessions(
    client: Client,
    agent: Annotated[str, typer.Argument(help="The agent; all agents where none is named.")] = "-",
    limit: Limit = LIMIT,
) -> None:
    """Lists sessions, newest first."""
    from weft.state.v1 import session_service_pb2 as pb

    parent = f"{client.parent}/agents/-" if agent == "-" else resource_name(agent, AGENT, client)
    request = pb.ListSessionsRequest(parent=parent)
    found = fetch(
        client, _sessions(client).ListSessions, request, lambda page: page.sessions, limit
    )
    columns = {
        "session": lambda s: short_name(s.name),
        "agent revision": lambda s: s.agent_revision,
        "revision": lambda s: s.revision,
        "turns": lambda s: s.turn_count,
        "active turn": lambda s: s.active_turn,
        "updated": lambda s: moment(s.update_time),
    }
    show_list(client.output, found, columns)


@command(sessions, "create", example="weft session create librarian --id talk --policy enqueue")
def create_session(
    client: Client,
    agent: Annotated[str, typer.Argument(help="The agent: an id or a full name.")],
    session_id: Annotated[
        str, typer.Option("--id", help="The session's id; made by the server otherwise.")
    ] = "",
    agent_revision: Annotated[
        int, typer.Option(help="Revision of the agent to pin; 0 is its latest.", min=0)
    ] = 0,
    policy: Annotated[
        Policy, typer.Option(help="What becomes of a turn while another one runs.")
    ] = Policy.REJECT,
) -> None:
    """Makes a session of an agent, pinned to a revision of it."""
    from weft.state.v1 import session_pb2
    from weft.state.v1 import session_service_pb2 as pb

    request = pb.CreateSessionRequest(
        parent=resource_name(agent, AGENT, client),
        session_id=check_id(session_id, "--id") if session_id else "",
        agent_revision=agent_revision,
        submit_policy=session_pb2.SubmitPolicy.Value(f"SUBMIT_POLICY_{policy.name}"),
    )
    show_session_message(client, client.call(_sessions(client).CreateSession, request).session)


@command(sessions, "show", example="weft session show librarian/talk")
def show_session(client: Client, session: SessionArgument) -> None:
    """Shows a session: its revision, policy, turns and origin."""
    from weft.state.v1 import session_service_pb2 as pb

    request = pb.GetSessionRequest(name=resource_name(session, SESSION, client))
    show_session_message(client, client.call(_sessions(client).GetSession, request).session)


@command(sessions, "history", example="weft session history librarian/talk --after-revision 40")
def show_history(
    client: Client,
    session: SessionArgument,
    after_revision: Annotated[
        int, typer.Option(help="Only events after this revision.", min=0)
    ] = 0,
    limit: Limit = LIMIT,
) -> None:
    """Lists the events of a session, oldest first: revision, time, type, summary."""
    from weft.state.v1 import state_service_pb2 as pb

    request = pb.ListEventsRequest(
        parent=resource_name(session, SESSION, client), after_revision=after_revision
    )
    events = fetch(client, _state(client).ListEvents, request, lambda page: page.events, limit)
    columns = {
        "revision": lambda e: e.revision,
        "time": lambda e: moment(e.time),
        "type": type_name,
        "summary": summary,
    }
    show_list(client.output, events, columns)


@command(sessions, "state", example="weft session state librarian/talk --revision 7")
def show_state(
    client: Client,
    session: SessionArgument,
    revision: Annotated[int | None, typer.Option(help="As of this revision.", min=1)] = None,
    time: Annotated[
        str | None, typer.Option(help="As of this time, as RFC 3339: 2026-01-31T12:00:00Z.")
    ] = None,
) -> None:
    """Rebuilds a session's state from its log: now, at a revision or at a time."""
    from google.protobuf.timestamp_pb2 import Timestamp

    from weft.state.v1 import state_service_pb2 as pb

    if revision is not None and time is not None:
        raise usage_error("give --revision or --time, not both")
    request = pb.GetStateRequest(name=resource_name(session, SESSION, client))
    if revision is not None:
        request.revision = revision
    if time is not None:
        at = Timestamp()
        at.FromDatetime(parse_time(time))
        request.time.CopyFrom(at)
    _show_state(client, client.call(_state(client).GetState, request))


@command(sessions, "fork", example="weft session fork librarian/talk --revision 7 --id other")
def fork_session(
    client: Client,
    session: SessionArgument,
    revision: Annotated[
        int, typer.Option(help="Last revision that the fork holds; 0 is the latest.", min=0)
    ] = 0,
    session_id: Annotated[
        str, typer.Option("--id", help="The fork's id; made by the server otherwise.")
    ] = "",
) -> None:
    """Makes a session that holds another one's events up to a revision."""
    from weft.state.v1 import session_service_pb2 as pb

    request = pb.ForkSessionRequest(
        name=resource_name(session, SESSION, client),
        revision=revision,
        session_id=check_id(session_id, "--id") if session_id else "",
    )
    show_session_message(client, client.call(_sessions(client).ForkSession, request).session)


@command(sessions, "verify", example="weft session verify librarian/talk -o json")
def verify_session(client: Client, session: SessionArgument) -> None:
    """Folds a session again from its first event and compares hashes.

    Exits 1 where something differs.
    """
    from weft.state.v1 import state_service_pb2 as pb

    request = pb.VerifyReplayRequest(name=resource_name(session, SESSION, client))
    answer = client.call(_state(client).VerifyReplay, request, VERIFY_SECONDS)
    fields = {
        "matches": "yes" if answer.matches else "no",
        "revision": answer.revision,
        "events": answer.event_count,
        "replayed": answer.replayed_hash.hex(),
        "live": answer.live_hash.hex(),
        "snapshot": answer.snapshot_hash.hex(),
        "snapshot revision": answer.snapshot_revision or "",
    }
    show_message(client.output, answer, fields)
    if not answer.matches:
        raise CommandFailed(answer.problem or "the session doesn't verify")


def _sessions(client: Client) -> "SessionServiceStub":
    from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

    stub: SessionServiceStub = client.stub(SessionServiceStub)
    return stub


def _state(client: Client) -> "StateServiceStub":
    from weft.state.v1.state_service_pb2_grpc import StateServiceStub

    stub: StateServiceStub = client.stub(StateServiceStub)
    return stub


def _origin(origin: "session_pb2.ForkOrigin") -> str:
    return f"{short_name(origin.session)} at {origin.revision}" if origin.session else ""


def _policy(policy: "session_pb2.SubmitPolicy.ValueType") -> str:
    from weft.state.v1 import session_pb2

    return session_pb2.SubmitPolicy.Name(policy).removeprefix("SUBMIT_POLICY_").lower()


def show_session_message(client: Client, session: "session_pb2.Session") -> None:
    """Prints a session."""
    fields = {
        "session": short_name(session.name),
        "agent revision": session.agent_revision,
        "revision": session.revision,
        "policy": _policy(session.submit_policy),
        "turns": session.turn_count,
        "active turn": session.active_turn,
        "forked from": _origin(session.forked_from),
        "created": moment(session.create_time),
        "updated": moment(session.update_time),
    }
    show_message(client.output, session, fields)


def _show_state(client: Client, answer: "state_service_pb2.GetStateResponse") -> None:
    from weft.models.v1 import models_pb2
    from weft.state.v1 import session_pb2

    state = answer.state
    status = session_pb2.TurnStatus.Name(state.active_turn.status).removeprefix("TURN_STATUS_")
    said = [
        f"{models_pb2.Role.Name(m.role).removeprefix('ROLE_').lower()}: {_said(m)}"
        for m in state.context.messages
    ]
    fields = {
        "session": short_name(state.name),
        "agent revision": state.agent_revision,
        "revision": state.revision,
        "hash": answer.state_hash.hex(),
        "forked from": _origin(state.forked_from),
        "turns": state.turn_count,
        "active turn": f"{state.active_turn.id} {status}" if state.active_turn.id else "",
        "queued turns": " ".join(turn.id for turn in state.queued_turns),
        "used": usage_line(state.usage),
        "updated": moment(state.update_time),
        "summary": one_line(state.summary),
        "context": "\n".join(said),
    }
    show_message(client.output, answer, fields)


def _said(message: "models_pb2.Message") -> str:
    calls = ", ".join(call.tool for call in message.tool_calls)
    return one_line(message.text) + (f" [calls {calls}]" if calls else "")
