"""The events of one answer, in each of the protocols that models are called by."""

import json
from collections.abc import Sequence
from typing import Any

from tests.support.openai_server import Reply, chunk, streamed, usage_chunk

READ, CACHED, WRITTEN, THOUGHT = 11, 4, 5, 2
CALL = {"name": "calculator", "arguments": {"expression": "6 * 7"}}


def said(kind: str, words: Sequence[str], *, finish: str = "stop", calls: int = 0) -> list[Any]:
    """Events of an answer of `words` and `calls` calls of the calculator; `finish` is `stop`,
    `length` or `filter`."""
    return _KINDS[kind](words, finish, calls)


def reply(kind: str, events: Sequence[Any], *, is_cut: bool = False) -> Reply:
    """The stream of those events, as that protocol ends it."""
    return streamed(events, is_cut=is_cut, is_done=kind == "openai")


def failed(kind: str) -> dict[str, Any]:
    """The event that says that the endpoint failed while it answered."""
    error = {"type": "overloaded_error", "message": "overloaded"}
    if kind == "openai-responses":
        event = _ended("failed", error={"code": "server_error", "message": "no"})
        return {**event, "sequence_number": 0}
    return {"error": error} if kind == "openai" else {"type": "error", "error": error}


def _chat(words: Sequence[str], finish: str, calls: int) -> list[Any]:
    events = [chunk({"role": "assistant", "content": ""})]
    events += [chunk({"content": word}) for word in words]
    for index in range(calls):
        begin, end = _halves()
        function = {"name": CALL["name"], "arguments": begin}
        call = {"index": index, "id": f"call_{index}", "type": "function", "function": function}
        more = {"index": index, "function": {"arguments": end}}
        events += [chunk({"tool_calls": [call]}), chunk({"tool_calls": [more]})]
    reason = {"stop": "tool_calls" if calls else "stop", "filter": "content_filter"}
    usage = usage_chunk(READ, WRITTEN)
    usage["usage"]["prompt_tokens_details"] = {"cached_tokens": CACHED}
    usage["usage"]["completion_tokens_details"] = {"reasoning_tokens": THOUGHT}
    return [*events, chunk(finish=reason.get(finish, finish)), usage]


def _responses(words: Sequence[str], finish: str, calls: int) -> list[Any]:
    where = {"item_id": "m", "output_index": 1, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": _response("in_progress")},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {"type": "reasoning", "id": "r", "summary": []},
        },
    ]
    events += [
        {"type": "response.output_text.delta", "delta": word, "logprobs": [], **where}
        for word in words
    ]
    for index in range(2, calls + 2):
        begin, end = _halves()
        item = {
            "type": "function_call",
            "id": f"f{index}",
            "call_id": f"call_{index - 2}",
            "name": CALL["name"],
            "arguments": "",
            "status": "in_progress",
        }
        place = {"item_id": f"f{index}", "output_index": index}
        kind = "response.function_call_arguments"
        events += [
            {"type": "response.output_item.added", "output_index": index, "item": item},
            {"type": f"{kind}.delta", "delta": begin, **place},
            {"type": f"{kind}.delta", "delta": end, **place},
            {"type": f"{kind}.done", "arguments": begin + end, "name": CALL["name"], **place},
        ]
    reasons = {"length": "max_output_tokens", "filter": "content_filter"}
    if finish in reasons:
        return _numbered(
            [*events, _ended("incomplete", incomplete_details={"reason": reasons[finish]})]
        )
    return _numbered([*events, _ended("completed")])


def _ended(status: str, **more: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": READ,
        "input_tokens_details": {"cached_tokens": CACHED, "cache_write_tokens": 0},
        "output_tokens": WRITTEN,
        "output_tokens_details": {"reasoning_tokens": THOUGHT},
        "total_tokens": READ + WRITTEN,
    }
    return {"type": f"response.{status}", "response": _response(status, usage=usage, **more)}


def _response(status: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_800_000_000,
        "model": "small",
        "status": status,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        **more,
    }


def _numbered(events: Sequence[dict[str, Any]]) -> list[Any]:
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def _messages(words: Sequence[str], finish: str, calls: int) -> list[Any]:
    usage = {
        "input_tokens": READ - CACHED,
        "cache_read_input_tokens": CACHED,
        "cache_creation_input_tokens": 0,
        "output_tokens": 1,
    }
    head: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "small",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    text = {"type": "text", "text": ""}
    events: list[Any] = [
        {"type": "message_start", "message": head},
        {"type": "content_block_start", "index": 0, "content_block": text},
        {"type": "ping"},
    ]
    for word in words:
        delta = {"type": "text_delta", "text": word}
        events.append({"type": "content_block_delta", "index": 0, "delta": delta})
    events.append({"type": "content_block_stop", "index": 0})
    for index in range(1, calls + 1):
        block = {"type": "tool_use", "id": f"call_{index - 1}", "name": CALL["name"], "input": {}}
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        for half in _halves():
            delta = {"type": "input_json_delta", "partial_json": half}
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
    reasons = {"stop": "tool_use" if calls else "end_turn", "length": "max_tokens"}
    reason = reasons.get(finish, "refusal")
    return [
        *events,
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": WRITTEN},
        },
        {"type": "message_stop"},
    ]


def _halves() -> tuple[str, str]:
    written = json.dumps(CALL["arguments"])
    return written[:7], written[7:]


_KINDS = {"openai": _chat, "openai-responses": _responses, "anthropic": _messages}
KINDS = tuple(_KINDS)
