"""What a log line holds, and what it never holds."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from mesh.call import Call, current_call
from mesh.telemetry.logs import REDACTED, configure_logs, redact

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure_logs("info", stream)
    yield stream
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object(stream: io.StringIO) -> None:
    structlog.get_logger().info("turn ended", step_count=3, note="two\nlines")
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "turn ended", "level": "info", "step_count": 3, "note": "two\nlines"}


def test_a_line_names_the_call_that_it_was_written_in(stream: io.StringIO) -> None:
    token = current_call.set(Call("/x", 0, "r-1", traceparent=TRACEPARENT))
    try:
        structlog.get_logger().info("inside")
        logging.getLogger("library").warning("inside too")
    finally:
        current_call.reset(token)
    structlog.get_logger().info("outside")
    inside, inside_too, outside = lines(stream)
    for line in (inside, inside_too):
        assert line["request_id"] == "r-1"
        assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert "request_id" not in outside


def test_a_client_that_went_away_in_the_moment_of_its_answer_is_no_error(
    stream: io.StringIO,
) -> None:
    core = logging.getLogger("grpc._cython.cygrpc")
    core.error("ExecuteBatchError raised in core by servicer method [/grpc.health.v1.Health/Check]")
    assert lines(stream) == []
    core.error("UsageError raised in core by servicer method [/grpc.health.v1.Health/Check]")
    assert [line["level"] for line in lines(stream)] == ["error"]


def test_lines_below_the_level_are_not_written(stream: io.StringIO) -> None:
    structlog.get_logger().debug("detail")
    logging.getLogger("library").info("chatter")
    assert stream.getvalue() == ""


def test_a_traceback_is_in_the_line(stream: io.StringIO) -> None:
    structlog.get_logger().error("call failed", exc_info=ValueError("wrong"))
    (line,) = lines(stream)
    assert "ValueError: wrong" in line["exception"]


def test_what_json_cannot_hold_is_written_as_text(stream: io.StringIO) -> None:
    structlog.get_logger().info("odd", value={1: object()}, data=b"\xff")
    assert len(lines(stream)) == 1


def test_a_terminal_gets_readable_lines_without_local_variables() -> None:
    stream = Terminal()
    configure_logs("info", stream)
    hunter = "hunter" + "2"
    try:
        raise RuntimeError("wrong")
    except RuntimeError:
        structlog.get_logger().exception("failed", password=hunter)
    finally:
        structlog.reset_defaults()
        logging.getLogger().handlers.clear()
    assert "RuntimeError: wrong" in stream.getvalue()
    assert hunter not in stream.getvalue()


@pytest.mark.parametrize(
    "key",
    [
        *("authorization", "Authorization", "api_key", "apikey", "x-api-key", "OPENAI_API_KEY"),
        *("password", "secret", "client_secret", "token", "access_token", "seed", "nkey_seed"),
        *("cookie", "private_key", "credentials"),
    ],
)
def test_values_of_secret_keys_are_not_written(stream: io.StringIO, key: str) -> None:
    structlog.get_logger().info(
        "call", **{key: "hunter2"}, headers={key: "hunter2"}, items=[{"deep": ({key: b"hunter2"},)}]
    )
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count(REDACTED) == 3


@pytest.mark.parametrize("key", ["token_count", "input_tokens", "tokens_max", "secretary", "keys"])
def test_values_of_other_keys_are_written(key: str) -> None:
    assert redact(None, "info", {key: "plain"}) == {key: "plain"}


def test_values_nested_too_deep_are_not_written() -> None:
    value: Any = "deep"
    for _ in range(1000):
        value = {"inner": value}
    assert "deep" not in repr(redact(None, "info", {"value": value}))
