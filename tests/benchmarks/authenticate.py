"""What it takes to know who calls: a credential that was verified before, and one that
wasn't, in one process without a server."""

import time
from collections.abc import Callable

from tests.benchmarks.measure import alternate
from tests.benchmarks.results import Goal, Result
from tests.support.access import Access, access
from tests.support.forging import Forge

ROUNDS = 9
DECISIONS = 20_000
TOKENS = 300
GOAL = Goal(20.0, at_most=True)
ADMIN = "tenants/default/apiKeys/admin"
AGENT = "tenants/default/agents/bot"


async def run() -> list[Result]:
    """The results of the rounds."""
    async with access() as made:
        forge = Forge(made.directory.signing_key(), ADMIN)
        token = f"Bearer {forge.token()}"
        key = f"Bearer {made.admin_key}"

        async def cached_key() -> float:
            return _decision_us(made, lambda: key, DECISIONS)

        async def cached_token() -> float:
            return _decision_us(made, lambda: token, DECISIONS)

        async def new_token() -> float:
            tokens = iter([f"Bearer {forge.token()}" for _ in range(TOKENS)])
            return _decision_us(made, lambda: next(tokens), TOKENS)

        variants = {"key": cached_key, "token": cached_token, "new": new_token}
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
    return [
        Result("authenticate and authorize, API key, cached", "us", values["key"], goal=GOAL),
        Result("authenticate and authorize, token, cached", "us", values["token"], goal=GOAL),
        Result("authenticate and authorize, token, first time", "us", values["new"]),
    ]


def _decision_us(made: Access, header: Callable[[], str], count: int) -> float:
    """Mean time of finding out who calls and whether they may, in microseconds."""
    directory = made.directory
    started = time.perf_counter()
    for _ in range(count):
        assert directory.authenticate(header()).allows("agents.run", AGENT)
    return (time.perf_counter() - started) / count * 1e6
