"""Following one turn to its end, over as many connections as it takes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mesh.cli.attaching import Stream, reattached
from mesh.cli.connection import Client

if TYPE_CHECKING:
    from weft.agents.v1 import turn_pb2, turn_service_pb2

FINAL_EVENTS = ("completed", "failed", "cancelled")


class TurnFollower:
    """The events of one turn, each once, in their order.

    Begins with RunTurn where there is a request, else with WatchTurn of `turn`. Until the
    turn is accepted a lost connection repeats the request, whose request_id makes that
    harmless; from then on it is watched from the last offset seen.
    """

    def __init__(
        self,
        client: Client,
        *,
        run: "turn_service_pb2.RunTurnRequest | None" = None,
        turn: str = "",
    ) -> None:
        self._client = client
        self._run = run
        self._offset: turn_pb2.TurnOffset | None = None
        self.turn = turn
        """The turn's name; empty until it is accepted."""

    def events(self) -> "Iterator[turn_pb2.TurnEvent]":
        """The events until the final one. CommandFailed or RpcError once it can't go on."""
        for response in reattached(self._client, self._open):
            for event in response.events:
                if event.HasField("offset"):
                    self._offset = event.offset
                if event.WhichOneof("event") == "accepted":
                    self.turn = event.accepted.turn
                yield event
                if event.WhichOneof("event") in FINAL_EVENTS:
                    return

    def _open(
        self, seconds: float
    ) -> "Stream[turn_service_pb2.RunTurnResponse | turn_service_pb2.WatchTurnResponse]":
        from weft.agents.v1 import turn_service_pb2
        from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub

        turns: TurnServiceStub = self._client.stub(TurnServiceStub)
        if self._run is not None and not self.turn:
            return turns.RunTurn(self._run, timeout=seconds)
        request = turn_service_pb2.WatchTurnRequest(name=self.turn, offset=self._offset)
        return turns.WatchTurn(request, timeout=seconds)
