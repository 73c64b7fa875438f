"""Budgets on a log in memory: the real ones, of one process or of several on one log."""

import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesh.call import Call
from mesh.clock import SYSTEM, Clock
from mesh.events.aggregate import Repository
from mesh.events.memory import MemoryEventStore
from mesh.ids import new_id
from services.models.budgets.budgets import Budgets
from services.models.domain import BUDGET_FOLD, USAGE_FOLD, Price
from tests.support.keys import memory_keyring
from weft.models.v1 import budget_service_pb2 as pb
from weft.models.v1 import budgets_pb2

PARENT = "tenants/acme"
TOTAL = budgets_pb2.BUDGET_WINDOW_TOTAL


def memory_budgets(
    events: MemoryEventStore | None = None,
    prices: Mapping[str, Price] | None = None,
    *,
    clock: Clock = SYSTEM,
    wait_seconds: float = 0.0,
) -> Budgets:
    """Those of a process of its own; they are to be started."""
    store: Any = events or MemoryEventStore()
    folder = tempfile.TemporaryDirectory()
    budgets = Budgets(
        store,
        Repository(store, BUDGET_FOLD, clock=clock),
        Repository(store, USAGE_FOLD, clock=clock),
        Path(folder.name),
        memory_keyring(),
        (prices or {}).get,
        instance=new_id(),
        clock=clock,
        wait_seconds=wait_seconds,
    )
    weakref.finalize(budgets, folder.cleanup)
    return budgets


def limit(micro_usd: int | None = None, tokens: int | None = None) -> budgets_pb2.Amount:
    """A limit; what isn't given isn't limited."""
    return budgets_pb2.Amount(micro_usd=micro_usd, tokens=tokens)


async def set_budget(
    budgets: Budgets,
    amount: budgets_pb2.Amount,
    call: Call,
    *,
    budget: str = "b",
    parent: str = PARENT,
    **fields: Any,
) -> budgets_pb2.Budget:
    """Sets a tenant's budget of that id: of all time, unless `window` says more."""
    request = pb.SetBudgetRequest(
        name=f"{parent}/budgets/{budget}", limit=amount, **{"window": TOTAL, **fields}
    )
    return (await budgets.rpcs.set_budget(request, call)).budget


def unnoticed(is_sent: bool) -> None:
    """For calls of providers that nobody charges."""
