"""A channel whose calls carry an API key."""

from collections.abc import Callable
from typing import Any

import grpc.aio

from mesh.cli.clusters import ClusterFile
from mesh.private_files import config_folder


def is_known(cluster: str) -> bool:
    """Whether the key of the first administrator of that deployment is written."""
    return ClusterFile(config_folder() / "clusters").find(cluster=cluster) is not None


def key_of(cluster: str) -> str:
    """The API key of the first administrator of a deployment that was started here."""
    key = ClusterFile(config_folder() / "clusters").find(cluster=cluster)
    assert key is not None, f"no key of the cluster {cluster}"
    return key


def bearer(key: str) -> tuple[str, str]:
    """The metadata that carries a key or token."""
    return ("authorization", f"Bearer {key}")


class KeyedChannel:
    """Stands where generated stubs want a `grpc.aio.Channel`."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.bare = channel
        self.key = key

    def unary_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._keyed(self.bare.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._keyed(self.bare.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._keyed(self.bare.stream_unary(*arguments, **options))

    def stream_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._keyed(self.bare.stream_stream(*arguments, **options))

    async def close(self, grace: float | None = None) -> None:
        """Closes the connection."""
        await self.bare.close(grace)

    def _keyed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, metadata: Any = None, **options: Any) -> Any:
            sent = (*(metadata or ()), bearer(self.key))
            return method(*arguments, metadata=sent, **options)

        return call
