"""What runs within the sandbox: it waits for one invocation, runs it, and ends.

It is given to a bare interpreter as text, so it imports nothing of Weft's. Descriptor 0 is
the channel to Weft, 1 and 2 are what the function prints. Before it reads anything it has
the kernel refuse the system calls that aren't in the filter, given in hexadecimal; before it
looks at the source it sets its limits, which nothing can raise again.

Messages are JSON behind their length, four bytes. In: `source`, `entry_point`, `arguments`,
`context`, `limits`, `check`. Out: `ready`, then `result` or `error`.
"""

import asyncio
import collections
import ctypes
import datetime
import gc
import inspect
import json
import linecache
import math  # noqa: F401
import os
import re  # noqa: F401
import resource
import struct
import sys
import traceback
import types
from typing import Any

FILE = "function.py"
TEXT_LENGTH_MAX = 8_192
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


class Refused(Exception):
    """The invocation has no result; `kind` says why."""

    def __init__(self, kind: str, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.trace = trace


def main(program: bytes) -> None:
    """Serves one invocation."""
    _warm()
    if program:
        _confine(program)
    channel = _take_channel()
    _send(channel, {"ready": True})
    request = _receive(channel)
    if request is None:
        os._exit(0)
    limits = request["limits"]
    _limit(limits)
    # What was made so far is never looked at again by the collector.
    gc.freeze()
    try:
        answer = {"result": _run(request)}
        if len(answer["result"].encode()) > limits["output_bytes"]:
            raise Refused("output", f"the result has more than {limits['output_bytes']} bytes")
    except Refused as refused:
        answer = {"error": refused.kind, "message": _cut(str(refused)), "trace": refused.trace}
    except MemoryError:
        answer = {"error": "memory", "message": "out of memory", "trace": ""}
    _flush()
    _send(channel, answer)
    # Threads that it left behind end here, and nothing that it registered runs.
    os._exit(0)


def _warm() -> None:
    """Does once what the first use of something would: loading codecs, building tables."""
    collections.deque()
    datetime.datetime.now(datetime.UTC).isoformat()
    json.loads(json.dumps({"": "é"}))
    inspect.signature(_warm)


def _confine(program: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    steps = ctypes.create_string_buffer(program, len(program))
    fields = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(steps))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        os._exit(3)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fields, 0, 0) != 0:
        os._exit(3)


def _take_channel() -> int:
    """The channel, moved from where functions would read their input, of which there is none."""
    channel = os.dup(0)
    empty, end = os.pipe()
    os.close(end)
    os.dup2(empty, 0)
    os.close(empty)
    return channel


def _limit(limits: dict[str, int]) -> None:
    for name, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_FSIZE, limits["scratch_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 64),
    ):
        hard = resource.getrlimit(name)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(name, (value, value))


def _run(request: dict[str, Any]) -> str:
    source = request["source"]
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
    module = types.ModuleType("function")
    module.__file__ = FILE
    sys.modules["function"] = module
    sys.argv = [FILE]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        code = compile(source, FILE, "exec")
    except (SyntaxError, ValueError) as error:
        raise Refused("source", f"it doesn't compile: {error}") from None
    except (RecursionError, MemoryError):
        # Of the compiler's: its stack has an end.
        raise Refused("source", "it doesn't compile: it is nested too deep") from None
    _guarded(lambda: exec(code, module.__dict__))
    handler = getattr(module, request["entry_point"], None)
    if not callable(handler):
        raise Refused("source", f"it has no function {request['entry_point']}")
    if request["check"]:
        return "null"
    given = [_arguments(request["arguments"]), request["context"]][: _parameters(handler)]
    result = _guarded(lambda: _finished(handler(*given)))
    try:
        text = json.dumps(result, allow_nan=False, ensure_ascii=False)
        text.encode()
    except RecursionError:
        raise Refused("result", "the result is nested too deep") from None
    except (TypeError, ValueError) as error:
        raise Refused("result", f"the result isn't JSON: {error}") from None
    return text


def _arguments(text: str) -> Any:
    """JSON may be deeper, and have longer numbers, than Python reads."""
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:
        raise Refused("raised", _cut(f"the arguments can't be read: {error}")) from None


def _parameters(handler: Any) -> int:
    """How many of arguments and context the function takes."""
    try:
        kinds = [each.kind for each in inspect.signature(handler).parameters.values()]
    except (TypeError, ValueError):
        return 1
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(kind in positional for kind in kinds)


def _finished(result: Any) -> Any:
    """The result, or what it comes to where the function is a coroutine."""
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _guarded(run: Any) -> Any:
    try:
        return run()
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001 - what it raises is its answer, SystemExit too
        name, said = type(error).__name__, _said(error)
        message = f"{name}: {said}" if said else name
        raise Refused("raised", _cut(message), _trace(error)) from None


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 - it is the function's own code
        return ""


def _trace(error: BaseException) -> str:
    """Where it happened, without our own frames."""
    frames = traceback.extract_tb(error.__traceback__, limit=-20)
    lines = traceback.format_list([frame for frame in frames if frame.filename != "<string>"])
    return _cut("".join(lines))


def _cut(text: str) -> str:
    return text.encode(errors="replace").decode()[:TEXT_LENGTH_MAX]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue


def _receive(channel: int) -> dict[str, Any] | None:
    head = _read(channel, 4)
    if head is None:
        return None
    body = _read(channel, int.from_bytes(head, "big"))
    return None if body is None else json.loads(body)


def _read(channel: int, count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(channel, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _send(channel: int, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    data = memoryview(len(body).to_bytes(4, "big") + body)
    while data:
        data = data[os.write(channel, data) :]


if __name__ == "__main__":
    main(bytes.fromhex(sys.argv[1]))
