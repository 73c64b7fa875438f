"""What holds for all tests."""

from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, settings

from tests.support.config_home import config_home
from tests.support.logged import log_lines
from tests.support.nats import harmed_nats_server, nats_server, tenant

__all__ = ["harmed_nats_server", "log_lines", "nats_server", "tenant"]

# How fast an example runs is the machine's matter, and no failure.
settings.register_profile("weft", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("weft")
_stack = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """Keys and contexts of what is started here don't mix with those of who runs it."""
    _stack.enter_context(config_home())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes them."""
    _stack.close()
