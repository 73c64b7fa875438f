"""A real HTTP server that speaks Chat Completions, Responses, Messages and embeddings, with
faults on order.

Each request takes the next reply of the script; the last one stays. Requests for embeddings
are answered by `embed`, unless `embeddings_script` has a reply. What came in is in `requests`.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Reply = Callable[[], Awaitable[Response]]

_CHUNK = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1_800_000_000,
    "model": "small",
}


@dataclass
class OpenAIServer:
    """A running server; `base_url` is what a client is configured with."""

    base_url: str
    script: list[Reply] = field(default_factory=list)
    listed: Any = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    callers: list[tuple[str, int]] = field(default_factory=list)
    """The client's end of each request's connection."""
    list_calls: int = 0
    paths: list[str] = field(default_factory=list)
    embeddings_script: list[Reply] = field(default_factory=list)
    embedding_dimension: int = 8
    under_way: int = 0
    under_way_max: int = 0
    """Most requests that were being answered at once."""

    async def complete(self, request: Request) -> Response:
        """Answers a call to generate with the next reply of the script."""
        await self._note(request)
        reply = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return await reply()

    async def embed(self, request: Request) -> Response:
        """Answers `POST /embeddings`: the first number of a text's vector is its length, the
        last text comes first."""
        body = await self._note(request)
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        try:
            await asyncio.sleep(0.01)
            if self.embeddings_script:
                return await self.embeddings_script.pop(0)()
        finally:
            self.under_way -= 1
        size = body.get("dimensions", self.embedding_dimension)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": [float(len(text)), *[0.5] * (size - 1)],
            }
            for index, text in enumerate(body["input"])
        ]
        usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
        answer = {"object": "list", "model": body["model"], "data": data[::-1], "usage": usage}
        return JSONResponse(answer)

    async def _note(self, request: Request) -> Any:
        body = json.loads(await request.body())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.paths.append(request.url.path)
        if request.client is not None:
            self.callers.append((request.client.host, request.client.port))
        return body

    async def list_models(self, request: Request) -> Response:
        """Answers `GET /models`."""
        self.list_calls += 1
        if self.listed is None:
            return Response("gone", status_code=500)
        return JSONResponse(self.listed)


@asynccontextmanager
async def serve_openai(
    made: Callable[[str], OpenAIServer] = OpenAIServer,
) -> AsyncIterator[OpenAIServer]:
    """Runs a server on a free port of the loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    state = made(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    routes = [
        *(
            Route(f"/v1/{path}", state.complete, methods=["POST"])
            for path in ("chat/completions", "responses", "messages")
        ),
        Route("/v1/embeddings", state.embed, methods=["POST"]),
        Route("/v1/models", state.list_models),
    ]
    config = uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield state
    finally:
        server.should_exit = True
        server.force_exit = True
        await task
        listener.close()


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None) -> dict[str, Any]:
    """A chunk of a stream."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return {**_CHUNK, "choices": [choice]}


def usage_chunk(read: int, written: int) -> dict[str, Any]:
    """The chunk behind the last choice that tells the usage."""
    usage = {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }
    return {**_CHUNK, "choices": [], "usage": usage}


def streamed(
    events: Sequence[dict[str, Any] | str | float], *, is_cut: bool = False, is_done: bool = True
) -> Reply:
    """A stream of events. A number is a pause in seconds, a text is sent as it is.

    `is_cut` ends the connection in the middle of the body.
    """

    async def body() -> AsyncIterator[bytes]:
        for event in events:
            if isinstance(event, float | int):
                await asyncio.sleep(event)
                continue
            data = event if isinstance(event, str) else json.dumps(event)
            kind = event.get("type") if isinstance(event, dict) else None
            named = f"event: {kind}\n" if kind else ""
            yield f"{named}data: {data}\n\n".encode()
        if is_cut:
            raise ConnectionResetError("cut on order")
        if is_done:
            yield b"data: [DONE]\n\n"

    async def reply() -> Response:
        return StreamingResponse(body(), media_type="text/event-stream")

    return reply


def said(*words: str) -> Reply:
    """A whole answer of `words`, with usage 11 in and 5 out."""
    deltas = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": w}) for w in words)]
    return streamed([*deltas, chunk(finish="stop"), usage_chunk(11, 5)])


def refused(status: int, text: str = "refused", **headers: str) -> Reply:
    """An answer with a status other than 200."""

    async def reply() -> Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Response(text, status_code=status, headers=named)

    return reply


def typed(text: str, media_type: str) -> Reply:
    """An answer of status 200 and any content type."""

    async def reply() -> Response:
        return Response(text, media_type=media_type)

    return reply
