"""What is logged in a test's own process."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs


@contextmanager
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """The lines that are logged meanwhile, of all levels, whoever set logging up before."""
    before = structlog.get_config()
    structlog.reset_defaults()
    try:
        with capture_logs() as lines:
            yield lines
    finally:
        structlog.configure(**before)


@pytest.fixture
def log_lines() -> Iterator[list[MutableMapping[str, Any]]]:
    """What is logged during the test."""
    with logged() as lines:
        yield lines
