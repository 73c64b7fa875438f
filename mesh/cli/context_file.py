"""Contexts: a server, a key and a tenant under a name, so that nobody types them twice."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from mesh.cli.failures import CommandFailed, ExitCode, usage_error
from mesh.cli.private_files import read_private, write_private
from mesh.private_files import config_folder

CONTEXTS_MAX = 1_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Context:
    """Where a server is, as an address or as the data folder that it runs on, and the key
    for it. `tenant` is an id, empty where the key's own is meant. `ca_file` holds the roots of
    the server's certificate, and is empty where it is called in plain text."""

    address: str = ""
    data_dir: str = ""
    tenant: str = ""
    ca_file: str = ""
    api_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Contexts:
    """All contexts, and the name of the one that is used where none is named."""

    current: str = ""
    by_name: Mapping[str, Context] = field(default_factory=dict)

    def get(self, name: str) -> Context:
        """The context of that name. CommandFailed (not found) where there is none."""
        if name not in self.by_name:
            known = ", ".join(sorted(self.by_name)) or "none"
            raise CommandFailed(
                f"there is no context {name!r}",
                exit_code=ExitCode.NOT_FOUND,
                notes=[f"There are: {known}.", f"`weft context add {name}` makes it."],
            )
        return self.by_name[name]


def contexts_path() -> Path:
    """The file that holds them."""
    return config_folder() / "contexts.json"


def read_contexts() -> Contexts:
    """What is in the file. CommandFailed where others can read it, or it is damaged."""
    text = read_private(contexts_path())
    if text is None:
        return Contexts()
    try:
        stored = json.loads(text)
        current = stored.get("current", "")
        by_name = {name: _context(entry) for name, entry in stored.get("contexts", {}).items()}
    except (ValueError, AttributeError, TypeError):
        # Their text may hold a key.
        raise CommandFailed(f"{contexts_path()} is damaged") from None
    return Contexts(current if current in by_name else "", by_name)


def write_contexts(contexts: Contexts) -> None:
    """Replaces the file. CommandFailed where it can't be written."""
    if len(contexts.by_name) > CONTEXTS_MAX:
        raise CommandFailed(f"there can't be more than {CONTEXTS_MAX} contexts")
    entries = {name: asdict(context) for name, context in contexts.by_name.items()}
    stored = {"current": contexts.current, "contexts": entries}
    write_private(contexts_path(), json.dumps(stored, indent=2) + "\n")


def check_name(text: str) -> str:
    """`text`, where it can name a context; CommandFailed (usage) where not."""
    if not _NAME.fullmatch(text):
        raise usage_error(f"{text!r} can't name a context", "Names are of letters, digits, . _ -.")
    return text


def _context(entry: Mapping[str, object]) -> Context:
    known = {item.name for item in fields(Context)}
    return Context(**{name: str(value) for name, value in entry.items() if name in known})
