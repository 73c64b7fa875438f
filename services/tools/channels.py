"""Connections to the servers of tools, kept open and bounded."""

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from mesh.errors import LimitExceeded
from services.tools.grpc_credentials import ServerAccess


@dataclass(slots=True)
class _Kept:
    channel: grpc.aio.Channel
    calls: int = 0


class Channels:
    """Channels by address and credentials; at most `channels_max` are open.

    Nothing is retried by them: whether a call is repeated is decided by who knows what
    it does to the world.
    """

    def __init__(self, channels_max: int, response_bytes_max: int) -> None:
        self._channels_max = channels_max
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._options = [
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.max_receive_message_length", response_bytes_max),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]

    @asynccontextmanager
    async def use(self, access: ServerAccess) -> AsyncIterator[grpc.aio.Channel]:
        """The channel to a server, kept from being closed while it is used.

        Raises LimitExceeded while `channels_max` other servers are being called.
        """
        kept = self._kept.get(access.key)
        if kept is None:
            evicted = self._evicted()
            kept = self._kept[access.key] = _Kept(self._opened(access))
        else:
            evicted = None
        self._kept.move_to_end(access.key)
        kept.calls += 1
        try:
            if evicted is not None:
                await evicted.close()
            yield kept.channel
        finally:
            kept.calls -= 1

    async def close(self) -> None:
        """Closes all of them."""
        while self._kept:
            _, kept = self._kept.popitem()
            await kept.channel.close()

    def _opened(self, access: ServerAccess) -> grpc.aio.Channel:
        target, options = f"dns:///{access.address}", [*self._options, *access.options]
        if access.credentials is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, access.credentials, options=options)

    def _evicted(self) -> grpc.aio.Channel | None:
        """Takes the channel out that was used longest ago, if there is no place."""
        if len(self._kept) < self._channels_max:
            return None
        for key, kept in self._kept.items():
            if not kept.calls:
                del self._kept[key]
                return kept.channel
        raise LimitExceeded(f"at most {self._channels_max} tool servers are called at once")
