"""An MCP server: pure rules of what may happen to it, and what it then is."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from google.protobuf.message import Message

from mesh.errors import NotFound, RequestIdReused
from mesh.events.fold import Fold, Place
from mesh.events.store import StreamName
from weft.tools.v1 import mcp_events_pb2 as facts
from weft.tools.v1 import mcp_servers_pb2, secrets_pb2, tools_pb2

AREA = "mcp"
REQUESTS_MAX = 32
ID_LENGTH_MAX = 63
_DIGEST_LENGTH = 6
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NOT_IN_IDS = re.compile(r"[^a-z0-9]+")

Record = mcp_servers_pb2.McpServerRecord


def server_name(tenant: str, server_id: str) -> str:
    """The resource name of a server."""
    return f"tenants/{tenant}/mcpServers/{server_id}"


def server_stream(name: str) -> StreamName:
    """The stream of the server with that resource name."""
    _, tenant, _, server_id = name.split("/")
    return StreamName(AREA, tenant, (server_id,))


def find_request(record: Record, request_id: str, digest: bytes) -> bool:
    """Whether the request was answered before. RequestIdReused where the id came with
    another body."""
    for request in record.requests:
        if request.request_id == request_id:
            if request.request_hash != digest:
                raise RequestIdReused.of("request_id", "was used before with another body")
            return True
    return False


def decide_add(
    record: Record,
    request: mcp_servers_pb2.McpServerRequest,
    server: mcp_servers_pb2.McpServer,
    secrets: secrets_pb2.SealedSecrets | None,
    listed: facts.McpToolsListed,
) -> Sequence[Message]:
    """The facts of a server that was added with what it lists."""
    if find_request(record, request.request_id, request.request_hash):
        return []
    return [facts.McpServerAdded(server=server, secrets=secrets, request=request), listed]


def decide_list(
    record: Record, added_revision: int, listed: facts.McpToolsListed
) -> Sequence[Message]:
    """The fact that a server lists something else; none where it doesn't, or where the list
    is one of a server that was replaced or taken away meanwhile."""
    if not record.HasField("server") or record.added_revision != added_revision:
        return []
    same = list(record.tools) == list(listed.tools)
    if same and list(record.server.omitted) == list(listed.omitted):
        return []
    return [listed]


def decide_delete(
    record: Record, name: str, request: mcp_servers_pb2.McpServerRequest
) -> Sequence[Message]:
    """The fact that a server was taken away. NotFound where there is none."""
    if find_request(record, request.request_id, request.request_hash):
        return []
    if not record.HasField("server"):
        raise NotFound.of("MCP server", name)
    return [facts.McpServerDeleted(request=request)]


def evolve(record: Record, event: Message, place: Place) -> Record:
    """The record after a fact. Takes `record` over."""
    record.revision = place.revision
    if isinstance(event, facts.McpServerAdded):
        record.server.CopyFrom(event.server)
        record.secrets.CopyFrom(event.secrets)
        record.added_revision = place.revision
        record.ClearField("tools")
        _remember(record, event.request)
    elif isinstance(event, facts.McpServerDeleted):
        for field in ("server", "secrets", "tools"):
            record.ClearField(field)
        _remember(record, event.request)
    elif isinstance(event, facts.McpToolsListed):
        server = record.server
        record.ClearField("tools")
        record.tools.extend(event.tools)
        server.ClearField("tools")
        server.tools.extend(tool.name for tool in event.tools)
        server.ClearField("omitted")
        server.omitted.extend(event.omitted)
        server.list_time.CopyFrom(place.time)
    if record.HasField("server"):
        record.server.etag = f"r{place.revision}"
    return record


def _remember(record: Record, request: mcp_servers_pb2.McpServerRequest) -> None:
    if len(record.requests) >= REQUESTS_MAX:
        del record.requests[0]
    record.requests.append(request)


MCP_FOLD: Fold[Record] = Fold(
    version=1,
    events=(facts.McpServerAdded, facts.McpToolsListed, facts.McpServerDeleted),
    initial=Record,
    evolve=evolve,
    encode=lambda record: record.SerializeToString(deterministic=True),
    decode=Record.FromString,
)


def tool_ids(
    server_id: str, tools: Iterable[str], taken: Collection[str], known: Mapping[str, str]
) -> Mapping[str, str]:
    """The id that each of a server's tools has in Weft, by its name there.

    An id is `<server>-<tool>`. A name that is too long for one, or of which something gets lost,
    has a hash behind it, so that two names never have one id. `taken` are ids of other tools, and
    `known` are the ids that tools had before, which they keep.
    """
    names = list(dict.fromkeys(tools))
    words = {name: _words(name) for name in names}
    counts = Counter(words.values())
    ids = {}
    for name in names:
        found = f"{server_id}-{words[name]}"
        is_clear = words[name] and counts[words[name]] == 1 and len(found) <= ID_LENGTH_MAX
        if not is_clear or found in taken:
            digest = hashlib.sha256(f"{server_id}\0{name}".encode()).hexdigest()[:_DIGEST_LENGTH]
            begin = found[: ID_LENGTH_MAX - _DIGEST_LENGTH - 1].rstrip("-")
            found = f"{begin}-{digest}"
        ids[name] = found
    for name in names:
        kept = known.get(name)
        others = (found for other, found in ids.items() if other != name)
        if kept is not None and kept not in taken and kept not in others:
            ids[name] = kept
    return ids


def _words(name: str) -> str:
    return _NOT_IN_IDS.sub("-", _WORD_START.sub("-", name).lower()).strip("-")


def rule_of(server: mcp_servers_pb2.McpServer, tool: str) -> mcp_servers_pb2.McpToolRule:
    """What the operator says of a tool, with what holds for the whole server."""
    found = mcp_servers_pb2.McpToolRule(
        tool=tool, effect=server.effect, requires_approval=server.requires_approval
    )
    for rule in server.rules:
        if rule.tool == tool:
            found.effect = rule.effect or server.effect
            found.requires_approval |= rule.requires_approval
            found.excluded = rule.excluded
    return found


def known_ids(record: Record) -> Mapping[str, str]:
    """The ids that the server's tools have, by their names there."""
    return {tool.mcp.tool: tool.name.rpartition("/")[2] for tool in record.tools}


def with_omitted(
    tools: Sequence[tools_pb2.Tool], omitted: Mapping[str, str], omitted_max: int
) -> facts.McpToolsListed:
    """The fact of a list, with the first of what isn't offered."""
    listed = facts.McpToolsListed(tools=tools)
    for tool, reason in list(omitted.items())[:omitted_max]:
        listed.omitted.add(tool=tool[:256], reason=reason)
    return listed
