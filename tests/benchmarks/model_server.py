"""A model's endpoint for the benchmark: `python -m tests.benchmarks.model_server`. Prints its
address. It answers Chat Completions with a stream of WORDS words, and with a pause of
PAUSE_SECONDS before the first where the model is called `slow`; embeddings at once."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.support.openai_server import chunk, usage_chunk
from tests.support.processes import end_with_parent

WORDS = 20
PAUSE_SECONDS = 0.05

_EVENTS = [
    chunk({"role": "assistant", "content": ""}),
    *(chunk({"content": f"word{number} "}) for number in range(WORDS)),
    chunk(finish="stop"),
    usage_chunk(11, WORDS),
]
_SENT = [f"data: {json.dumps(event)}\n\n".encode() for event in _EVENTS] + [b"data: [DONE]\n\n"]


async def complete(request: Request) -> Response:
    """Answers a call."""
    body = json.loads(await request.body())

    async def events() -> AsyncIterator[bytes]:
        if body["model"] == "slow":
            await asyncio.sleep(PAUSE_SECONDS)
        for sent in _SENT:
            yield sent

    return StreamingResponse(events(), media_type="text/event-stream")


def main() -> None:
    """See the module."""
    end_with_parent()
    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio sets it only on sockets made with TCP's number. Without it a call waits 40 ms for
    # a delayed acknowledgement, which hid what is to be measured.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    routes = [Route("/v1/chat/completions", complete, methods=["POST"])]
    config = uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off")
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
