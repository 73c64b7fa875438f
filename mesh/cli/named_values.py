"""Headers, metadata and variables for tools: `NAME=VALUE`, and secrets from files."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh.cli.failures import usage_error
from mesh.cli.inputs import read_file

if TYPE_CHECKING:
    from weft.tools.v1 import secrets_pb2

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,255}")


def named_values(
    shown: Sequence[str], secret: Sequence[str], option: str, secret_option: str
) -> "list[secrets_pb2.NamedValue]":
    """The values that were typed as `NAME=VALUE`, and the secrets as `NAME=@FILE`; `-` reads one
    from standard input. A secret itself isn't taken, since everybody on the machine sees what is
    typed. CommandFailed (usage) that names the option."""
    from weft.tools.v1 import secrets_pb2

    found = []
    for text in shown:
        name, value = _parted(text, option)
        found.append(secrets_pb2.NamedValue(name=name, value=value))
    for text in secret:
        name, source = _parted(text, secret_option)
        if not source.startswith("@") and source != "-":
            raise usage_error(
                f"{secret_option}: a secret isn't typed, since everybody on the machine sees that",
                f"Write {name}=@FILE, or {name}=- for standard input.",
            )
        path = source if source == "-" else source[1:]
        found.append(secrets_pb2.NamedValue(name=name, secret=read_file(path).strip()))
    return found


def _parted(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise usage_error(f"{option}: {text.partition('=')[0]!r} isn't NAME=VALUE")
    return name, value
