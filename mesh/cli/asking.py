"""`weft ask`: a question to an agent, and its answer as it is written."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import waiting
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import usage_error
from mesh.cli.following import TurnFollower
from mesh.cli.inputs import read_argument
from mesh.cli.names import AGENT, SESSION, resource_name, short_name
from mesh.cli.output import Output, note, show_data
from mesh.cli.transcript import Transcript

if TYPE_CHECKING:
    from weft.agents.v1 import turn_service_pb2

DISCONNECT_GRACE_SECONDS = 10
"""How much longer than the turn's own timeout its end is awaited."""


def add_ask(application: typer.Typer) -> None:
    """Adds `weft ask`."""
    command(
        application, "ask", example='weft ask librarian "How are events stored?" --session talk'
    )(ask)


def ask(
    client: Client,
    agent: Annotated[str, typer.Argument(help="The agent: an id or a full name.")],
    question: Annotated[str, typer.Argument(help="The question; @FILE or - read it.")],
    session: Annotated[
        str | None, typer.Option(help="Session to go on with: an id, AGENT/SESSION or a full name.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Names this request: the same id finds the same turn again.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave once the turn is accepted; print its name.")
    ] = False,
) -> None:
    """Asks an agent and streams its answer.

    Makes a session, unless one is named. The answer and its sources go to stdout, tool
    calls and notes to stderr. A lost connection is attached again; the turn itself never
    depends on it. --timeout bounds the turn. Exits 6 when the turn failed or was
    cancelled, and 1 when it waits for a person and there is no terminal to ask on.
    """
    from mesh.ids import new_id

    request = _request(
        client,
        session=_session(client, agent, session, request_id),
        question=read_argument(question),
        request_id=request_id or new_id(),
    )
    follower = TurnFollower(client, run=request)
    try:
        if detach:
            _detach(client, follower)
        else:
            _follow(client, follower, request.session)
    except KeyboardInterrupt:
        _say_how_to_go_on(follower.turn)
        raise


def _session(client: Client, agent: str, session: str | None, request_id: str | None) -> str:
    """The session's full name; a new session's where none is named."""
    from mesh.ids import id_from
    from weft.state.v1 import session_service_pb2 as pb
    from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

    agent_name = resource_name(agent, AGENT, client)
    sessions: SessionServiceStub = client.stub(SessionServiceStub)
    if session is None:
        # Of a repeated request the session must be the first one's, or its turn isn't found.
        session_request = id_from("session", request_id) if request_id else ""
        create = pb.CreateSessionRequest(parent=agent_name, request_id=session_request)
        return client.call(sessions.CreateSession, create).session.name
    if "/" not in session:
        return f"{agent_name}/sessions/{session}"
    name = resource_name(session, SESSION, client)
    if not name.startswith(f"{agent_name}/"):
        raise usage_error(f"session {short_name(name)} isn't one of agent {short_name(agent_name)}")
    return name


def _request(
    client: Client, *, session: str, question: str, request_id: str
) -> "turn_service_pb2.RunTurnRequest":
    from google.protobuf.duration_pb2 import Duration

    from weft.agents.v1 import turn_service_pb2

    request = turn_service_pb2.RunTurnRequest(
        session=session, input=question, request_id=request_id
    )
    if client.timeout_seconds is not None:
        timeout = Duration()
        timeout.FromMilliseconds(round(client.timeout_seconds * 1000))
        request.timeout.CopyFrom(timeout)
        client.extend(DISCONNECT_GRACE_SECONDS)
    return request


def _detach(client: Client, follower: TurnFollower) -> None:
    for _ in follower.events():
        if follower.turn:
            break
    if client.output is Output.TABLE:
        sys.stdout.write(f"{short_name(follower.turn)}\n")
    else:
        show_data(client.output, {"turn": follower.turn})


def _follow(client: Client, follower: TurnFollower, session: str) -> None:
    transcript = Transcript(client.output)
    try:
        for event in follower.events():
            transcript.show(event)
            if event.WhichOneof("event") in waiting.EVENTS:
                waiting.settle(client, follower.turn, event)
    finally:
        # Also of a turn that failed: its events say why.
        note(f"session {short_name(session)}")


def _say_how_to_go_on(turn: str) -> None:
    if turn:
        short = short_name(turn)
        note(f"The turn goes on. `weft turn watch {short}` shows it,")
        note(f"`weft turn cancel {short}` ends it.")
