"""The RPCs of budgets."""

from typing import TYPE_CHECKING

from mesh.call import Call
from mesh.clock import Clock
from mesh.errors import InvalidArgument, LimitExceeded
from mesh.events.aggregate import Repository
from mesh.ids import new_id
from mesh.rpc.pages import read_page_token, write_page_token
from mesh.runtime.requests import request_hash
from services.models import domain
from services.models.budgets.known import KnownBudgets
from services.models.budgets.usage import UsageRecorder
from weft.models.v1 import budget_service_pb2 as pb
from weft.models.v1 import budgets_pb2

if TYPE_CHECKING:
    from mesh.events.aggregate import Aggregate

PAGE_SIZE = 100
BUDGETS_MAX = 1_000
"""Budgets of one tenant; about, where several are made at once."""
OF_ONE_SCOPE_MAX = 8
"""Budgets of one and the same scope: each call is charged to all of them."""


class BudgetRpcs:
    """`weft.models.v1.BudgetService`."""

    def __init__(
        self,
        known: KnownBudgets,
        repository: Repository[domain.State],
        recorder: UsageRecorder,
        clock: Clock,
    ) -> None:
        self._known = known
        self._repository = repository
        self._recorder = recorder
        self._clock = clock

    async def set_budget(self, request: pb.SetBudgetRequest, call: Call) -> pb.SetBudgetResponse:
        """Makes or changes a budget; this instance heeds it once it is answered."""
        command = domain.SetBudget(
            _request(request, call),
            request.scope,
            request.limit,
            request.window,
            request.requires_prices,
        )
        self._check_room(request)
        return pb.SetBudgetResponse(budget=await self._change(command))

    async def delete_budget(
        self, request: pb.DeleteBudgetRequest, call: Call
    ) -> pb.DeleteBudgetResponse:
        """Deletes a budget."""
        await self._change(domain.DeleteBudget(_request(request, call)))
        return pb.DeleteBudgetResponse()

    async def get_budget(self, request: pb.GetBudgetRequest, call: Call) -> pb.GetBudgetResponse:
        """The budget, now."""
        state = await self._open(request.name).load()
        domain.refuse_absent(state, request.name)
        return pb.GetBudgetResponse(budget=domain.view(state, self._clock.now_ns()))

    async def list_budgets(
        self, request: pb.ListBudgetsRequest, call: Call
    ) -> pb.ListBudgetsResponse:
        """A page of the budgets, by name."""
        await self._known.catch_up()
        after = read_page_token(request.page_token, request.parent)
        size = request.page_size or PAGE_SIZE
        found = sorted(
            (each for each in self._known.states(request.parent) if each.budget.name > after),
            key=lambda state: state.budget.name,
        )
        now_ns = self._clock.now_ns()
        response = pb.ListBudgetsResponse(
            budgets=[domain.view(state, now_ns) for state in found[:size]]
        )
        if len(found) > size:
            last = found[size - 1].budget.name
            response.next_page_token = write_page_token(last, request.parent)
        return response

    async def get_usage(self, request: pb.GetUsageRequest, call: Call) -> pb.GetUsageResponse:
        """A page of what was used; what this instance counted by now is in it."""
        if request.scope and domain.parent_of(request.scope) != request.parent:
            raise InvalidArgument.of("scope", f"must be in {request.parent}")
        await self._recorder.record()
        of = f"{request.parent} {request.group_by}"
        after = read_page_token(request.page_token, of) if request.page_token else None
        size = request.page_size or PAGE_SIZE
        rows = await self._known.read_model.usage(request, after, size + 1)
        response = pb.GetUsageResponse(rows=[row.entry for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = write_page_token(rows[size - 1].key, of)
        return response

    def _check_room(self, request: pb.SetBudgetRequest) -> None:
        parent = domain.parent_of(request.name)
        if self._known.find(request.name) is not None:
            return
        if sum(1 for _ in self._known.states(parent)) >= BUDGETS_MAX:
            raise LimitExceeded(f"there are {BUDGETS_MAX} budgets of {parent} already")
        scope = request.scope or parent
        if self._known.count(scope) >= OF_ONE_SCOPE_MAX:
            raise LimitExceeded(f"there are {OF_ONE_SCOPE_MAX} budgets of {scope} already")

    async def _change(self, command: domain.Change) -> budgets_pb2.Budget:
        request = command.request
        aggregate = self._open(request.name)
        await aggregate.execute(lambda state: domain.decide(state, command), request_id=request.id)
        state = (await aggregate.acknowledged()).state
        await self._known.catch_up()
        return domain.view(state, self._clock.now_ns())

    def _open(self, name: str) -> "Aggregate[domain.State]":
        return self._repository.open(domain.budget_stream(name))


def _request(request: pb.SetBudgetRequest | pb.DeleteBudgetRequest, call: Call) -> domain.Request:
    return domain.Request(
        name=request.name,
        id=request.request_id or new_id(),
        hash=request_hash(request),
        actor=call.actor,
        etag=request.etag,
    )
