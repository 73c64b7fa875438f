"""What holds for all tests."""

from contextlib import ExitStack

import pytest

from tests.support.config_home import config_home
from tests.support.logged import log_lines
from tests.support.nats import harmed_nats_server, nats_server, tenant

__all__ = ["harmed_nats_server", "log_lines", "nats_server", "tenant"]

_stack = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """Keys and contexts of what is started here don't mix with those of who runs it."""
    _stack.enter_context(config_home())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes them."""
    _stack.close()
