"""`/healthz`, `/readyz` and `/metrics` on a port of their own."""

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import orjson
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mesh.sockets import bind_first_free

CONNECTIONS_MAX = 64
_STOP_SECONDS = 2

Readiness = Callable[[], Mapping[str, bool]]
"""Says of each part of the process, by name, whether it is ready."""


class TelemetryServer:
    """Answers probes and scrapes in the running loop.

    `/healthz` answers 200 as long as the loop turns. `/readyz` answers 200 when all
    parts are ready, else 503, and names those that aren't.
    """

    def __init__(self, registry: CollectorRegistry, readiness: Readiness) -> None:
        self._registry = registry
        self._readiness = readiness
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens on `port`, or the next one that is free; returns which it became.

        Raises FailedPrecondition when there is none.
        """
        bound = bind_first_free(host, port)
        application = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
            ]
        )
        self._server = _Server(_config(application))
        self._serving = asyncio.create_task(self._server.serve(sockets=[bound]))
        started = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait({self._serving, started}, return_when=asyncio.FIRST_COMPLETED)
        if self._serving.done():
            started.cancel()
            await self._serving
        number: int = bound.getsockname()[1]
        return number

    async def stop(self) -> None:
        """Closes the port; requests under way have 2 s to end."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await self._serving
        self._server = self._serving = None

    async def _healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> Response:
        waiting = sorted(part for part, ready in self._readiness().items() if not ready)
        body = orjson.dumps({"ready": not waiting, "waiting_for": waiting})
        return Response(body, 503 if waiting else 200, media_type="application/json")

    async def _metrics(self, request: Request) -> Response:
        # Sets the header itself: Starlette would add a second charset.
        headers = {"content-type": CONTENT_TYPE_LATEST}
        return Response(generate_latest(self._registry), headers=headers)


class _Server(uvicorn.Server):
    """Uvicorn inside a process that handles its signals itself."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


def _config(application: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
