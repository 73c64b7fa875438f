"""Structured logs: one JSON object per line, or readable lines on a terminal.

Every line has the request id and the trace id of the call that it was written in.
Values under keys that name secrets are never written.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO, cast

import orjson
import structlog
from structlog.typing import Processor

from mesh.call import current_call

REDACTED = "[redacted]"
_DEPTH_MAX = 8

# The key's last word decides: `page_token` is one, `token_count` isn't.
_secret_key = re.compile(
    r"(?:^|.*[^a-z])(?:authorization|password|passphrase|secret|token|seed|cookie|pepper"
    r"|credentials?|api[-_]?key|private[-_]?key)",
    re.IGNORECASE,
).fullmatch


def configure_logs(level: str = "info", stream: TextIO | None = None) -> None:
    """Sends the logs of structlog and of `logging` to `stream`, standard error by default.

    `level` is the lowest that is written: debug, info, warning, error. Libraries that
    use `logging` are heard from warning on.
    """
    written = sys.stderr if stream is None else stream
    target = cast(TextIO, _LossyStream(written))
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_call,
        redact,
    ]
    rendering = _rendering(written.isatty())
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=target),
        cache_logger_on_first_use=stream is None,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    handler.addFilter(_is_worth_a_line)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """gRPC logs as an error, with a traceback, an answer that couldn't be sent: to a client that
    went away in that moment, as one does that waits no longer."""
    return not (
        record.name.startswith("grpc.")
        and str(record.msg).startswith("ExecuteBatchError raised in core")
    )


class _LossyStream:
    """A stream that drops what can't be written, as on a full disk: who logs goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def add_call(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Adds `request_id` and `trace_id` of the call that the line was written in."""
    call = current_call.get()
    if call is not None:
        event.setdefault("request_id", call.request_id)
        if call.traceparent:
            event.setdefault("trace_id", call.traceparent.split("-")[1])
    return event


def redact(logger: object, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Replaces what stands under a key that names a secret, in nested values as well."""
    return {key: _redacted(key, value, _DEPTH_MAX) for key, value in event.items()}


def _redacted(key: object, value: Any, depth: int) -> Any:
    if isinstance(key, str) and _secret_key(key):
        return REDACTED
    if isinstance(value, Mapping):
        if depth == 0:
            return REDACTED
        return {inner: _redacted(inner, item, depth - 1) for inner, item in value.items()}
    if isinstance(value, (list, tuple)):
        return REDACTED if depth == 0 else [_redacted(None, item, depth - 1) for item in value]
    return value


def _rendering(terminal: bool) -> list[Processor]:
    if terminal:
        # Its default traceback shows local variables, and so whatever secrets they hold.
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=_json),
    ]


def _json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
