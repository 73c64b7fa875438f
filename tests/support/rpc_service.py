"""A small service of two real contracts: collections in memory, and turns that count."""

import asyncio
from collections.abc import AsyncGenerator, Mapping

from mesh.call import Call, current_call
from mesh.errors import AlreadyExists, NotFound, TurnInProgress
from weft.agents.v1 import turn_pb2, turn_service_pb2
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb


class MemoryVectors:
    """Part of VectorService: the methods that it lacks are unimplemented."""

    def __init__(self) -> None:
        self.collections: dict[str, collections_pb2.Collection] = {}
        self.calls: list[Call] = []

    async def create_collection(
        self, request: pb.CreateCollectionRequest, call: Call
    ) -> pb.CreateCollectionResponse:
        name = f"{request.parent}/collections/{request.collection_id}"
        if name in self.collections:
            raise AlreadyExists(f"{name} is there", metadata={"resource": name})
        collection = collections_pb2.Collection(name=name, description=request.description)
        self.collections[name] = collection
        return pb.CreateCollectionResponse(collection=collection)

    async def get_collection(
        self, request: pb.GetCollectionRequest, call: Call
    ) -> pb.GetCollectionResponse:
        assert current_call.get() is call
        self.calls.append(call)
        collection = self.collections.get(request.name)
        if collection is None:
            raise NotFound.of("collection", request.name)
        return pb.GetCollectionResponse(collection=collection)

    async def search(self, request: pb.SearchRequest, call: Call) -> pb.SearchResponse:
        """Does what the query says, to show each way in which a handler can end."""
        if request.query == "fault":
            raise RuntimeError("password=hunter2")
        if request.query == "cancelled inside":
            waiting = asyncio.ensure_future(asyncio.sleep(60))
            waiting.cancel()
            await waiting
        if request.query == "inner timeout":
            async with asyncio.timeout(0):
                await asyncio.sleep(60)
        if request.query == "slow":
            await asyncio.sleep(60)
        return pb.SearchResponse()


class CountingTurns:
    """Part of TurnService: RunTurn sends one message per word of its input."""

    def __init__(self) -> None:
        self.calls: list[Call | None] = []
        self.closed = asyncio.Event()

    async def run_turn(
        self, request: turn_service_pb2.RunTurnRequest, call: Call
    ) -> AsyncGenerator[turn_service_pb2.RunTurnResponse, None]:
        try:
            for word in request.input.split():
                self.calls.append(current_call.get())
                if word == "busy":
                    raise TurnInProgress("a turn runs", retry_seconds=2)
                if word == "fault":
                    raise RuntimeError("password=hunter2")
                if word == "wait":
                    await asyncio.sleep(60)
                yield turn_service_pb2.RunTurnResponse(
                    events=[turn_pb2.TurnEvent(token=turn_pb2.TurnEvent.Token(text=word))]
                )
        finally:
            self.calls.append(current_call.get())
            self.closed.set()


class SmallService:
    """What the tests serve on both paths."""

    def __init__(self) -> None:
        self.vectors = MemoryVectors()
        self.turns = CountingTurns()

    @property
    def handlers(self) -> Mapping[str, object]:
        return {
            "weft.vectors.v1.VectorService": self.vectors,
            "weft.agents.v1.TurnService": self.turns,
        }
