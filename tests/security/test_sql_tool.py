"""What a model can make of `sql`: reads of the attached file, and nothing else."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from services.tools.builtins.definitions import builtin_tools
from services.tools.builtins.sql import SqlTool, databases_of
from services.tools.results import ToolResult
from services.tools.settings import SqlDatabase, ToolsSettings

SECONDS = 5.0
ROWS = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two databases, of which one is attached, and a file that isn't one."""
    folder = tmp_path_factory.mktemp("sql")
    for name in ("shop", "other"):
        with sqlite3.connect(folder / f"{name}.db") as connection:
            connection.executescript(
                "CREATE TABLE orders (id INTEGER PRIMARY KEY, buyer TEXT, cents INTEGER);"
                "CREATE VIEW buyers AS SELECT DISTINCT buyer FROM orders;"
                "CREATE TABLE files (name TEXT, data BLOB);"
                "CREATE VIRTUAL TABLE notes USING fts5(text);"
                "CREATE VIEW reads_file AS SELECT readfile('/etc/passwd') AS text;"
                f"INSERT INTO notes VALUES ('{name} secret note');"
                "INSERT INTO files VALUES ('a', x'00ff');"
            )
            connection.executemany(
                "INSERT INTO orders (buyer, cents) VALUES (?, ?)",
                [(f"buyer {number % 7}", number) for number in range(ROWS)],
            )
        connection.close()
    (folder / "secret.txt").write_text("the secret")
    return folder


def tool(folder: Path, **settings: Any) -> SqlTool:
    shop = SqlDatabase(path=folder / "shop.db", tenants=frozenset({"acme"}), immutable=True)
    return SqlTool(ToolsSettings(sql_databases={"shop": shop}, **settings))


async def answered(folder: Path, query: str, **settings: Any) -> ToolResult:
    return await tool(folder, **settings).query("acme", "shop", query, SECONDS)


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT count(*), sum(cents) FROM orders", [[ROWS, sum(range(ROWS))]]),
        ("SELECT count(*) FROM buyers", [[7]]),
        ("SELECT text FROM notes WHERE notes MATCH 'secret'", [["shop secret note"]]),
        ("SELECT name, data FROM files", [["a", "<2 bytes>"]]),
        ("SELECT count(*) FROM sqlite_master WHERE name = 'orders'", [[1]]),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3)"
         " SELECT i FROM n", [[1], [2], [3]]),
        ("SELECT upper(buyer) FROM orders ORDER BY id LIMIT 1;", [["BUYER 0"]]),
        ("SELECT value FROM json_each('[1,2]')", [[1], [2]]),
        ("SELECT 9e999, -9e999, 1.5", [["Infinity", "-Infinity", 1.5]]),
        ("SELECT 1 WHERE 0", []),
    ],
)  # fmt: skip
async def test_what_may_be_read_is(folder: Path, query: str, rows: list[list[Any]]) -> None:
    result = await answered(folder, query)
    assert not result.is_error, result.content
    answer = json.loads(result.content)
    assert answer["rows"] == rows
    assert answer["is_whole"]
    assert result.untrusted


ATTACKS = [
    *("ATTACH '{folder}/other.db' AS o", "ATTACH 'file:{folder}/other.db?mode=ro' AS o"),
    *("ATTACH ':memory:' AS m", "ATTACH '{folder}/new.db' AS n", "DETACH main"),
    *("PRAGMA database_list", "PRAGMA writable_schema = 1", "PRAGMA query_only = 0"),
    *("PRAGMA journal_mode = WAL", "PRAGMA temp_store_directory = '/tmp'", "PRAGMA user_version"),
    *("SELECT * FROM pragma_database_list", "SELECT file FROM pragma_database_list()"),
    *("SELECT * FROM pragma_table_info('orders')", "SELECT * FROM pragma_function_list"),
    *("SELECT load_extension('{folder}/x.so')", "SELECT readfile('{folder}/secret.txt')"),
    *("SELECT writefile('{folder}/new.txt', 'x')", "SELECT edit('x', 'touch {folder}/new.txt')"),
    *("SELECT fts3_tokenizer('simple')", "SELECT fts3_tokenizer('x', x'0102030405060708')"),
    *("SELECT * FROM fsdir('/')", "SELECT * FROM zipfile('{folder}/secret.txt')"),
    *("SELECT sqlite_source_id()", "SELECT sqlite_log(1, 'x')", "SELECT * FROM reads_file"),
    *("INSERT INTO orders (cents) VALUES (1)", "UPDATE orders SET cents = 0", "DELETE FROM orders"),
    *("DROP TABLE orders", "CREATE TABLE t (a)", "CREATE TEMP TABLE t (a)"),
    *("ALTER TABLE orders ADD x", "ALTER TABLE orders RENAME TO o"),
    *("CREATE TEMP TRIGGER t AFTER INSERT ON orders BEGIN SELECT 1; END", "REINDEX", "ANALYZE"),
    *("CREATE TEMP VIEW v AS SELECT 1", "CREATE VIRTUAL TABLE temp.v USING fts5(a)", "VACUUM"),
    *("VACUUM INTO '{folder}/new.db'", "BEGIN IMMEDIATE", "COMMIT", "SAVEPOINT s", "ROLLBACK"),
    *("REPLACE INTO orders VALUES (1, 'x', 1)", "WITH x AS (SELECT 1) DELETE FROM orders"),
    *("SELECT 1; DROP TABLE orders", "SELECT 1; ATTACH '{folder}/other.db' AS o; SELECT 1"),
    *("SELECT 1; SELECT 2", "SELECT 1;;;DELETE FROM orders"),
    *("EXPLAIN SELECT 1; DELETE FROM orders", "EXPLAIN QUERY PLAN DELETE FROM orders"),
    *("/**/DELETE FROM orders --", "-- SELECT\nDELETE FROM orders"),
    *("SELECT 1 \x00; DROP TABLE orders", "SELECT 1 \x00"),
    *("SELECT * FROM sqlite_dbpage", "SELECT * FROM dbstat", "SELECT * FROM sqlite_stmt"),
    *("SELECT * FROM other.orders", "SELECT * FROM \"{folder}/other.db\".orders", "SELECT ?", ""),
    *("INSERT INTO notes(notes) VALUES ('rebuild')", "SELECT fts5(1)", "not sql at all", "SELECT"),
    *("SELECT randomblob(1000000000)", "SELECT zeroblob(1000000000)"),
    *("SELECT printf('%999999999d', 1)", "SELECT hex(printf('%900000d', 1))"),
]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_nothing_else_is_done(folder: Path, attack: str) -> None:
    before = contents(folder)
    result = await answered(folder, attack.replace("{folder}", str(folder)), sql_seconds=1)
    assert result.is_error or json.loads(result.content)["rows"] == []
    assert "the secret" not in result.content
    assert "other secret" not in result.content
    assert contents(folder) == before


@pytest.mark.parametrize(
    "endless",
    [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "SELECT count(*) FROM orders a, orders b, orders c, orders d"
        " WHERE a.cents * b.cents * c.cents * d.cents < 0",
        "SELECT a.id FROM orders a, orders b, orders c ORDER BY a.cents * b.cents * c.cents",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        " SELECT i FROM n WHERE i < 0",
    ],
)
async def test_a_query_without_end_is_ended(folder: Path, endless: str) -> None:
    result = await answered(folder, endless, sql_seconds=0.2)
    assert result.is_error
    assert "took too long" in result.content


async def test_a_query_that_sorts_beyond_its_memory_is_ended(folder: Path) -> None:
    query = (
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 100000) SELECT"
        " count(DISTINCT replace(format('%.1000c', ','), ',', format('%.900c', 'a')) || x) FROM c"
    )
    result = await tool(folder, sql_seconds=60).query("acme", "shop", query, 60)
    assert result.is_error
    assert "too much memory" in result.content


async def test_rows_and_bytes_are_bounded(folder: Path) -> None:
    result = await answered(folder, "SELECT * FROM orders", sql_rows_max=10)
    answer = json.loads(result.content)
    assert (len(answer["rows"]), answer["is_whole"]) == (10, False)
    large = "SELECT replace(hex(cents), '3', printf('%5000d', 1)) FROM orders"
    result = await answered(folder, large, sql_bytes_max=20_000)
    assert len(result.content) < 40_000
    assert not json.loads(result.content)["is_whole"]


async def test_a_database_is_for_the_tenants_that_it_names(folder: Path) -> None:
    result = await tool(folder).query("rival", "shop", "SELECT 1", SECONDS)
    assert result.is_error
    settings = ToolsSettings(
        sql_databases={
            "all": SqlDatabase(path=folder / "shop.db", tenants=frozenset({"*"}), trusted=True),
            "one": SqlDatabase(path=folder / "shop.db", tenants=frozenset({"acme"})),
        }
    )
    assert databases_of(settings, "rival") == ("all",)
    assert databases_of(settings, "acme") == ("all", "one")
    result = await SqlTool(settings).query("rival", "all", "SELECT 1", SECONDS)
    assert not result.untrusted
    assert "sql" not in builtin_tools("rival")
    schema = json.loads(builtin_tools("acme", ("all", "one"))["sql"].parameters_json_schema)
    assert schema["properties"]["database"]["enum"] == ["all", "one"]
