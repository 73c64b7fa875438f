"""What a command proves itself with, and where it was found."""

import os
import re
from dataclasses import dataclass, field

from mesh.cli.failures import CommandFailed, ExitCode
from mesh.private_files import config_folder

API_KEY_VARIABLE = "WEFT_API_KEY"

# `b64token` of RFC 6750, section 2.1. gRPC's own error about other characters would show
# the whole header.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_API_KEY = re.compile(r"weft_([a-z0-9]{1,64})_[A-Za-z0-9]+_[0-9a-fA-F]{8}")
TOKEN_LENGTH_MAX = 4096


@dataclass(frozen=True, slots=True)
class Credential:
    """An API key, or a token made of one. `source` says to people where it was found;
    `secret` is never shown."""

    secret: str = field(repr=False)
    source: str

    @property
    def authorization(self) -> str:
        """The header that carries it."""
        return f"Bearer {self.secret}"

    @property
    def label(self) -> str:
        """What may be shown of it: the key's id, or that it is a token."""
        match = _API_KEY.fullmatch(self.secret)
        return f"key weft_{match[1]}_…" if match else "token"


def credential(text: str, source: str) -> Credential:
    """The credential that a text holds; CommandFailed, without the text, where it can't
    be one."""
    stripped = text.strip()
    if len(stripped) > TOKEN_LENGTH_MAX or not _TOKEN.fullmatch(stripped):
        raise CommandFailed(
            f"what is in {source} can't be a key",
            exit_code=ExitCode.AUTHENTICATION,
            notes=["A key reads weft_<id>_<secret>_<checksum>, on one line."],
        )
    return Credential(stripped, source)


def api_key(text: str, source: str) -> str:
    """The API key that a text holds; CommandFailed, without the text, where it is none."""
    found = credential(text, source).secret
    if not _API_KEY.fullmatch(found):
        raise CommandFailed(
            f"what is in {source} is no API key",
            exit_code=ExitCode.USAGE,
            notes=["A key reads weft_<id>_<secret>_<checksum>; `weft key create` makes one."],
        )
    return found


def from_environment() -> Credential | None:
    """What WEFT_API_KEY holds."""
    text = os.environ.get(API_KEY_VARIABLE, "")
    return credential(text, API_KEY_VARIABLE) if text.strip() else None


def key_notes(found: Credential | None, target: str) -> tuple[str, ...]:
    """What helps somebody whom the server at `target` doesn't let in."""
    how = (
        "A key is looked for in WEFT_API_KEY, in the context (weft context list), and in what",
        f"`weft up` left on this machine, {config_folder() / 'clusters'}.",
        "`weft key create` makes one, for whoever has one already. Where all are lost, start the",
        "server once with --new-admin-key default: `weft up`, or `weft serve` where auth runs.",
    )
    if found is None:
        return (f"No key was found for {target}.", *how)
    return (
        f"The {found.label} is from {found.source}; it is of another server, expired or revoked.",
        *how,
    )
