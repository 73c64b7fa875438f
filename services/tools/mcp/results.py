"""What a tool of an MCP server answers, as a result for a model: text and JSON.

What a model can't read here, as images, sound and files, is told as a note and left out.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.tools.results import ToolResult, cut
from weft.tools.v1 import tools_pb2

if TYPE_CHECKING:
    from mcp import types

PARTS_MAX = 1_000
URI_LENGTH_MAX = 2_048
TITLE_LENGTH_MAX = 1_024


def as_result(answer: "types.CallToolResult", length_max: int) -> ToolResult:
    """The result of a call, with nothing of it but its begin beyond `length_max` characters."""
    parts, sources, length = [], [], 0
    for block in answer.content[:PARTS_MAX]:
        part, source = _part(block)
        parts.append(part)
        length += len(part)
        if source is not None:
            sources.append(source)
        if length > length_max:
            break
    if len(answer.content) > PARTS_MAX:
        parts.append(f"[{len(answer.content) - PARTS_MAX} more parts: left out]")
    structured = answer.structured_content
    if structured is not None and length <= length_max and not _says(parts, structured):
        parts.append(_written(structured))
    # A lone surrogate is no character, and no string of protobuf's.
    content = "\n".join(parts).encode(errors="replace").decode()
    return ToolResult(cut(content, length_max), is_error=answer.is_error, sources=sources)


def _part(block: Any) -> tuple[str, tools_pb2.Source | None]:
    """A part as text, and where it is from, if it says so."""
    kind = block.type
    if kind == "text":
        return block.text, None
    if kind in ("image", "audio"):
        return _left_out(kind, block.mime_type, block.data), None
    if kind == "resource_link":
        title = block.title or block.name
        return f"[resource {block.uri}: {title}]", _source(str(block.uri), title)
    if kind == "resource":
        resource = block.resource
        source = _source(str(resource.uri), "")
        text = getattr(resource, "text", None)
        if text is not None:
            return text, source
        return _left_out("resource", resource.mime_type or "", resource.blob), source
    return f"[{kind}: left out]", None


def _written(structured: object) -> str:
    """The structured content as JSON, or a note where it has a number that JSON can't say."""
    try:
        return json.dumps(structured, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return "[structured content with an infinite number: left out]"


def _left_out(kind: str, media_type: str, data: str) -> str:
    """A note; `data` is base64."""
    described = f"{kind}, {media_type}" if media_type else kind
    return f"[{described}, {len(data) * 3 // 4} bytes: left out]"


def _source(uri: str, title: str) -> tools_pb2.Source:
    return tools_pb2.Source(
        uri=uri.encode(errors="replace").decode()[:URI_LENGTH_MAX],
        title=title.encode(errors="replace").decode()[:TITLE_LENGTH_MAX],
    )


def _says(parts: Sequence[str], structured: object) -> bool:
    """Whether a part is the structured content as JSON, as servers shall answer it, too. What
    isn't an object many wrap in one, as `result`."""
    for part in parts:
        if structured == {"result": part}:
            return True
        try:
            said = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if structured in (said, {"result": said}):
            return True
    return False
