"""The RPCs of splits."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from typing import TYPE_CHECKING

from mesh.call import Call
from mesh.control.registry import Registry
from mesh.errors import InvalidArgument, LimitExceeded, NotFound
from mesh.events.aggregate import Aggregate, Repository
from mesh.events.requests import came_before
from mesh.events.store import EventStore
from mesh.ids import new_id
from mesh.rpc.pages import read_page_token, write_page_token
from mesh.runtime.requests import request_hash
from services.control import domain
from services.control.rollbacks import Rollbacks, running_versions
from services.control.splits import Splits
from weft.agents.v1 import agent_service_pb2
from weft.control.v1 import splits_pb2
from weft.control.v1 import traffic_service_pb2 as pb

if TYPE_CHECKING:
    from mesh.clock import Clock
    from weft.agents.v1.agent_service_pb2_grpc import AgentServiceAsyncStub

PAGE_SIZE = 100
WATCH_SPLITS_MAX = 100
"""Splits in one message of a watch."""
SPLITS_MAX = 1_000
"""Splits of one tenant's agents; about, where several are made at once."""
Change = pb.SetSplitRequest | pb.PromoteRequest | pb.RollbackRequest


class Traffic:
    """`weft.control.v1.TrafficService`. `services` are those that may be split."""

    def __init__(
        self,
        events: EventStore,
        repository: Repository[domain.State],
        registry: Registry,
        agents: "AgentServiceAsyncStub",
        services: Collection[str],
        clock: "Clock",
    ) -> None:
        self._splits = Splits(events)
        self._repository = repository
        self._registry = registry
        self._agents = agents
        self._services = frozenset(services)
        self._rollbacks = Rollbacks(self._splits, repository, registry, clock)
        self._watchers: set[_Watcher] = set()
        self._splits.on_change(self._tell)

    async def start(self) -> None:
        """Reads all splits, then takes back what fails too often. Raises
        EventStoreUnavailable, DataDamaged."""
        await self._splits.start()
        self._rollbacks.start()

    async def stop(self) -> None:
        """Ends both."""
        await self._rollbacks.stop()
        await self._splits.stop()

    async def set_split(self, request: pb.SetSplitRequest, call: Call) -> pb.SetSplitResponse:
        """Sets the portions, once it is known that they can take calls."""
        made = _request(request, call)
        policy = request.rollback_policy if request.HasField("rollback_policy") else None
        state = await self._open(request.name).load()
        if not came_before(state.requests, made.id, made.hash):
            self._check_room(request.name, state)
            await self._check_there(request)
        command = domain.SetSplit(made, request.portions, policy)
        return pb.SetSplitResponse(split=await self._change(command))

    async def promote(self, request: pb.PromoteRequest, call: Call) -> pb.PromoteResponse:
        """Gives all to one portion."""
        made = _request(request, call)
        running = self._running(request)
        command = domain.Promote(made, request.version, request.agent_revision, running)
        return pb.PromoteResponse(split=await self._change(command))

    async def rollback(self, request: pb.RollbackRequest, call: Call) -> pb.RollbackResponse:
        """Goes back."""
        command = domain.RollBack(_request(request, call), self._running(request))
        return pb.RollbackResponse(split=await self._change(command))

    async def get_split(self, request: pb.GetSplitRequest, call: Call) -> pb.GetSplitResponse:
        """The split, now."""
        state = await self._open(request.name).load()
        if not state.revision:
            raise NotFound.of("split", request.name)
        return pb.GetSplitResponse(split=state.split)

    async def list_splits(self, request: pb.ListSplitsRequest, call: Call) -> pb.ListSplitsResponse:
        """A page of the splits, by name."""
        await self._splits.catch_up()
        after = read_page_token(request.page_token, request.parent)
        size = request.page_size or PAGE_SIZE
        found = [split for split in self._under(request.parent) if split.name > after]
        response = pb.ListSplitsResponse(splits=found[:size])
        if len(found) > size:
            response.next_page_token = write_page_token(found[size - 1].name, request.parent)
        return response

    async def watch_splits(
        self, request: pb.WatchSplitsRequest, call: Call
    ) -> AsyncIterator[pb.WatchSplitsResponse]:
        """All splits, then those that change. A slow reader gets of each the last state."""
        await self._splits.catch_up()
        watcher = _Watcher(request.parent)
        self._watchers.add(watcher)
        try:
            for split in self._under(request.parent):
                watcher.tell(split)
            # That there is none is told, too.
            yield watcher.take()
            while True:
                await watcher.woken.wait()
                yield watcher.take()
        finally:
            self._watchers.discard(watcher)

    def _under(self, parent: str) -> list[splits_pb2.Split]:
        found = (state.split for state in self._splits)
        return sorted(
            (split for split in found if domain.parent_of(split.name) == parent),
            key=lambda split: split.name,
        )

    def _tell(self, splits: Sequence[splits_pb2.Split]) -> None:
        for watcher in self._watchers:
            for split in splits:
                watcher.tell(split)

    def _open(self, name: str) -> Aggregate[domain.State]:
        return self._repository.open(domain.split_stream(name))

    async def _change(self, command: domain.Change) -> splits_pb2.Split:
        request = command.request
        aggregate = self._open(request.name)
        await aggregate.execute(lambda state: domain.decide(state, command), request_id=request.id)
        return (await aggregate.acknowledged()).state.split

    def _running(self, request: pb.PromoteRequest | pb.RollbackRequest) -> frozenset[str] | None:
        """The versions that calls may be given to; None for any."""
        service = domain.service_of(request.name)
        if request.allow_absent or not service:
            return None
        return running_versions(self._registry, service)

    def _check_room(self, name: str, state: domain.State) -> None:
        parent = domain.parent_of(name)
        if not state.revision and len(self._under(parent)) >= SPLITS_MAX:
            raise LimitExceeded(f"there are {SPLITS_MAX} splits of {parent} already")

    async def _check_there(self, request: pb.SetSplitRequest) -> None:
        """Raises NotFound where the service or the agent isn't there, FailedPrecondition where
        a version isn't, InvalidArgument where a revision isn't."""
        service = domain.service_of(request.name)
        if not service:
            await self._check_revisions(request)
        elif service not in self._services:
            raise NotFound.of("service", f"services/{service}")
        elif not request.allow_absent:
            # One without a version is refused by the domain.
            taking = (each.version for each in request.portions if each.weight and each.version)
            running = running_versions(self._registry, service)
            domain.check_running(request.name, frozenset(taking), running)

    async def _check_revisions(self, request: pb.SetSplitRequest) -> None:
        wanted = agent_service_pb2.GetAgentRequest(name=domain.agent_of(request.name))
        latest = (await self._agents.GetAgent(wanted)).agent.revision
        for index, portion in enumerate(request.portions):
            if portion.agent_revision > latest:
                raise InvalidArgument.of(
                    f"portions[{index}].agent_revision", f"the latest revision is {latest}"
                )


class _Watcher:
    """What one stream is still to be told: of each split its last state."""

    def __init__(self, parent: str) -> None:
        self.woken = asyncio.Event()
        self._parent = parent
        self._untold: dict[str, splits_pb2.Split] = {}

    def tell(self, split: splits_pb2.Split) -> None:
        """Has it told with the next message."""
        if domain.parent_of(split.name) == self._parent:
            self._untold[split.name] = split
            self.woken.set()

    def take(self) -> pb.WatchSplitsResponse:
        """The next message."""
        names = list(self._untold)[:WATCH_SPLITS_MAX]
        response = pb.WatchSplitsResponse(splits=[self._untold.pop(name) for name in names])
        if not self._untold:
            self.woken.clear()
        return response


def _request(request: Change, call: Call) -> domain.Request:
    return domain.Request(
        name=request.name,
        id=request.request_id or new_id(),
        hash=request_hash(request),
        actor=call.actor,
        reason=request.reason,
        etag=request.etag,
    )
