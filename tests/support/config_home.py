"""A folder of its own for the keys and contexts of what tests start."""

import contextlib
import os
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def config_home() -> Iterator[None]:
    """Keeps them apart from those of who runs the tests, and removes them at the end."""
    with tempfile.TemporaryDirectory(prefix="weft-tests-") as folder:
        before = os.environ.get("XDG_CONFIG_HOME")
        os.environ["XDG_CONFIG_HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_CONFIG_HOME"]
            else:
                os.environ["XDG_CONFIG_HOME"] = before
