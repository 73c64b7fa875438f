"""The built-in `sql`: reads SQLite databases that the settings attach.

What a model asks for runs with an authorizer that lets a statement select, read tables and call
functions of a list; on a connection that can't write, attach or load; within a time, a number of
rows and of bytes.
"""

import asyncio
import json
import math
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw

from mesh.errors import DeadlineExceeded, ToolUnavailable
from services.tools.results import ToolResult, cut, failed
from services.tools.settings import SqlDatabase, ToolsSettings

QUERY_LENGTH_MAX = 16_384
ERROR_LENGTH_MAX = 500
PROGRESS_STEPS = 500
"""Steps of SQLite's machine between two looks at the clock and the memory: some hundredths of a
millisecond, and at most some fifty values of the greatest length."""
MEMORY_BYTES_MAX = 134_217_728
"""How much more SQLite may hold in this process than when a query began. What a query sorts lies
there; the count is the process's, so that several queries share it."""
_LIMITS = {
    apsw.SQLITE_LIMIT_ATTACHED: 0,
    apsw.SQLITE_LIMIT_COLUMN: 256,
    apsw.SQLITE_LIMIT_COMPOUND_SELECT: 64,
    apsw.SQLITE_LIMIT_EXPR_DEPTH: 256,
    apsw.SQLITE_LIMIT_LENGTH: 1_048_576,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_024,
    apsw.SQLITE_LIMIT_SQL_LENGTH: QUERY_LENGTH_MAX * 4,
    apsw.SQLITE_LIMIT_VARIABLE_NUMBER: 16,
    apsw.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_ACTIONS = frozenset((apsw.SQLITE_SELECT, apsw.SQLITE_RECURSIVE))
_SCHEMA_TABLES = frozenset(("sqlite_master", "sqlite_schema", "sqlite_sequence"))
_HIDDEN = ("sqlite_", "pragma_", "dbstat", "bytecode", "tables_used", "fsdir", "zipfile")
# What computes from its arguments alone; all others, as load_extension, aren't called.
_FUNCTIONS = frozenset(
    (
        *("->", "->>", "abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "avg"),
        *("bm25", "ceil", "ceiling", "char", "coalesce", "concat", "concat_ws", "cos", "cosh"),
        *("count", "cume_dist", "current_date", "current_time", "current_timestamp", "date"),
        *("datetime", "degrees", "dense_rank", "exp", "first_value", "floor", "format", "glob"),
        *("group_concat", "hex", "highlight", "if", "ifnull", "iif", "instr", "json"),
        *("json_array", "json_array_length", "json_error_position", "json_extract"),
        *("json_group_array", "json_group_object", "json_insert", "json_object", "json_patch"),
        *("json_quote", "json_remove", "json_replace", "json_set", "json_type", "json_valid"),
        *("julianday", "lag", "last_value", "lead", "length", "like", "likelihood", "likely"),
        *("ln", "log", "log10", "log2", "lower", "ltrim", "match", "max", "median", "min", "mod"),
        *("nth_value", "ntile", "nullif", "octet_length", "percent_rank", "percentile"),
        *("percentile_cont", "percentile_disc", "pi", "pow", "power", "printf", "quote"),
        *("radians", "rank", "replace", "round", "row_number", "rtrim", "sign", "sin", "sinh"),
        *("snippet", "sqrt", "strftime", "string_agg", "substr", "substring", "sum", "tan"),
        *("tanh", "time", "timediff", "total", "trim", "trunc", "typeof", "unhex", "unicode"),
        *("unixepoch", "unlikely", "upper"),
    )
)


class SqlTool:
    """Queries the databases of the settings, each for the tenants that it names."""

    def __init__(self, settings: ToolsSettings) -> None:
        self._settings = settings
        self._running = asyncio.Semaphore(settings.sql_running_max)

    async def query(
        self, tenant: str, database: str, query: str, timeout_seconds: float
    ) -> ToolResult:
        """The rows of one SELECT, as JSON. What isn't let, or takes too long, is a result with
        `is_error`. ToolUnavailable where the database can't be opened."""
        known = self._settings.sql_databases.get(database)
        if known is None or not known.is_for(tenant):
            return failed(f"there is no database {database}")
        until = time.monotonic() + min(timeout_seconds, self._settings.sql_seconds)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + timeout_seconds):
                await self._running.acquire()
        except TimeoutError:
            raise DeadlineExceeded("too many queries run") from None
        # A thread can't be ended: it gives its place back when its query ends, within its time.
        running = asyncio.create_task(asyncio.to_thread(self._rows, known, query, until))
        running.add_done_callback(self._done)
        return await asyncio.shield(running)

    def _done(self, running: "asyncio.Task[ToolResult]") -> None:
        self._running.release()
        with suppress(asyncio.CancelledError):
            # Whoever waited may have gone.
            running.exception()

    def _rows(self, database: SqlDatabase, query: str, until: float) -> ToolResult:
        try:
            connection = _opened(database)
        except apsw.Error as error:
            raise ToolUnavailable("the database can't be opened") from error
        with closing(connection):
            memory_max = apsw.memory_used() + MEMORY_BYTES_MAX

            def is_over() -> bool:
                return time.monotonic() > until or apsw.memory_used() > memory_max

            connection.set_progress_handler(is_over, PROGRESS_STEPS)
            try:
                content = self._read(connection, query)
            except apsw.InterruptError:
                if time.monotonic() > until:
                    return failed("the query took too long")
                return failed("the query took too much memory: sort and group less at a time")
            except (apsw.Error, ValueError, OverflowError) as error:
                return failed(cut(f"the query was refused: {error}", ERROR_LENGTH_MAX))
        return ToolResult(content, untrusted=not database.trusted)

    def _read(self, connection: apsw.Connection, query: str) -> str:
        statements = 0

        def one(cursor: apsw.Cursor, sql: str, bindings: Any) -> bool:
            nonlocal statements
            statements += 1
            return statements == 1

        connection.set_exec_trace(one)
        cursor = connection.cursor()
        try:
            cursor.execute(query)
        except apsw.ExecTraceAbort:
            raise ValueError("only one statement is run") from None
        try:
            columns = [column[0] for column in cursor.get_description()]
        except apsw.ExecutionCompleteError:
            columns = []
        rows: list[list[Any]] = []
        size, is_whole = 0, True
        try:
            for row in cursor:
                shown = [_shown(value) for value in row]
                size += len(json.dumps(shown, ensure_ascii=False).encode(errors="replace"))
                if len(rows) >= self._settings.sql_rows_max or size > self._settings.sql_bytes_max:
                    is_whole = False
                    break
                rows.append(shown)
        except apsw.ExecTraceAbort:
            raise ValueError("only one statement is run") from None
        answer = {"columns": columns, "rows": rows, "is_whole": is_whole}
        return json.dumps(answer, ensure_ascii=False)


def databases_of(settings: ToolsSettings, tenant: str) -> tuple[str, ...]:
    """The names of the databases that the tenant may query."""
    known = settings.sql_databases.items()
    return tuple(sorted(name for name, database in known if database.is_for(tenant)))


def _opened(database: SqlDatabase) -> apsw.Connection:
    """A connection that can read this one file, and nothing else."""
    options = "mode=ro&immutable=1" if database.immutable else "mode=ro"
    uri = f"file:{quote(str(Path(database.path).absolute()))}?{options}"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(uri, flags=flags)
    connection.enable_load_extension(False)
    for name in (
        apsw.SQLITE_DBCONFIG_ENABLE_ATTACH_CREATE,
        apsw.SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE,
        apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER,
        apsw.SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER,
        apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA,
    ):
        connection.config(name, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    for limit, value in _LIMITS.items():
        connection.limit(limit, value)
    connection.set_authorizer(_authorized)
    return connection


def _authorized(
    action: int, first: str | None, second: str | None, database: str | None, view: str | None
) -> int:
    """Lets a statement select, and call what computes."""
    if action in _ACTIONS:
        return apsw.SQLITE_OK
    if action == apsw.SQLITE_READ:
        table = (first or "").lower()
        allowed = table in _SCHEMA_TABLES or not table.startswith(_HIDDEN)
        return apsw.SQLITE_OK if allowed else apsw.SQLITE_DENY
    if action == apsw.SQLITE_FUNCTION:
        return apsw.SQLITE_OK if (second or "").lower() in _FUNCTIONS else apsw.SQLITE_DENY
    # Full-text tables ask by themselves whether the file has changed.
    if action == apsw.SQLITE_PRAGMA and (first or "").lower() == "data_version" and not second:
        return apsw.SQLITE_OK
    return apsw.SQLITE_DENY


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no number for it.
        return "Infinity" if value > 0 else "-Infinity"
    return value
