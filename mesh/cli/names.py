"""Resource names (AIP-122), typed in full or in short: `bot/s1` for
`tenants/default/agents/bot/sessions/s1`."""

import re

from mesh.cli.failures import usage_error

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

AGENT = ("agents",)
SESSION = ("agents", "sessions")
TURN = ("agents", "sessions", "turns")
TOOL = ("tools",)
COLLECTION = ("collections",)


def resource_name(text: str, kind: tuple[str, ...], tenant: str) -> str:
    """The full name of what was typed, of the given kind.

    `tenant` is `tenants/{tenant}`; a name typed in full keeps its own. CommandFailed
    (usage) where the text is neither form.
    """
    segments = text.split("/")
    if len(segments) == len(kind) and all(map(_ID.fullmatch, segments)):
        pairs = zip(kind, segments, strict=True)
        return "/".join([tenant, *(f"{collection}/{id_}" for collection, id_ in pairs)])
    is_full = tuple(segments[::2]) == ("tenants", *kind) and len(segments) == 2 * len(kind) + 2
    if is_full and all(map(_ID.fullmatch, segments[1::2])):
        return text
    short = "/".join(collection[:-1].upper() for collection in kind)
    full = "/".join(["tenants", "TENANT", *(f"{c}/{c[:-1].upper()}" for c in kind)])
    raise usage_error(
        f"{text!r} is no {kind[-1][:-1]} name",
        f"Write {short} or {full}; ids are of a-z, 0-9 and -.",
    )


def short_name(name: str) -> str:
    """The short form: `bot/s1` of `tenants/default/agents/bot/sessions/s1`."""
    return "/".join(name.split("/")[3::2])


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
