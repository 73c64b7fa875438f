"""`weft budget` and `weft usage`: what calls of models may cost, and what they did."""

import re
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import usage_error
from mesh.cli.inputs import parse_since
from mesh.cli.names import AGENT, BUDGET, SESSION, resource_name, short_name
from mesh.cli.output import moment, note, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch

if TYPE_CHECKING:
    from weft.models.v1 import budgets_pb2
    from weft.models.v1.budget_service_pb2_grpc import BudgetServiceStub

budgets = typer.Typer(
    help="Set, show, list and delete budgets of calls of models.", no_args_is_help=True
)
MILLION = 1_000_000
_USD = re.compile(r"\$?(\d{1,9})(?:\.(\d{1,6}))?")
_TOKENS = re.compile(r"(\d{1,9})(?:\.(\d{1,3}))?([kM]?)")

BudgetArgument = Annotated[str, typer.Argument(metavar="BUDGET", help="Its id or full name.")]
OfAgent = Annotated[str | None, typer.Option("--agent", help="Of this agent's turns.")]
OfSession = Annotated[
    str | None, typer.Option("--session", help="Of this session's turns, as AGENT/SESSION.")
]


class Window(StrEnum):
    """In what time the limit may be spent."""

    TOTAL = "total"
    DAY = "day"
    MONTH = "month"


class Grouping(StrEnum):
    """By what usage is told apart."""

    AGENT = "agent"
    SESSION = "session"
    MODEL = "model"
    DAY = "day"
    HOUR = "hour"


def add_usage(application: typer.Typer) -> None:
    """Adds `weft usage`."""
    command(application, "usage", example="weft usage --by model --since 30d")(show_usage)


@command(budgets, "set", example="weft budget set team --usd 50 --window month")
def set_budget(
    client: Client,
    budget: BudgetArgument,
    usd: Annotated[
        str | None, typer.Option(metavar="DOLLARS", help="What may be spent, such as 12.50.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Tokens that may be used, such as 200k or 1.5M.")
    ] = None,
    window: Annotated[
        Window, typer.Option(help="In what time: once, each day or each month, by UTC.")
    ] = Window.TOTAL,
    agent: OfAgent = None,
    session: OfSession = None,
    requires_prices: Annotated[
        bool, typer.Option("--requires-prices", help="Refuse models without a price.")
    ] = False,
    etag: Annotated[str, typer.Option(help="Only where the budget has this etag.")] = "",
) -> None:
    """Makes a budget, or changes its limit: of the tenant, an agent or a session.

    What was spent stays spent; a higher limit lets calls go on at once.
    """
    from weft.models.v1 import budget_service_pb2 as pb
    from weft.models.v1 import budgets_pb2

    if usd is None and tokens is None:
        raise usage_error("give --usd, --tokens or both")
    request = pb.SetBudgetRequest(
        name=resource_name(budget, BUDGET, client),
        scope=_scope(client, agent, session),
        window=budgets_pb2.BudgetWindow.Value(f"BUDGET_WINDOW_{window.name}"),
        requires_prices=requires_prices,
        etag=etag,
    )
    if usd is not None:
        request.limit.micro_usd = _micro_usd(usd)
    if tokens is not None:
        request.limit.tokens = _tokens(tokens)
    _show(client, client.call(_stub(client).SetBudget, request).budget)


@command(budgets, "show", example="weft budget show team")
def show_budget(client: Client, budget: BudgetArgument) -> None:
    """Shows a budget, with what is spent."""
    from weft.models.v1 import budget_service_pb2 as pb

    request = pb.GetBudgetRequest(name=resource_name(budget, BUDGET, client))
    _show(client, client.call(_stub(client).GetBudget, request).budget)


@command(budgets, "list", example="weft budget list")
def list_budgets(client: Client, limit: Limit = LIMIT) -> None:
    """Lists budgets by id."""
    from weft.models.v1 import budget_service_pb2 as pb

    request = pb.ListBudgetsRequest(parent=client.parent)
    found = fetch(client, _stub(client).ListBudgets, request, lambda page: page.budgets, limit)
    columns = {
        "budget": lambda b: short_name(b.name),
        "of": lambda b: _subject(b.scope),
        "limit": lambda b: _limit(b.limit),
        "per": _window,
        "spent": lambda b: _spent(b.spent, b.limit),
        "held": lambda b: _spent(b.held, b.limit),
        "until": lambda b: moment(b.window_end_time),
    }
    show_list(client.output, found, columns)


@command(budgets, "delete", example="weft budget delete team")
def delete_budget(
    client: Client,
    budget: BudgetArgument,
    etag: Annotated[str, typer.Option(help="Only where the budget has this etag.")] = "",
) -> None:
    """Deletes a budget: what it covered is limited by the others only."""
    from weft.models.v1 import budget_service_pb2 as pb

    request = pb.DeleteBudgetRequest(name=resource_name(budget, BUDGET, client), etag=etag)
    client.call(_stub(client).DeleteBudget, request)
    note(f"deleted budget {short_name(request.name)}")


def show_usage(
    client: Client,
    by: Annotated[Grouping | None, typer.Option("--by", help="Tell it apart by this.")] = None,
    agent: OfAgent = None,
    session: OfSession = None,
    model: Annotated[str, typer.Option(help="Only this model, as PROVIDER/MODEL.")] = "",
    since: Annotated[
        str | None, typer.Option(help="Only hours from then on: 30d, 2026-01-31T12:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only hours that begin before then.")] = None,
    limit: Limit = LIMIT,
) -> None:
    """Tells what calls of models used, and what that cost, to the last few seconds."""
    from weft.models.v1 import budget_service_pb2 as pb

    request = pb.GetUsageRequest(
        parent=client.parent, scope=_scope(client, agent, session), model=model
    )
    if by is not None:
        request.group_by = pb.UsageGrouping.Value(f"USAGE_GROUPING_{by.name}")
    if since is not None:
        request.start_time.FromDatetime(parse_since(since))
    if until is not None:
        request.end_time.FromDatetime(parse_since(until))
    found = fetch(client, _stub(client).GetUsage, request, lambda page: page.rows, limit)
    columns = {
        "calls": lambda row: row.calls,
        "read": lambda row: row.input_tokens,
        "cached": lambda row: row.cached_input_tokens,
        "written": lambda row: row.output_tokens,
        "cost": lambda row: _usd(row.cost_micro_usd),
        "unpriced": lambda row: row.unpriced_calls or "",
        "estimated": lambda row: row.estimated_calls or "",
    }
    if by is not None:
        columns = {by.value: lambda row: _key(by, row), **columns}
    show_list(client.output, found, columns)


def _stub(client: Client) -> "BudgetServiceStub":
    from weft.models.v1.budget_service_pb2_grpc import BudgetServiceStub

    stub: BudgetServiceStub = client.stub(BudgetServiceStub)
    return stub


def _scope(client: Client, agent: str | None, session: str | None) -> str:
    if agent is not None and session is not None:
        raise usage_error("give one of --agent and --session")
    if session is not None:
        return resource_name(session, SESSION, client)
    return resource_name(agent, AGENT, client) if agent is not None else ""


def _micro_usd(text: str) -> int:
    match = _USD.fullmatch(text)
    if match is None:
        raise usage_error(f"--usd: {text!r} isn't an amount", "Write 50 or 12.50.")
    return int(match[1]) * MILLION + int((match[2] or "").ljust(6, "0"))


def _tokens(text: str) -> int:
    match = _TOKENS.fullmatch(text)
    if match is None or (match[2] and not match[3]):
        raise usage_error(f"--tokens: {text!r} isn't a number", "Write 5000, 200k or 1.5M.")
    times = {"": 1, "k": 1_000, "M": MILLION}[match[3]]
    return int(Decimal(f"{match[1]}.{match[2] or 0}") * times)


def _usd(micro_usd: int) -> str:
    """To the cent, or as exactly as it takes for less than ten dollars."""
    exact = f"{Decimal(micro_usd) / MILLION:f}"
    return f"${micro_usd / MILLION:.2f}" if micro_usd >= 10 * MILLION else f"${exact}"


def _limit(limit: "budgets_pb2.Amount") -> str:
    return _spent(limit, limit)


def _spent(amount: "budgets_pb2.Amount", limit: "budgets_pb2.Amount") -> str:
    """Of what is limited only."""
    said = [_usd(amount.micro_usd)] if limit.HasField("micro_usd") else []
    if limit.HasField("tokens"):
        said.append(f"{amount.tokens} tokens")
    return ", ".join(said)


def _window(budget: "budgets_pb2.Budget") -> str:
    from weft.models.v1 import budgets_pb2

    name: str = budgets_pb2.BudgetWindow.Name(budget.window)
    return name.removeprefix("BUDGET_WINDOW_").lower()


def _subject(scope: str) -> str:
    """What a person calls it: `agents/bot`, `agents/bot/sessions/s1`, or the tenant."""
    return scope.split("/", 2)[2] if scope.count("/") > 1 else scope


def _key(by: Grouping, row: "budgets_pb2.UsageEntry") -> str:
    if by in (Grouping.DAY, Grouping.HOUR):
        return moment(row.start_time)
    value: str = getattr(row, by.value)
    return (value if by is Grouping.MODEL else _subject(value)) or "-"


def _show(client: Client, budget: "budgets_pb2.Budget") -> None:
    fields: dict[str, object] = {
        "budget": short_name(budget.name),
        "of": _subject(budget.scope),
        "limit": _limit(budget.limit),
        "per": _window(budget),
        "spent": _spent(budget.spent, budget.limit),
        "held": _spent(budget.held, budget.limit),
        "until": moment(budget.window_end_time),
        "prices": "required" if budget.requires_prices else "",
        "etag": budget.etag,
    }
    show_message(client.output, budget, fields)
