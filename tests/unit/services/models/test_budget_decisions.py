"""What may be done to a budget, and what of it may be spent: the pure core."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import (
    BudgetSpent,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RequestIdReused,
)
from mesh.events.fold import Place
from services.models import domain
from services.models.domain import Amount, Command, Draw, Price, Report, State
from services.models.domain.windows import SECOND_NS
from weft.models.v1 import budgets_pb2, events_pb2, models_pb2

NAME = "tenants/acme/budgets/b"
NOW = int(datetime(2026, 12, 31, 23, 59, 58, tzinfo=UTC).timestamp()) * SECOND_NS
TOTAL, DAY, MONTH = (
    budgets_pb2.BUDGET_WINDOW_TOTAL,
    budgets_pb2.BUDGET_WINDOW_DAY,
    budgets_pb2.BUDGET_WINDOW_MONTH,
)
DEAD_NS = domain.LEASE_NS + domain.GRACE_NS


class Log:
    """A budget's state, changed by commands alone."""

    def __init__(self) -> None:
        self.state = State()
        self.requests = 0

    def does(self, command: Command) -> int:
        """How many facts it led to."""
        facts = domain.decide(self.state, command)
        for fact in facts:
            place = Place(self.state.revision + 1, Timestamp())
            fold = domain.BUDGET_FOLD
            # Through its bytes, as the log keeps it.
            fact = type(fact).FromString(fact.SerializeToString())
            self.state = fold.evolve(self.state, fact, place)
        return len(facts)

    def set(
        self,
        tokens: int | None = 100,
        micro_usd: int | None = None,
        window: "budgets_pb2.BudgetWindow.ValueType" = TOTAL,
        **fields: str,
    ) -> int:
        self.requests += 1
        request = domain.Request(
            fields.get("name", NAME),
            fields.get("id", f"r{self.requests}"),
            fields.get("hash", "h").encode(),
            "me",
            fields.get("etag", ""),
        )
        limit = budgets_pb2.Amount(tokens=tokens, micro_usd=micro_usd)
        return self.does(domain.SetBudget(request, fields.get("scope", ""), limit, window, False))

    def draw(self, lease: str, used: int, reserved: int, estimate: int, now_ns: int = NOW) -> int:
        """What it is granted."""
        amounts = (Amount(tokens=used), Amount(tokens=reserved), Amount(tokens=estimate))
        self.does(Draw(lease, f"i-{lease}", *amounts, now_ns))
        return next(each.granted.tokens for each in self.state.leases if each.id == lease)

    def report(self, lease: str, used: int, granted: int, now_ns: int = NOW) -> int:
        tokens = Amount(tokens=used), Amount(tokens=granted)
        return self.does(Report(lease, *tokens, used == granted, now_ns))

    def seen(self, now_ns: int = NOW) -> tuple[int, int]:
        """Tokens that are spent, and held."""
        budget = domain.view(self.state, now_ns)
        return budget.spent.tokens, budget.held.tokens


@pytest.fixture
def log() -> Log:
    made = Log()
    made.set()
    return made


def test_a_budget_is_set_changed_and_deleted() -> None:
    log = Log()
    log.set(100)
    budget = domain.view(log.state, NOW)
    assert (budget.name, budget.scope, budget.etag) == (NAME, "tenants/acme", "r1")
    assert not budget.HasField("window_end_time")
    log.set(200, etag="r1")
    assert (log.state.budget.limit.tokens, log.state.budget.etag) == (200, "r2")
    with pytest.raises(Conflict, match="its etag is r2"):
        log.set(300, etag="r1")
    log.does(domain.DeleteBudget(domain.Request(NAME, "d", b"", "me", "")))
    assert not domain.exists(log.state)
    with pytest.raises(NotFound):
        log.does(domain.DeleteBudget(domain.Request(NAME, "e", b"", "me", "")))
    assert log.does(domain.DeleteBudget(domain.Request(NAME, "d", b"", "me", ""))) == 0


def test_a_request_that_comes_again_changes_nothing(log: Log) -> None:
    assert log.set(300, id="same") == 1
    assert log.set(300, id="same") == 0
    with pytest.raises(RequestIdReused):
        log.set(400, id="same", hash="other")


def test_a_budget_needs_a_limit_and_stays_where_it_is(log: Log) -> None:
    with pytest.raises(InvalidArgument, match="must limit"):
        log.set(None)
    with pytest.raises(FailedPrecondition, match="is of tenants/acme"):
        log.set(scope="tenants/acme/agents/bot")
    with pytest.raises(InvalidArgument, match="must be in tenants/acme"):
        Log().set(scope="tenants/globex/agents/bot")


def test_what_is_granted_is_a_share_of_what_is_left_beside_what_is_needed(log: Log) -> None:
    assert log.draw("a", 0, 0, 20) == 20 + 80 // domain.SHARES
    assert log.seen() == (0, 25)
    # Ten calls like it, not all of the rest.
    log.set(1_000_000)
    assert log.draw("b", 0, 0, 10) == 10 + 10 * domain.CALLS_AHEAD


def test_what_is_not_used_goes_back(log: Log) -> None:
    log.draw("a", 0, 0, 20)
    assert log.report("a", 7, 7) == 1
    assert log.seen() == (7, 0)
    # A lease that is over, as one that others counted as spent, has nothing to say.
    assert log.report("a", 9, 9) == 0


def test_where_it_is_spent_the_error_says_what_is_left(log: Log) -> None:
    log.draw("a", 0, 0, 90)
    log.report("a", 90, 90)
    with pytest.raises(BudgetSpent, match=r"10 tokens are left.*may take 11 tokens") as caught:
        log.draw("b", 0, 0, 11)
    assert caught.value.metadata == {"resource": NAME, "limit": "tokens", "held": "false"}
    # Of all time: no hour brings more.
    assert caught.value.retry_seconds is None
    assert log.draw("b", 0, 0, 10) == 10


def test_what_others_hold_may_come_back(log: Log) -> None:
    log.draw("a", 0, 0, 90)
    with pytest.raises(BudgetSpent, match="under way hold the rest") as caught:
        log.draw("b", 0, 0, 50)
    assert caught.value.metadata["held"] == "true"
    assert caught.value.retry_seconds


def test_money_is_bounded_as_tokens_are(log: Log) -> None:
    log.set(None, 50)
    calls = Amount(30, 1_000_000)
    log.does(Draw("a", "i", domain.NOTHING, domain.NOTHING, calls, NOW))
    with pytest.raises(
        BudgetSpent, match=r"of .*/b \$0.* are left, and this call may take \$0.00003"
    ):
        log.does(Draw("b", "i", domain.NOTHING, domain.NOTHING, calls, NOW))


def test_what_a_killed_instance_held_counts_as_spent(log: Log) -> None:
    held = log.draw("a", 0, 0, 20)
    assert log.seen(NOW + DEAD_NS - 1) == (0, held)
    assert log.seen(NOW + DEAD_NS) == (held, 0)
    log.draw("b", 0, 0, 10, NOW + DEAD_NS)
    assert [each.id for each in log.state.leases] == ["b"]
    assert log.state.spent.tokens == held
    # One that reports lives.
    assert log.report("b", 0, 15, NOW + 2 * DEAD_NS - 2) == 1
    assert log.seen(NOW + 2 * DEAD_NS)[1] > 0


@pytest.mark.parametrize(("window", "seconds"), [(DAY, 2), (MONTH, 2)])
def test_windows_roll(window: "budgets_pb2.BudgetWindow.ValueType", seconds: int) -> None:
    log = Log()
    log.set(100, window=window)
    log.draw("a", 0, 0, 100)
    log.report("a", 100, 100)
    with pytest.raises(BudgetSpent) as caught:
        log.draw("b", 0, 0, 1)
    assert caught.value.retry_seconds == pytest.approx(seconds)
    rolled = NOW + seconds * SECOND_NS
    assert log.seen(rolled) == (0, 0)
    assert log.draw("b", 0, 0, 100, rolled) == 100
    # An instance whose clock is late is in the same window as the others.
    with pytest.raises(BudgetSpent):
        log.draw("c", 0, 0, 1, NOW)
    # And what it held in the window before isn't of this one.
    assert log.report("a", 100, 100, rolled) == 0


def test_months_and_days_end_where_the_calendar_says() -> None:
    month = domain.window_at(MONTH, NOW)
    assert datetime.fromtimestamp(month.start_ns / SECOND_NS, UTC) == datetime(
        2026, 12, 1, tzinfo=UTC
    )
    assert datetime.fromtimestamp(month.end_ns / SECOND_NS, UTC) == datetime(2027, 1, 1, tzinfo=UTC)
    day = domain.window_at(DAY, NOW)
    assert (day.end_ns - day.start_ns, day.end_ns) == (domain.DAY_NS, month.end_ns)
    assert domain.window_at(TOTAL, NOW) == (0, 0)


def test_another_window_counts_anew(log: Log) -> None:
    log.draw("a", 0, 0, 100)
    log.set(100, window=DAY)
    assert log.seen() == (0, 0)


def test_raising_a_limit_lets_calls_go_on_and_lowering_it_ends_them(log: Log) -> None:
    log.draw("a", 0, 0, 100)
    log.report("a", 100, 100)
    log.set(150)
    assert log.draw("b", 0, 0, 50) == 50
    log.set(10)
    with pytest.raises(BudgetSpent, match="0 tokens are left"):
        log.draw("c", 0, 0, 1)


def test_cost_is_rounded_up_and_cached_tokens_have_their_own_price() -> None:
    price = Price(3_000_000, 15_000_000, 300_000)
    usage = models_pb2.Usage(input_tokens=1_000, cached_input_tokens=400, output_tokens=10)
    assert price.cost_micro_usd(usage) == 600 * 3 + 120 + 150
    assert Price(1, 0, 0).cost_micro_usd(models_pb2.Usage(input_tokens=1)) == 1
    assert price.most_micro_usd(1_000, 10) >= price.cost_micro_usd(usage)


def test_a_record_of_usage_is_stored_once() -> None:
    state, facts = domain.UsageState(), []
    for number in (1, 1, 2, 2, 1):
        record = events_pb2.UsageRecorded(instance="i", number=number)
        for fact in domain.decide_usage(state, record):
            facts.append(fact)
            state = domain.USAGE_FOLD.evolve(state, fact, Place(len(facts), Timestamp()))
    assert len(facts) == 2
    assert domain.decide_usage(state, events_pb2.UsageRecorded(instance="j", number=1))


@dataclass
class Instance:
    """What a process does: it draws, and sets aside for its calls."""

    log: Log
    lease: str
    granted: int = 0
    used: int = 0
    calls: list[tuple[int, int]] = field(default_factory=list)

    @property
    def reserved(self) -> int:
        return sum(estimate for estimate, _ in self.calls)

    def begin(self, estimate: int, used: int, now_ns: int) -> None:
        if self.granted - self.used - self.reserved < estimate:
            try:
                self.granted = self.log.draw(self.lease, self.used, self.reserved, estimate, now_ns)
            except BudgetSpent:
                return
        self.calls.append((estimate, min(used, estimate)))

    def end(self) -> int:
        """What the oldest call used."""
        used = self.calls.pop(0)[1] if self.calls else 0
        self.used += used
        return used

    def tick(self, now_ns: int, *, keeps: bool) -> None:
        if not keeps:
            self.granted = self.used + self.reserved
        closes = not keeps and not self.calls
        amounts = Amount(tokens=self.used), Amount(tokens=self.granted)
        self.log.does(Report(self.lease, *amounts, closes, now_ns))
        if closes:
            self.begins_anew()

    def begins_anew(self) -> None:
        self.lease, self.granted, self.used = f"{self.lease}x", 0, 0
        self.calls = []


amounts = st.integers(0, 60)
steps = st.lists(
    st.tuples(
        st.sampled_from(("begin", "begin", "end", "tick", "kill", "wait", "raise")),
        st.integers(0, 2),
        amounts,
        amounts,
    ),
    max_size=60,
)


@given(steps)
def test_no_order_of_what_instances_do_overspends(steps: list[tuple[str, int, int, int]]) -> None:
    """Three instances begin and end calls, tell, are killed, and time passes: what was used
    never exceeds the limit, nor does what is shown as spent and held."""
    log, limit, now_ns, spent = Log(), 200, NOW, 0
    log.set(limit)
    instances = [Instance(log, f"i{number}") for number in range(3)]
    for step, number, amount, used in steps:
        instance = instances[number]
        if step == "begin":
            instance.begin(amount + 1, used, now_ns)
        elif step == "end":
            spent += instance.end()
        elif step == "tick" and instance.granted:
            instance.tick(now_ns, keeps=False)
        elif step == "kill":
            # What its calls used nobody hears of, but who bills it.
            spent += sum(used for _, used in instance.calls)
            instance.begins_anew()
        elif step == "wait":
            now_ns += DEAD_NS
            for each in instances:
                each.tick(now_ns, keeps=True)
        elif step == "raise":
            limit += amount
            log.set(limit)
        assert sum(log.seen(now_ns)) <= limit
        under_way = sum(used for each in instances for _, used in each.calls)
        assert spent + under_way <= limit
