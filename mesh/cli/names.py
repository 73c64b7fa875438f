"""Resource names (AIP-122), typed in full or in short: `bot/s1` for
`tenants/default/agents/bot/sessions/s1`."""

import re
from typing import Protocol

from mesh.cli.failures import usage_error
from mesh.ids import RESOURCE_ID

_ID = re.compile(RESOURCE_ID)

AGENT = ("agents",)
SESSION = ("agents", "sessions")
TURN = ("agents", "sessions", "turns")
TOOL = ("tools",)
MCP_SERVER = ("mcpServers",)
COLLECTION = ("collections",)
BLOB = ("blobs",)
BUDGET = ("budgets",)
FUNCTION = ("functions",)
API_KEY = ("apiKeys",)
ROLE = ("roles",)
ROLE_BINDING = ("roleBindings",)
QUEUE = ("queues",)
TASK = ("queues", "tasks")
BATCH = ("queues", "batches")
SCHEDULE = ("schedules",)
DEFAULT_QUEUE = "default"
DEFAULT_TENANT = "tenants/default"

_WORDS = {
    "apiKeys": "key",
    "roleBindings": "binding",
    "batches": "batch",
    "mcpServers": "server",
}


class InTenant(Protocol):
    """Knows the tenant that names are in, `tenants/{tenant}`, once it is asked for."""

    @property
    def parent(self) -> str: ...


def resource_name(text: str, kind: tuple[str, ...], client: InTenant) -> str:
    """The full name of what was typed, of the given kind.

    A name typed in full keeps its own tenant, and the client's isn't asked for.
    CommandFailed (usage) where the text is neither form.
    """
    segments = text.split("/")
    if len(segments) == len(kind) and all(map(_ID.fullmatch, segments)):
        pairs = zip(kind, segments, strict=True)
        return "/".join([client.parent, *(f"{collection}/{id_}" for collection, id_ in pairs)])
    is_full = tuple(segments[::2]) == ("tenants", *kind) and len(segments) == 2 * len(kind) + 2
    if is_full and all(map(_ID.fullmatch, segments[1::2])):
        return text
    words = [_WORDS.get(collection, collection[:-1]) for collection in kind]
    short = "/".join(words).upper()
    pairs = zip(kind, words, strict=True)
    full = "/".join(["tenants", "TENANT", *(f"{c}/{word.upper()}" for c, word in pairs)])
    raise usage_error(
        f"{text!r} is no {words[-1]} name",
        f"Write {short} or {full}; ids are of a-z, 0-9 and -.",
    )


def task_name(text: str, queue: str | None, client: InTenant) -> str:
    """The full name of a task that was typed as its id, QUEUE/TASK or in full.

    An id alone is one of `queue`, else of the queue `default`. CommandFailed (usage) where
    the text is neither form, or names another queue than `queue`.
    """
    return _name_in_queue(text, queue, TASK, client)


def batch_name(text: str, queue: str | None, client: InTenant) -> str:
    """As `task_name`, of a batch."""
    return _name_in_queue(text, queue, BATCH, client)


def _name_in_queue(text: str, queue: str | None, kind: tuple[str, str], client: InTenant) -> str:
    collection = kind[1]
    word = _WORDS.get(collection, collection[:-1])
    if "/" not in text:
        parent = resource_name(queue or DEFAULT_QUEUE, QUEUE, client)
        return f"{parent}/{collection}/{check_id(text, word.upper())}"
    name = resource_name(text, kind, client)
    if queue and queue_of(name) != resource_name(queue, QUEUE, client):
        raise usage_error(f"{word} {short_name(name)} isn't one of queue {queue}")
    return name


def queue_of(name: str) -> str:
    """The full name of the queue that a task or batch is in."""
    return name.rpartition("/")[0].rpartition("/")[0]


def short_name(name: str) -> str:
    """The short form: `bot/s1` of `tenants/default/agents/bot/sessions/s1`."""
    return "/".join(name.split("/")[3::2])


def resource_pattern(text: str, client: InTenant) -> str:
    """A pattern of resources, such as `agents/*`, in the client's tenant unless it names
    one itself; empty, for the whole tenant, where nothing was typed."""
    return text if not text or text.startswith("tenants/") else f"{client.parent}/{text}"


def tenant_name(text: str) -> str:
    """`tenants/{tenant}` of a tenant's id or name; CommandFailed (usage) where it is neither."""
    tenant = text.removeprefix("tenants/")
    if not _ID.fullmatch(tenant):
        raise usage_error(f"{text!r} isn't a tenant's id", "Ids are of a-z, 0-9 and -.")
    return f"tenants/{tenant}"


def check_id(text: str, option: str) -> str:
    """`text`, where it is an id; CommandFailed (usage) that names the option where not."""
    if not _ID.fullmatch(text):
        raise usage_error(f"{option}: {text!r} isn't an id", "Ids are of a-z, 0-9 and -.")
    return text
