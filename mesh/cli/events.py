"""`weft events`: what is committed, as it is committed."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.attaching import Stream, reattached
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.contracts import event_type
from mesh.cli.failures import usage_error
from mesh.cli.health import health
from mesh.cli.inputs import parse_since
from mesh.cli.names import AGENT, SESSION, resource_name
from mesh.cli.output import Output, show_item
from mesh.cli.summaries import event_row

if TYPE_CHECKING:
    from weft.events.v1 import events_pb2
    from weft.state.v1 import state_service_pb2

events = typer.Typer(help="Follow the log of events.", no_args_is_help=True)


@command(events, "tail", example="weft events tail librarian --since 10m --type TurnCompleted")
def tail_events(
    client: Client,
    name: Annotated[
        str | None,
        typer.Argument(help="AGENT, AGENT/SESSION or a full name; else the whole tenant."),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help="Only this type, in full or without its package; repeatable."),
    ] = None,
    after_position: Annotated[
        int | None, typer.Option(help="Begin behind this position.", min=0)
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Begin at this time (RFC 3339) or that long ago: 90s, 1h30m.")
    ] = None,
    from_start: Annotated[bool, typer.Option("--all", help="Begin with the first event.")] = False,
    count: Annotated[
        int | None, typer.Option("-n", "--count", help="Leave after this many events.", min=1)
    ] = None,
) -> None:
    """Prints events as they are committed, from now on unless a beginning is named.

    A lost connection is attached again behind the last event, so that none is missing or
    printed twice. Ends with Ctrl-C, with --count, or with --timeout (which exits 124).
    """
    request = _request(client, name, types or [])
    if sum([after_position is not None, since is not None, from_start]) > 1:
        raise usage_error("give one of --after-position, --since and --all")
    if after_position is not None or from_start:
        request.after_position = after_position or 0
    if since is not None:
        request.start_time.FromDatetime(parse_since(since))
    # No server at all is said at once, instead of after all tries to attach.
    health(client)
    for number, response in enumerate(EventTail(client, request).responses(), start=1):
        if client.output is Output.TABLE:
            sys.stdout.write(event_row(response.event) + "\n")
            sys.stdout.flush()
        else:
            show_item(client.output, response.event)
        if number == count:
            return


class EventTail:
    """A watch of events that goes on behind the last one it saw."""

    def __init__(self, client: Client, request: "state_service_pb2.WatchEventsRequest") -> None:
        self._client = client
        self._request = request
        self._last: events_pb2.RecordedEvent | None = None

    def responses(self) -> "Iterator[state_service_pb2.WatchEventsResponse]":
        """The events, each once, without end."""
        for response in reattached(self._client, self._open):
            if not self._seen(response.event):
                self._last = response.event
                yield response

    def _open(self, seconds: float) -> "Stream[state_service_pb2.WatchEventsResponse]":
        from weft.state.v1.state_service_pb2_grpc import StateServiceStub

        stub: StateServiceStub = self._client.stub(StateServiceStub)
        stream = stub.WatchEvents(self._request_from_here(), timeout=seconds)
        if self._request.WhichOneof("start") is None:
            # Should this stream be lost before it gave an event, the next one begins at
            # this moment, so that what came in between isn't missed.
            self._request.start_time.FromDatetime(datetime.now(UTC))
        return stream

    def _request_from_here(self) -> "state_service_pb2.WatchEventsRequest":
        if self._last is not None:
            # A position is a commit's, and the stream may have been lost between two of
            # its events: begin before the commit and pass over those that were seen.
            self._request.after_position = max(self._last.position - 1, 0)
        return self._request

    def _seen(self, event: "events_pb2.RecordedEvent") -> bool:
        last = self._last
        return last is not None and (event.position, event.revision) <= (
            last.position,
            last.revision,
        )


def _request(
    client: Client, name: str | None, types: list[str]
) -> "state_service_pb2.WatchEventsRequest":
    from weft.state.v1 import state_service_pb2 as pb

    return pb.WatchEventsRequest(
        name=_watched_name(client, name), types=[event_type(text) for text in types]
    )


def _watched_name(client: Client, name: str | None) -> str:
    if name is None:
        return client.parent
    if name.startswith("tenants/") and name.count("/") == 1:
        return name
    kind = SESSION if name.count("/") in (1, 5) else AGENT
    return resource_name(name, kind, client)
