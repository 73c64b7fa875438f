"""A turn as it is shown to a person: what the model writes on stdout, the rest on stderr."""

import sys
from typing import TYPE_CHECKING

from mesh.cli.contracts import reason_name
from mesh.cli.failures import CommandFailed, ExitCode
from mesh.cli.output import Output, note, one_line, printable, show_item

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weft.agents.v1 import turn_pb2
    from weft.models.v1 import models_pb2
    from weft.tools.v1 import tools_pb2


class Transcript:
    """Shows the events of a turn as they come: each as a document where `output` is JSON
    or YAML, else as text, each piece of it once.

    It remembers what it wrote of the step at hand. Text that continues it is written from
    there on, text that repeats it isn't written, and only text that contradicts it, as
    when the model was asked again, is written anew under a note.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._finished_step = 0
        self._step = 0
        self._attempt = 0
        self._text = ""
        self._written = ""
        self._last_text = ""
        self._line_open = False

    def show(self, event: "turn_pb2.TurnEvent") -> None:
        """Shows one event. CommandFailed, with the exit code of a failed turn, for the
        end of a turn that didn't answer."""
        if self._output is Output.TABLE:
            self._tell(event)
        else:
            show_item(self._output, event)
        _check_ending(event)

    def _tell(self, event: "turn_pb2.TurnEvent") -> None:
        match event.WhichOneof("event"):
            case "token":
                self._token(event.token)
            case "model_step":
                self._model_step(event.model_step)
            case "completed":
                self._completed(event.completed)
            case "cancelled":
                self._cancelled(event.cancelled)
            case "failed":
                self._end_line()
            case _:
                self._note(event_line(event))

    def _note(self, line: str) -> None:
        if not line:
            return
        # A terminal needs a fresh line; what goes into a pipe stays as it is.
        if self._line_open and sys.stdout.isatty():
            self._write("\n")
        note(line)

    def _token(self, token: "turn_pb2.TurnEvent.Token") -> None:
        if token.step <= self._finished_step:
            return
        if token.step != self._step:
            self._begin(token.step)
        if token.attempt < self._attempt:
            return
        if token.attempt > self._attempt:
            self._attempt, self._text = token.attempt, ""
        known = len(self._text)
        if token.text_offset > known:
            # A gap: what is missing comes with the step's whole text.
            return
        self._text += token.text[known - token.text_offset :]
        self._reveal(self._text, whole=False)

    def _model_step(self, step: "turn_pb2.TurnEvent.ModelStep") -> None:
        if step.step <= self._finished_step:
            return
        if step.step != self._step:
            self._begin(step.step)
        self._reveal(step.message.text, whole=True)
        self._end_line()
        self._finished_step, self._last_text = step.step, step.message.text

    def _completed(self, completed: "turn_pb2.TurnEvent.Completed") -> None:
        if completed.text.strip() != self._last_text.strip():
            self._reveal(completed.text, whole=True)
        self._end_line()
        lines = source_lines(completed.sources)
        # An answer that names its sources itself has its own numbers for them.
        if lines and "\nSources:\n" not in completed.text:
            self._write("\nSources:\n" + "\n".join(lines) + "\n")
        note(usage_line(completed.usage))

    def _cancelled(self, cancelled: "turn_pb2.TurnEvent.Cancelled") -> None:
        if cancelled.partial_text:
            self._reveal(cancelled.partial_text, whole=True)
        self._end_line()

    def _begin(self, step: int) -> None:
        self._end_line()
        self._step, self._attempt, self._text = step, 0, ""

    def _reveal(self, text: str, *, whole: bool) -> None:
        """Writes what is new in the step's text; `whole` text can't grow any more."""
        if self._written.startswith(text) and not (whole and len(text) < len(self._written)):
            return
        if not text.startswith(self._written):
            self._end_line()
            note("The model was asked again; what it wrote above is taken back.")
        self._write(text[len(self._written) :])
        self._written = text

    def _end_line(self) -> None:
        if self._line_open:
            self._write("\n")
        self._written = ""

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(printable(text))
            sys.stdout.flush()
            self._line_open = not text.endswith("\n")


def _check_ending(event: "turn_pb2.TurnEvent") -> None:
    if event.HasField("failed"):
        raise CommandFailed(
            f"the turn failed: {event.failed.error.message}",
            exit_code=ExitCode.TURN_FAILED,
            notes=[f"reason: {reason_name(event.failed.error.reason)}"],
        )
    if event.HasField("cancelled"):
        why = f": {event.cancelled.reason}" if event.cancelled.reason else ""
        raise CommandFailed(f"the turn was cancelled{why}", exit_code=ExitCode.TURN_FAILED)


def event_line(event: "turn_pb2.TurnEvent") -> str:
    """What happened, in a line; empty for what isn't worth one."""
    match event.WhichOneof("event"):
        case "accepted":
            return "Waiting for the turn before it." if event.accepted.queued else ""
        case "resumed":
            return f"Resumed by another instance ({event.resumed.resume_count})."
        case "tool_call":
            return f"→ {call_line(event.tool_call.call)}"
        case "tool_result":
            mark = "✗" if event.tool_result.is_error else "←"
            return f"{mark} {one_line(event.tool_result.content)}"
        case "approval_required":
            asked = event.approval_required
            return f"Needs approval: {call_line(asked.call)}{because(asked.detail)}"
        case "approval_given":
            return "Approved." if event.approval_given.approved else "Denied."
        case "in_doubt":
            return f"In doubt: {call_line(event.in_doubt.call)}"
        case "compacted":
            return f"Summarised the oldest {event.compacted.message_count} messages."
        case "cancel_requested":
            return "Cancelling."
        case "stalled":
            idle_seconds = event.stalled.idle.ToNanoseconds() / 1e9
            return f"Stalled: nothing for {idle_seconds:.0f} s, at {event.stalled.doing}."
        case _:
            return ""


def call_line(call: "models_pb2.ToolCall") -> str:
    """A tool call, in a line: the tool and its arguments."""
    return f"{call.tool} {one_line(call.arguments_json)}"


def because(detail: str) -> str:
    """Why, behind what is asked; empty where nothing is said."""
    return f": {detail}" if detail else ""


def usage_line(usage: "models_pb2.Usage") -> str:
    """What was used, in a line."""
    about = "about " if usage.estimated else ""
    return f"{about}{usage.input_tokens} tokens read, {usage.output_tokens} written"


def source_lines(sources: "Iterable[tools_pb2.Source]") -> list[str]:
    """Where an answer comes from, a numbered line for each source."""
    lines = []
    for number, source in enumerate(sources, start=1):
        place = ", ".join(part for part in (source.uri, source.locator) if part)
        title = f"{source.title} ({place})" if source.title and place else source.title or place
        lines.append(f"  [{number}] {one_line(title, 300)}")
    return lines
