"""What a tool answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from weft.tools.v1 import tools_pb2


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A result, written for a model: text or JSON. With `is_error` it says what went
    wrong, so that the model can do better. `untrusted` says that anybody may have had a say
    in it."""

    content: str
    is_error: bool = False
    sources: Sequence[tools_pb2.Source] = ()
    untrusted: bool = False


def failed(content: str) -> ToolResult:
    """The result of a tool that refused or failed."""
    return ToolResult(content, is_error=True)


def cut(text: str, length_max: int) -> str:
    """The text, or its beginning and a note that says how much is missing."""
    if len(text) <= length_max:
        return text
    note = f"\n[cut: {length_max} of {len(text)} characters are shown]"
    return text[: length_max - len(note)] + note
