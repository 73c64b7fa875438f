"""Clients of Redis or Valkey that never keep a caller waiting for long.

The library takes 0.13 s and 8 MB to import, so it is imported with the first client.
"""

import asyncio
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from redis.asyncio import Redis

_log = structlog.get_logger(__name__)
CALL_SECONDS_MAX = 0.2
CONNECTIONS_MAX = 16


def client_of_socket(socket: Path, user: str, password: Callable[[], str]) -> "Redis":
    """A client of the server at a unix socket; `password` is asked at each connect."""
    from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection

    pool = BlockingConnectionPool(
        connection_class=UnixDomainSocketConnection,
        path=str(socket),
        credential_provider=_credentials(user, password),
        **_bounds(),
    )
    return Redis.from_pool(pool)


def client_of_url(url: str, password_file: Path | None) -> "Redis":
    """A client of the server at `url`; the password in the file wins over one in it.
    ValueError where it isn't a URL of Redis."""
    from redis.asyncio import BlockingConnectionPool, Redis

    pool = BlockingConnectionPool.from_url(url, **_bounds())
    if password_file is not None:
        user = pool.connection_kwargs.pop("username", None) or "default"
        pool.connection_kwargs.pop("password", None)
        provider = _credentials(user, lambda: password_file.read_text().strip())
        pool.connection_kwargs["credential_provider"] = provider
    return Redis.from_pool(pool)


class LazyRedis:
    """A client that is made, once it is asked for, beside the event loop: importing the
    library would hold that up."""

    def __init__(self, make: Callable[[], "Redis"]) -> None:
        self._make = make
        self._client: Redis | None = None
        self._making: asyncio.Task[None] | None = None

    def client(self) -> "Redis | None":
        """The client; None until it is made, and where it can't be."""
        if self._making is None:
            self._making = asyncio.create_task(self._load(), name="redis client")
        return self._client

    async def close(self) -> None:
        """Ends its connections."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait({self._making})
        if self._client is not None:
            await self._client.aclose()

    async def _load(self) -> None:
        await asyncio.to_thread(importlib.import_module, "redis.asyncio")
        try:
            self._client = self._make()
        except ValueError as error:
            # Not with its text: the URL may hold a password.
            _log.error("redis_url_unusable", error=type(error).__name__)


def _bounds() -> dict[str, Any]:
    """One attempt, and 0.2 s for each of: a free connection, connecting, an answer."""
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.maint_notifications import MaintNotificationsConfig

    return {
        "max_connections": CONNECTIONS_MAX,
        "timeout": CALL_SECONDS_MAX,
        "socket_timeout": CALL_SECONDS_MAX,
        "socket_connect_timeout": CALL_SECONDS_MAX,
        "retry": Retry(NoBackoff(), 0),
        # It would ask for commands that our user hasn't.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _credentials(user: str, password: Callable[[], str]) -> Any:
    from redis.credentials import CredentialProvider

    class Current(CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            return user, password()

        async def get_credentials_async(self) -> tuple[str, str]:
            return user, password()

    return Current()
