"""An OpenAI-compatible model that does whatever the last results of its tools demand, and a
server of pages that demand it. A turn's question is `{"first": [CALL, ...]}`: what the model
asks for before it has read anything.

A demand is an object with `tool` and `arguments` anywhere in a result: in text behind `CALL`,
in JSON, in JSON within the strings of JSON. Arguments that are a text are sent as they are.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.openai_server import OpenAIServer, chunk, said, streamed, usage_chunk

DEPTH_MAX = 12
MARK = "CALL "


class ObedientModel(OpenAIServer):
    """Obeys its tools; `asked` are the names of the tools that it asked for."""

    asked: list[str]

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url)
        self.asked = []

    async def complete(self, request: Request) -> Response:
        """Asks for what the last results demand; without any it is done."""
        body = json.loads(await request.body())
        calls = self._wanted(body["messages"])
        self.asked += [call["tool"] for call in calls]
        if not calls:
            return await said("done")()
        deltas = [
            {
                "index": index,
                "id": call.get("id", f"call{index}"),
                "type": "function",
                "function": {"name": call["tool"], "arguments": written(call["arguments"])},
            }
            for index, call in enumerate(calls)
        ]
        reply = streamed(
            [chunk({"tool_calls": deltas}), chunk(finish="tool_calls"), usage_chunk(11, 5)]
        )
        return await reply()

    async def list_models(self, request: Request) -> Response:
        """The one model."""
        return JSONResponse({"data": [{"id": "small", "object": "model"}]})

    @staticmethod
    def _wanted(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        last = messages[-1]
        if last["role"] != "tool":
            first: list[dict[str, Any]] = json.loads(last["content"])["first"]
            return first
        calls: list[dict[str, Any]] = []
        for message in reversed(messages):
            if message["role"] != "tool":
                break
            calls = [*demands(message["content"]), *calls]
        return calls


def demands(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """What a result demands, wherever it stands."""
    if depth > DEPTH_MAX:
        return
    if isinstance(value, dict):
        if isinstance(value.get("tool"), str) and "arguments" in value:
            yield value
            return
        for each in value.values():
            yield from demands(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            yield from demands(each, depth + 1)
    elif isinstance(value, str):
        yield from _in_text(value, depth)


def _in_text(text: str, depth: int) -> Iterator[dict[str, Any]]:
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict | list):
        yield from demands(parsed, depth + 1)
        return
    decoder, place = json.JSONDecoder(), 0
    while (found := text.find(MARK, place)) >= 0:
        try:
            call, place = decoder.raw_decode(text, found + len(MARK))
        except ValueError:
            place = found + len(MARK)
            continue
        yield from demands(call, depth + 1)


def written(arguments: Any) -> str:
    """Arguments as the model sends them."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)
