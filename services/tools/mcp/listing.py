"""What an MCP server lists, as tools of Weft's: within bounds, and with its hints as hints."""

import asyncio
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from services.tools.domain import tool_name, with_etag
from services.tools.mcp.domain import Record, known_ids, rule_of, tool_ids, with_omitted
from services.tools.results import cut
from services.tools.untrusted_schema import SchemaRefused, accepted
from weft.tools.v1 import mcp_events_pb2, tools_pb2

if TYPE_CHECKING:
    from mcp import types

NAME_LENGTH_MAX = 256
DESCRIPTION_LENGTH_MAX = 8_192
TITLE_LENGTH_MAX = 256
OMITTED_MAX = 100
BYTES_MAX = 4_194_304
"""Most bytes of a server's tools together."""


async def as_tools(
    record: Record, listed: Sequence["types.Tool"], taken: Collection[str], tools_max: int
) -> mcp_events_pb2.McpToolsListed:
    """The fact that `record.server` lists these. `taken` are the ids of other tools. What can't
    be a tool, or is one too many, is among `omitted` with the reason."""
    server = record.server
    _, tenant, _, server_id = server.name.split("/")
    omitted: dict[str, str] = {}
    offered: dict[str, types.Tool] = {}
    for tool in listed:
        reason = _refused(tool)
        if reason:
            omitted[tool.name] = reason
        elif tool.name in offered:
            omitted[tool.name] = "it is listed twice; the first counts"
        elif rule_of(server, tool.name).excluded:
            omitted[tool.name] = "a rule excludes it"
        else:
            offered[tool.name] = tool
    ids = tool_ids(server_id, offered, taken, known_ids(record))
    tools: list[tools_pb2.Tool] = []
    size = 0
    for name, tool in offered.items():
        if len(tools) >= tools_max:
            omitted[name] = f"a server has at most {tools_max} tools"
            continue
        try:
            # A long list, or one of large schemas, must not hold up other calls.
            made = await asyncio.to_thread(_tool, record, tool, tool_name(tenant, ids[name]))
        except SchemaRefused as refused:
            omitted[name] = str(refused)
            continue
        size += made.ByteSize()
        if size > BYTES_MAX:
            omitted[name] = f"a server's tools have at most {BYTES_MAX} bytes together"
            continue
        tools.append(made)
    tools.sort(key=lambda tool: tool.name)
    return with_omitted(tools, omitted, OMITTED_MAX)


def _refused(tool: "types.Tool") -> str:
    """Why a tool can't be one of Weft's, by its name."""
    if not tool.name or len(tool.name) > NAME_LENGTH_MAX:
        return f"its name is empty, or has more than {NAME_LENGTH_MAX} characters"
    if not tool.name.isprintable():
        return "its name has characters that can't be printed"
    return ""


def _tool(record: Record, tool: "types.Tool", name: str) -> tools_pb2.Tool:
    server = record.server
    rule = rule_of(server, tool.name)
    hints = tools_pb2.McpToolHints(title=_text(tool.title or "", TITLE_LENGTH_MAX))
    if tool.annotations is not None:
        hints.title = hints.title or _text(tool.annotations.title or "", TITLE_LENGTH_MAX)
        for field, value in (
            ("read_only", tool.annotations.read_only_hint),
            ("destructive", tool.annotations.destructive_hint),
            ("idempotent", tool.annotations.idempotent_hint),
            ("open_world", tool.annotations.open_world_hint),
        ):
            if value is not None:
                setattr(hints, field, value)
    made = tools_pb2.Tool(
        name=name,
        description=_text(tool.description or tool.title or tool.name, DESCRIPTION_LENGTH_MAX),
        parameters_json_schema=accepted(tool.input_schema),
        effect=rule.effect,
        requires_approval=rule.requires_approval,
        timeout=server.timeout,
        mcp=tools_pb2.McpTool(server=server.name, tool=tool.name, hints=hints),
        create_time=server.create_time,
        trust=server.trust,
        required_scopes=server.required_scopes,
    )
    return with_etag(made)


def _text(text: str, length_max: int) -> str:
    # A lone surrogate is no character, and no string of protobuf's.
    return cut(text.encode(errors="replace").decode(), length_max)
