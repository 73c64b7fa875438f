"""The command `weft`: all client commands, and how it starts and ends."""

import copy
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mesh.cli.agents import agents
from mesh.cli.asking import add_ask
from mesh.cli.audit import add_audit
from mesh.cli.batches import batches
from mesh.cli.blobs import blobs
from mesh.cli.budgets import add_usage, budgets
from mesh.cli.calling import add_call
from mesh.cli.collections import collections
from mesh.cli.command import silence_stdout, with_shared_options
from mesh.cli.contexts import contexts
from mesh.cli.dead_letters import dead_letters
from mesh.cli.doctor import add_doctor
from mesh.cli.events import events
from mesh.cli.failures import CommandFailed, ExitCode
from mesh.cli.functions import functions
from mesh.cli.identity import add_identity
from mesh.cli.keys import keys
from mesh.cli.mcp_servers import tools
from mesh.cli.model_batches import models
from mesh.cli.output import printable
from mesh.cli.queues import queues
from mesh.cli.roles import roles
from mesh.cli.schedules import schedules
from mesh.cli.session_transfer import sessions
from mesh.cli.tasks import tasks
from mesh.cli.tenants import tenants
from mesh.cli.traffic import instances
from mesh.cli.turns import turns
from mesh.cli.verifying import add_verify
from mesh.cli.workers import workers


class _GroupsWhenAsked(TyperGroup):
    """The application, whose groups are built when they are asked for: all of them take longer
    than most commands, and a command line names one."""

    later: dict[str, typer.Typer]

    # Typer doesn't export the types of its own copy of click.
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.later:
            alone = typer.Typer(add_completion=False)
            alone.add_typer(self.later.pop(cmd_name), name=cmd_name)
            self.add_command(typer.main.get_group(alone).commands[cmd_name])
        return super().get_command(ctx, cmd_name)


def application() -> typer.Typer:
    """All client commands. Commands that serve are added by who runs the services."""
    app = typer.Typer(
        name="weft",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="The key comes from WEFT_API_KEY, the context, or what `weft up` left for its "
        "server; it is no option, since everybody on the machine sees those. "
        "Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 not allowed, "
        "5 unavailable, 6 turn, task or item failed, 124 out of time, 130 interrupted.",
    )
    app.callback()(with_shared_options(_weft))
    add_ask(app)
    app.add_typer(agents, name="agent")
    app.add_typer(sessions, name="session")
    app.add_typer(turns, name="turn")
    app.add_typer(tools, name="tool")
    app.add_typer(tasks, name="task")
    app.add_typer(batches, name="batch")
    app.add_typer(queues, name="queue")
    app.add_typer(dead_letters, name="deadletter")
    app.add_typer(schedules, name="schedule")
    app.add_typer(workers, name="worker")
    app.add_typer(collections, name="collection")
    app.add_typer(blobs, name="blob")
    app.add_typer(functions, name="fn")
    app.add_typer(models, name="model")
    app.add_typer(budgets, name="budget")
    app.add_typer(events, name="events")
    app.add_typer(keys, name="key")
    app.add_typer(roles, name="role")
    app.add_typer(tenants, name="tenant")
    app.add_typer(instances, name="mesh")
    app.add_typer(contexts, name="context")
    add_usage(app)
    add_identity(app)
    add_audit(app)
    add_verify(app)
    add_call(app)
    add_doctor(app)
    return app


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line (`sys.argv` where no arguments are given) and exits.

    Every error ends as a sentence on stderr and an exit code; the traceback of an
    unexpected one is shown with WEFT_DEBUG=1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal's encoding lacks must not end the command.
            stream.reconfigure(errors="backslashreplace")
    code = _exit_code(app, arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
    sys.exit(code)


def _exit_code(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    try:
        _command(app)(args=arguments, prog_name="weft")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else ExitCode.OK
    except CommandFailed as failure:
        _tell(f"weft: {failure.message}", *failure.notes)
        return failure.exit_code
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback to a user
        if os.environ.get("WEFT_DEBUG") == "1":
            traceback.print_exc()
        _tell(
            f"weft: unexpected {type(error).__name__}: {error}",
            "WEFT_DEBUG=1 shows where it comes from.",
        )
        return ExitCode.FAILURE
    return ExitCode.OK


def _command(app: typer.Typer) -> _GroupsWhenAsked:
    """What `app` is to parse with."""
    ungrouped = copy.copy(app)
    ungrouped.info = copy.copy(app.info)
    ungrouped.info.cls = _GroupsWhenAsked
    ungrouped.registered_groups = []
    command = typer.main.get_command(ungrouped)
    assert isinstance(command, _GroupsWhenAsked)
    command.later = {
        str(group.name): group.typer_instance
        for group in app.registered_groups
        if group.typer_instance is not None
    }
    for name in command.later:
        # Named from the start, so that they are known where a name is looked for.
        command.add_command(TyperGroup(name=name))
    return command


def _tell(first: str, *notes: str) -> None:
    lines = [first, *(f"  {line}" for line in notes)]
    sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"weft {version('weft')}")
        raise typer.Exit


def _weft(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Weft runs AI agents as typed, durable, replayable programs on a gRPC mesh."""
