"""Connections to PostgreSQL: how they are set up, and what their faults are called here."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import psycopg
from psycopg import errors
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from mesh.errors import (
    DataDamaged,
    FailedPrecondition,
    LimitExceeded,
    NotServing,
    Unavailable,
)
from services.vectors.backends import postgres_schema as schema

STATEMENT_SECONDS = 120
"""Longer than any call should take; what is given up is cancelled in the server, too."""
EF_SEARCH = 200
"""How many neighbours HNSW keeps in view."""
SCAN_TUPLES_MAX = 40_000
"""How many HNSW looks at for those that a filter leaves."""

Connection: TypeAlias = "psycopg.AsyncConnection[tuple[Any, ...]]"


async def configure(connection: Connection) -> None:
    """Sets a new connection up."""
    await connection.set_autocommit(True)
    for name, value in (
        ("statement_timeout", f"{STATEMENT_SECONDS}s"),
        ("hnsw.iterative_scan", "strict_order"),
        ("hnsw.ef_search", str(EF_SEARCH)),
        ("hnsw.max_scan_tuples", str(SCAN_TUPLES_MAX)),
    ):
        await run(connection, "SELECT set_config(%s, %s, false)", name, value)


async def prepare(connection: Connection) -> None:
    """Makes the tables where there are none; FailedPrecondition where a newer Weft made them,
    or pgvector isn't there."""
    lock = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
    await run(connection, lock, schema.SCHEMA)
    if await fetch_one(connection, "SELECT 1 FROM pg_extension WHERE extname = 'vector'") is None:
        await run(connection, "CREATE EXTENSION IF NOT EXISTS vector")
    there = await fetch_one(connection, "SELECT to_regclass(%s)", f"{schema.SCHEMA}.format")
    if there is None or there[0] is None:
        await connection.execute(schema.TABLES.encode())
        return
    version = await fetch_one(connection, f"SELECT version FROM {schema.SCHEMA}.format")
    if version is None or version[0] != schema.FORMAT_VERSION:
        raise FailedPrecondition("the database's collections are of another version of Weft")


@asynccontextmanager
async def faults() -> AsyncIterator[None]:
    """Says PostgreSQL's faults in terms of the one tree of errors."""
    try:
        yield
    except PoolClosed as error:
        raise NotServing("the index of collections is closed") from error
    except TooManyRequests as error:
        raise LimitExceeded("too many calls wait for the index of collections") from error
    except (
        errors.InsufficientPrivilege,
        errors.FeatureNotSupported,
        errors.UndefinedFile,
    ) as error:
        raise FailedPrecondition(
            "the database of collections lacks pgvector, or the right to use it: have its"
            " owner run CREATE EXTENSION vector, and let Weft create a schema"
        ) from error
    except errors.UndefinedTable as error:
        raise Unavailable("the collection was deleted at this moment") from error
    except (errors.DiskFull, errors.ProgramLimitExceeded) as error:
        raise LimitExceeded("the database of collections is full") from error
    except (errors.DataCorrupted, errors.IndexCorrupted) as error:
        raise DataDamaged("the database of collections is damaged") from error
    except (PoolTimeout, psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise Unavailable("the database of collections can't be reached") from error


async def run(connection: Connection, statement: str, *values: Any) -> None:
    """Does what the statement says."""
    await connection.execute(statement.encode(), values)


async def fetch_all(connection: Connection, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """All rows of the statement's result."""
    return await (await connection.execute(statement.encode(), values)).fetchall()


async def fetch_one(connection: Connection, statement: str, *values: Any) -> tuple[Any, ...] | None:
    """The first row of the statement's result; None without one."""
    return await (await connection.execute(statement.encode(), values)).fetchone()


async def copy_into(
    connection: Connection, columns: str, values: Iterable[tuple[Any, ...]]
) -> None:
    """Stores rows of values in a table's columns."""
    async with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {columns} FROM STDIN".encode()) as copy,
    ):
        for row in values:
            await copy.write_row(row)
