"""Secrets that the server shows once: on stdout, or in a file that only its owner reads."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mesh.cli.output import Output, as_data, note, printable, show_data
from mesh.cli.private_files import private_file

if TYPE_CHECKING:
    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")

ToFile = Annotated[
    Path | None,
    typer.Option(
        "--to", metavar="FILE", help="Write the secret to a file that only you can read instead."
    ),
]


def show_once(
    output: Output, make: Callable[[], M], field: str, to: Path | None, show: Callable[[M], None]
) -> None:
    """Calls what makes a secret, and hands that over: `field` of the answer, alone on
    stdout, or with the whole answer as JSON or YAML.

    With `to` it goes to that file, which is opened before anything is made, and the rest
    of the answer is what `show` prints.
    """
    if to is None:
        answer = make()
        if output is Output.TABLE:
            sys.stdout.write(printable(getattr(answer, field)) + "\n")
        else:
            show_data(output, as_data(answer))
        note("The secret is shown this once; --to FILE would have kept it off the terminal.")
        return
    with private_file(to) as file:
        answer = make()
        file.write(f"{getattr(answer, field)}\n")
    answer.ClearField(field)
    note(f"wrote the secret to {to}")
    show(answer)
