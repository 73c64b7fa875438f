"""An HTTP server in the running loop, which stops in order."""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from mesh.sockets import bind_first_free

CONNECTIONS_MAX = 64
STOP_SECONDS = 2


class HttpServer:
    """Serves an application; with `encryption` over TLS. Requests beyond `connections_max`
    connections are answered 503."""

    def __init__(
        self,
        application: ASGIApp,
        encryption: ssl.SSLContext | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self._config = uvicorn.Config(
            application,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=connections_max,
            timeout_graceful_shutdown=STOP_SECONDS,
            ssl_context_factory=(lambda config, make: encryption) if encryption else None,
        )
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens on `port`, or the next one that is free; returns which it became.

        Raises FailedPrecondition when there is none.
        """
        bound = bind_first_free(host, port)
        self._server = _Server(self._config)
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
