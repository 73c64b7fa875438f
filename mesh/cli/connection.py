"""The connection of one command to the server."""

import os
import time
from collections.abc import Callable
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from mesh.cli.address import Address
from mesh.cli.failures import CommandFailed, ExitCode, from_rpc_error
from mesh.cli.output import Output

if TYPE_CHECKING:
    import grpc

S = TypeVar("S")
Q_contra = TypeVar("Q_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
Q = TypeVar("Q")
R = TypeVar("R")

CALL_SECONDS = 30.0
"""Deadline of a unary call where no --timeout is given."""

RECEIVE_BYTES_MAX = 64 * 1024 * 1024

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    # A server that is killed and started again is found again at once, and one that
    # vanished without a word is noticed.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name, also how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class UnaryMethod(Protocol[Q_contra, R_co]):
    """A method of a generated stub that answers once."""

    def __call__(self, request: Q_contra, /, timeout: float | None = None) -> R_co: ...


class Client:
    """The server, as one command sees it.

    `parent` is `tenants/{tenant}`. `timeout_seconds`, where given, bounds the whole
    command from here on. As a context manager it closes the channel, and turns the
    error of an RPC into the CommandFailed that says it in words.
    """

    def __init__(
        self, address: Address, parent: str, output: Output, timeout_seconds: float | None
    ) -> None:
        self.address = address
        self.parent = parent
        self.output = output
        self.timeout_seconds = timeout_seconds
        self._end = None if timeout_seconds is None else time.monotonic() + timeout_seconds

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        if "channel" not in self.__dict__:
            return False
        import grpc

        self.channel.close()
        if isinstance(error, grpc.RpcError):
            raise from_rpc_error(error, self.address.target) from error
        return False

    @cached_property
    def channel(self) -> "grpc.Channel":
        """The channel to the server; it connects with its first call."""
        # gRPC's own log would write lines about lost connections between ours.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import grpc

        options = [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not self.address.is_loopback))]
        return grpc.insecure_channel(self.address.target, options=options)

    def reconnect(self) -> None:
        """Gives the next stub a connection of its own; this one is closed."""
        if "channel" in self.__dict__:
            self.channel.close()
            del self.channel

    def stub(self, stub_class: Callable[[Any], S]) -> S:
        """A generated stub on this connection."""
        return stub_class(self.channel)

    def call(self, method: UnaryMethod[Q, R], request: Q, seconds: float = CALL_SECONDS) -> R:
        """Calls a unary method; `seconds` is its deadline where no --timeout is given."""
        return method(request, timeout=self.remaining_seconds(seconds))

    def remaining_seconds(self, default: float) -> float:
        """What is left of --timeout, or `default` where none is given. CommandFailed once
        nothing is left."""
        if self._end is None:
            return default
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise CommandFailed(
                f"not done within {self.timeout_seconds:g} s", exit_code=ExitCode.DEADLINE
            )
        return remaining

    def extend(self, seconds: float) -> None:
        """Gives a command with a --timeout that many seconds more."""
        if self._end is not None:
            self._end += seconds
