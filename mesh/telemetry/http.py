"""`/healthz`, `/readyz` and `/metrics` on a port of their own."""

from collections.abc import Callable, Mapping

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mesh.http_server import HttpServer

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
        application = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
            ]
        )
        self._server = HttpServer(application)

    async def start(self, host: str, port: int) -> int:
        """Listens on `port`, or the next one that is free; returns which it became.

        Raises FailedPrecondition when there is none.
        """
        return await self._server.start(host, port)

    async def stop(self) -> None:
        """Closes the port; requests under way have 2 s to end."""
        await self._server.stop()

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
