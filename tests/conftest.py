"""What holds for all tests."""

import gc
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, settings

from tests.support.config_home import config_home
from tests.support.logged import log_lines
from tests.support.nats import harmed_nats_server, nats_server, tenant
from tests.support.platform import SPLIT

__all__ = ["harmed_nats_server", "log_lines", "nats_server", "tenant"]

# How fast an example runs is the machine's matter, and no failure. The examples are the same
# each time: a change isn't refused for what it didn't touch. `make test` with
# PYTEST_ADDOPTS=--hypothesis-profile=search draws new ones, which is how faults are looked for.
settings.register_profile(
    "weft", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", settings.get_profile("weft"), derandomize=False)
settings.load_profile("weft")
SPLIT_TIMES = 3
"""How much longer a test may take where each deployment is seven processes instead of one."""
YOUNG_OBJECTS_MAX = 20_000
"""How many new objects Python lets be before it looks among them for garbage. With its own bound
that took a third of the suite's processor time: thousands of tests and modules stay."""
_stack = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """Keys and contexts of what is started here don't mix with those of who runs it."""
    _stack.enter_context(config_home())
    gc.set_threshold(YOUNG_OBJECTS_MAX)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes them."""
    _stack.close()


def pytest_collection_finish() -> None:
    """What is loaded by now stays, and needn't be looked through."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Gives tests of the split topology their time."""
    for item in items if SPLIT else []:
        own = item.get_closest_marker("timeout")
        seconds = float(own.args[0] if own else config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(SPLIT_TIMES * seconds), append=False)
