"""Connections to the servers of tools, kept open and bounded."""

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from mesh.errors import LimitExceeded


@dataclass(slots=True)
class _Kept:
    channel: grpc.aio.Channel
    calls: int = 0


class Channels:
    """Channels by address, in plain text; at most `channels_max` are open.

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
    async def use(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        """The channel to `address`, kept from being closed while it is used.

        Raises LimitExceeded while `channels_max` other servers are being called.
        """
        kept = self._kept.get(address)
        if kept is None:
            evicted = self._evicted()
            channel = grpc.aio.insecure_channel(f"dns:///{address}", options=self._options)
            kept = self._kept[address] = _Kept(channel)
        else:
            evicted = None
        self._kept.move_to_end(address)
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

    def _evicted(self) -> grpc.aio.Channel | None:
        """Takes the channel out that was used longest ago, if there is no place."""
        if len(self._kept) < self._channels_max:
            return None
        for address, kept in self._kept.items():
            if not kept.calls:
                del self._kept[address]
                return kept.channel
        raise LimitExceeded(f"at most {self._channels_max} tool servers are called at once")
