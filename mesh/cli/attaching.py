"""Streams that outlive their connection."""

import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed, ExitCode, ServerLeft, was_lost
from mesh.cli.output import note

if TYPE_CHECKING:
    import grpc

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

STREAM_SECONDS = 86_400.0
"""Deadline of one stream where no --timeout is given: the longest that a turn may run."""

LOSSES_MAX = 10
"""Streams in a row that may be lost without giving anything."""

DELAY_SECONDS_FIRST = 0.2
DELAY_SECONDS_MAX = 3.0
STEADY_SECONDS = 30.0
"""A stream that held this long was a good one, even if nothing happened in it."""


class Stream(Protocol[T_co]):
    """What a streaming method of a generated stub returns."""

    def __iter__(self) -> Iterator[T_co]: ...

    def cancel(self) -> bool: ...


def reattached(client: Client, open_stream: Callable[[float], Stream[T]]) -> Iterator[T]:
    """What a stream gives; when it is lost or ends, what another one gives, without end.

    `open_stream` gets the deadline in seconds and opens a stream behind what was seen so
    far. A server that ended is looked for where it left its address: who starts in its
    place is attached to. Between tries the delay doubles, with jitter. Raises the RpcError
    that refuses a stream, and the last error once LOSSES_MAX streams in a row gave nothing.
    """
    losses = 0
    while True:
        lost: grpc.RpcError | ServerLeft | None = None
        stream: Stream[T] | None = None
        began = time.monotonic()
        try:
            stream = open_stream(client.remaining_seconds(STREAM_SECONDS))
            for item in stream:
                losses = 0
                yield item
        except (_rpc_error(), ServerLeft) as error:
            lost = error
        finally:
            if stream is not None:
                stream.cancel()
        if time.monotonic() - began > STEADY_SECONDS:
            losses = 0
        losses += 1
        _wait(client, losses, lost)


def _wait(client: Client, losses: int, lost: "grpc.RpcError | ServerLeft | None") -> None:
    """Waits before the next try; raises what ended the stream if there is to be none."""
    remaining = client.remaining_seconds(STREAM_SECONDS)
    if lost is not None and not was_lost(lost):
        raise lost
    if losses > LOSSES_MAX:
        if lost is not None:
            raise lost
        raise CommandFailed(
            "the server ends the stream again and again", exit_code=ExitCode.UNAVAILABLE
        )
    if lost is not None:
        # The channel that lost its server tries it again only much later.
        client.reconnect()
        what = "The connection is lost; attaching again"
        if isinstance(lost, ServerLeft):
            what = "The server has ended; looking for one in its place"
        note(f"{what} ({losses} of {LOSSES_MAX}).")
    delay = min(DELAY_SECONDS_FIRST * 2 ** (losses - 1), DELAY_SECONDS_MAX)
    time.sleep(min(delay * random.uniform(0.75, 1.25), remaining))


def _rpc_error() -> "type[grpc.RpcError]":
    import grpc

    return grpc.RpcError
