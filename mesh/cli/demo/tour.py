"""The steps of the demo, each with what it has to prove."""

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.collections import ingest_folders
from mesh.cli.connection import Client
from mesh.cli.demo.notebook import METHOD, Notebook
from mesh.cli.demo.server import Server
from mesh.cli.failures import CommandFailed
from mesh.cli.following import TurnFollower
from mesh.cli.output import Output
from mesh.cli.transcript import Transcript

if TYPE_CHECKING:
    from weft.agents.v1 import turn_pb2
    from weft.state.v1 import state_service_pb2

PARENT = "tenants/default"
AGENT = f"{PARENT}/agents/guide"
DEFAULT_ASK = "After how many seconds does a lease expire, and how many seconds are 24 * 3600?"
NOTE_ASK = "Add a note with the text 'Weft was here'."
INSTRUCTIONS = (
    "You answer questions over a folder of documents. Search them before you answer, quote "
    "what you found and name the source. Use the calculator for every calculation. When you "
    "are asked for a note, add it with the tool for notes."
)
DEFAULT_DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
CALL_SECONDS_MAX = 60.0


def add_demo(application: typer.Typer) -> None:
    """Adds `weft demo`."""
    application.command("demo")(demo)


def demo(
    docs: Annotated[
        Path | None,
        typer.Option(help="Folder of documents; the documents of the working folder if not said."),
    ] = None,
    ask: Annotated[str, typer.Option(help="Question to ask.")] = DEFAULT_ASK,
) -> None:
    """Shows the platform at work in a temporary folder, and checks what it shows.

    Ingests documents, asks a question, kills the serving process with kill -9 in the
    middle of a second turn, watches the turn go on, rebuilds, forks and verifies the
    session. Exits 0 only if all of that held.

    Example: weft demo --docs ./manuals --ask "How long is the warranty, and what is 12 * 3?"
    """
    with tempfile.TemporaryDirectory(prefix="weft-demo-") as folder:
        server, notebook = Server(Path(folder) / "data"), Notebook()
        tour = _Tour(server, notebook, docs, ask)
        try:
            tour.run()
        finally:
            server.stop()
            notebook.stop()
        failed = tour.summary()
    if failed:
        raise CommandFailed(f"{len(failed)} of the demo's checks failed", notes=failed)


class _Tour:
    def __init__(self, server: Server, notebook: Notebook, docs: Path | None, ask: str) -> None:
        self._server = server
        self._notebook = notebook
        self._docs = docs
        self._ask = ask
        self._checks: list[tuple[bool, str]] = []
        self._began = time.monotonic()

    def run(self) -> None:
        """Takes every step."""
        self._step(
            "Start: gRPC services, an embedded nats-server, no account; its keys are its own"
        )
        self._server.start()
        _say(f"serving on {self._server.address}, process {self._server.pid}")
        with self._client() as client:
            self._step("Ingest documents")
            ingest_folders(client, "docs", self._places())
            self._make_agent(client)
            session = self._new_session(client)
            self._step(f"Ask: {self._ask}")
            self._question(client, session)
            self._step(f"Ask, and kill -9 the process in the middle: {NOTE_ASK}")
            self._killed_turn(client, session)
            self._step("Rebuild the session from its log, fork it, verify it")
            self._rebuild(client, session)

    def summary(self) -> list[str]:
        """Says what held, once all was stopped; returns the checks that failed."""
        self._step("Summary")
        self._check(not self._server.listens(), "everything that was started has ended")
        failed = [what for holds, what in self._checks if not holds]
        seconds = time.monotonic() - self._began
        held = len(self._checks) - len(failed)
        _say(f"{held} of {len(self._checks)} checks held, in {seconds:.0f} s")
        return failed

    def _client(self) -> Client:
        return Client(lambda: self._server.access(PARENT), Output.TABLE, None)

    def _places(self) -> list[Path]:
        if self._docs is not None:
            return [self._docs]
        found = [Path(name) for name in DEFAULT_DOCUMENTS if Path(name).is_file()]
        if not found:
            raise CommandFailed(
                "there are no documents here", notes=["--docs names a folder of Markdown or text."]
            )
        return found

    def _make_agent(self, client: Client) -> None:
        from weft.agents.v1 import agent_pb2, agent_service_pb2
        from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
        from weft.options.v1 import options_pb2
        from weft.tools.v1 import tool_service_pb2, tools_pb2
        from weft.tools.v1.tool_service_pb2_grpc import ToolServiceStub

        tool = tool_service_pb2.RegisterToolRequest(
            parent=PARENT,
            tool_id="add-note",
            grpc=tools_pb2.GrpcTool(address=self._notebook.start(), method=METHOD),
            effect=options_pb2.EFFECT_IDEMPOTENT,
            description="Adds a note with a text to the notebook.",
        )
        client.call(client.stub(ToolServiceStub).RegisterTool, tool)
        spec = agent_pb2.AgentSpec(
            instructions=INSTRUCTIONS,
            tools=[
                agent_pb2.ToolBinding(tool="calculator"),
                agent_pb2.ToolBinding(tool="search", fixed_arguments_json='{"collection": "docs"}'),
                agent_pb2.ToolBinding(tool="add-note"),
            ],
        )
        request = agent_service_pb2.CreateAgentRequest(
            parent=PARENT, agent_id=AGENT.rsplit("/", 1)[1], spec=spec
        )
        client.call(client.stub(AgentServiceStub).CreateAgent, request)

    def _new_session(self, client: Client) -> str:
        from weft.state.v1 import session_service_pb2
        from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

        request = session_service_pb2.CreateSessionRequest(parent=AGENT)
        return client.call(client.stub(SessionServiceStub).CreateSession, request).session.name

    def _question(self, client: Client, session: str) -> None:
        events = self._turn(client, session, self._ask)
        tools = [e.tool_call.call.tool for e in events if e.HasField("tool_call")]
        completed = [e.completed for e in events if e.HasField("completed")]
        self._check(bool(completed), "the turn was answered")
        if self._docs is None and self._ask == DEFAULT_ASK:
            self._check({"search", "calculator"} <= set(tools), "it searched and calculated")
        self._check(bool(completed) and bool(completed[0].sources), "the answer has sources")

    def _killed_turn(self, client: Client, session: str) -> None:
        killer = threading.Thread(target=self._kill_in_call, daemon=True)
        killer.start()
        events = self._turn(client, session, NOTE_ASK)
        # A turn that ended without a call leaves nobody to kill.
        self._notebook.called.set()
        killer.join(CALL_SECONDS_MAX)
        resumed = [e for e in events if e.HasField("resumed")]
        self._check(bool(resumed), "the turn was resumed after kill -9")
        self._check(events[-1].HasField("completed"), "and answered")
        steps = [e.model_step.step for e in events if e.HasField("model_step")]
        self._check(len(steps) == len(set(steps)), "no finished step was run again")
        keys, calls = self._notebook.notes, self._notebook.calls
        self._check(
            list(keys.values()) == [1] and sum(calls.values()) >= 2,
            f"the tool was called {sum(calls.values())} times with one key: one effect",
        )

    def _kill_in_call(self) -> None:
        """Runs beside the turn: waits until the tool is being called, and kills."""
        if not self._notebook.called.wait(CALL_SECONDS_MAX) or not self._notebook.calls:
            self._notebook.released.set()
            return
        pid = self._server.pid
        self._server.kill()
        _say(f"killed process {pid} with SIGKILL while the tool was being called")
        self._notebook.released.set()
        self._server.start()
        _say(f"started process {self._server.pid} on the same folder")

    def _turn(self, client: Client, session: str, question: str) -> "list[turn_pb2.TurnEvent]":
        from mesh.ids import new_id
        from weft.agents.v1 import turn_service_pb2

        request = turn_service_pb2.RunTurnRequest(
            session=session, input=question, request_id=new_id()
        )
        transcript, events = Transcript(Output.TABLE), []
        for event in TurnFollower(client, run=request).events():
            events.append(event)
            transcript.show(event)
        return events

    def _rebuild(self, client: Client, session: str) -> None:
        from weft.state.v1 import session_service_pb2, state_service_pb2
        from weft.state.v1.session_service_pb2_grpc import SessionServiceStub
        from weft.state.v1.state_service_pb2_grpc import StateServiceStub

        state = client.stub(StateServiceStub)

        def state_at(name: str, revision: int) -> "state_service_pb2.GetStateResponse":
            request = state_service_pb2.GetStateRequest(name=name)
            if revision:
                request.revision = revision
            return client.call(state.GetState, request)

        now = state_at(session, 0)
        middle = state_at(session, now.state.revision // 2)
        for rebuilt in (middle, now):
            _say(
                f"revision {rebuilt.state.revision:>3}: "
                f"{len(rebuilt.state.context.messages)} messages, "
                f"hash {rebuilt.state_hash.hex()[:16]}"
            )
        self._check(middle.state_hash != now.state_hash, "two revisions, two states")
        fork_request = session_service_pb2.ForkSessionRequest(
            name=session, revision=middle.state.revision
        )
        fork = client.call(client.stub(SessionServiceStub).ForkSession, fork_request).session
        forked = state_at(fork.name, 0).state
        said = len(middle.state.context.messages)
        self._check(
            list(forked.context.messages[:said]) == list(middle.state.context.messages),
            f"a fork at revision {middle.state.revision} holds what was said until then",
        )
        verified = client.call(
            state.VerifyReplay, state_service_pb2.VerifyReplayRequest(name=session)
        )
        self._check(
            verified.matches and verified.replayed_hash == now.state_hash,
            f"{verified.event_count} events fold to the same hash, their chain holds",
        )

    def _step(self, title: str) -> None:
        sys.stdout.write(f"\n== {title}\n")
        sys.stdout.flush()

    def _check(self, holds: bool, what: str) -> None:
        self._checks.append((holds, what))
        _say(f"{'ok  ' if holds else 'FAIL'} {what}")


def _say(line: str) -> None:
    sys.stdout.write(f"   {line}\n")
    sys.stdout.flush()
