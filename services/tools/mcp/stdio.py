"""The transport to an MCP server that Weft starts: JSON-RPC, a message per line, on its standard
input and output (modelcontextprotocol.io/specification, Transports, stdio)."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

REAPER = Path(__file__).with_name("reaper.py")
PATH = "/usr/local/bin:/usr/bin:/bin"
"""Where a server finds programs, behind the folder of its own."""
INPUT_END_SECONDS = 2.0
"""How long a server may take to end once its input has ended."""
REAPER_SECONDS_MAX = 8.0
NOT_JSON_MAX = 100
"""Lines that are no messages, as of servers that print, before a server is given up."""
SAID_LINES = 20
SAID_LENGTH_MAX = 2_000
REDACTED = "[redacted]"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """A server's program. `environment` is all that it gets beside PATH, HOME, TMPDIR and
    LANG; `secrets` are texts that it may say and that nobody shall see."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[str] = ()


class ServerProcess:
    """A running server, with what it says on its standard error."""

    def __init__(self, process: asyncio.subprocess.Process, secrets: Sequence[str]) -> None:
        self._process = process
        self._secrets = secrets
        self._said: deque[str] = deque(maxlen=SAID_LINES)

    @classmethod
    async def start(cls, command: Command, folder: Path, line_bytes_max: int) -> "ServerProcess":
        """Starts it with `folder` to work in. OSError where that fails."""
        program = command.arguments[0]
        environment = {
            "PATH": f"{os.path.dirname(program)}:{PATH}",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "LANG": "C.UTF-8",
            **command.environment,
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(REAPER), str(os.getpid())),
            *command.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=folder,
            env=environment,
            limit=line_bytes_max,
            # Ctrl-C in the terminal is for Weft, which ends its servers in order.
            start_new_session=True,
        )
        return cls(process, command.secrets)

    @property
    def pid(self) -> int:
        """Id of the process that has the server as its child."""
        return self._process.pid

    @property
    def said(self) -> str:
        """The end of what it said on its standard error, without secrets."""
        text = "\n".join(self._said)
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text[-SAID_LENGTH_MAX:]

    async def lines(self) -> AsyncIterator[bytes]:
        """What it says, line by line. ValueError for a line that is too long."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            yield line

    async def write(self, line: bytes) -> None:
        """Tells it a line. ConnectionError once it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        await self._process.stdin.drain()

    async def listen(self) -> None:
        """Takes what it says on its standard error, for as long as it does."""
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:
                # A line that is too long; what comes behind it may be of use.
                continue
            if not line:
                return
            self._said.append(line[:SAID_LENGTH_MAX].decode(errors="replace").rstrip())

    async def stop(self) -> int:
        """Ends it, by force in the end, with all that came from it; its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        for seconds, end in (
            (INPUT_END_SECONDS, self._process.terminate),
            (REAPER_SECONDS_MAX, self._process.kill),
        ):
            try:
                async with asyncio.timeout(seconds):
                    return await self._ended()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    end()
        return await self._ended()

    async def _ended(self) -> int:
        # Its own `wait` also waits for the end of its pipes, which others may hold open.
        while self._process.returncode is None:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        return self._process.returncode


class Notice:
    """What a session is told of its server's process."""

    def __init__(self) -> None:
        self.process: ServerProcess | None = None
        self.reason = ""
        """Why it is of no use any more, where that is known."""
        self.over = asyncio.Event()
        """It says nothing any more."""


@asynccontextmanager
async def stdio_transport(
    command: Command, folder: Path, message_bytes_max: int, notice: Notice
) -> AsyncIterator[tuple[Any, Any]]:
    """Starts the server and yields the streams that an MCP client takes. With its end it is
    ended, and its folder in `folder` deleted. OSError where it can't be started."""
    import anyio
    from mcp.shared.message import SessionMessage

    def make_folder() -> Path:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder))

    place = await asyncio.to_thread(make_folder)
    try:
        process = await ServerProcess.start(command, place, message_bytes_max)
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
        raise
    notice.process = process
    incoming, read_stream = anyio.create_memory_object_stream[Any](0)
    write_stream, outgoing = anyio.create_memory_object_stream[Any](0)

    async def read() -> None:
        not_json = 0
        async with incoming:
            try:
                async for line in process.lines():
                    try:
                        message = _parsed(line)
                    except ValueError:
                        not_json += 1
                        if not_json > NOT_JSON_MAX:
                            notice.reason = "it says too much that is no message of MCP"
                            return
                        continue
                    await incoming.send(SessionMessage(message))
            except ValueError:
                notice.reason = f"it said a message of more than {message_bytes_max} bytes"
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                # The session has ended.
                return

    async def write() -> None:
        async with outgoing:
            with contextlib.suppress(ConnectionError):
                async for message in outgoing:
                    text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                    await process.write(text.encode() + b"\n")

    tasks = [asyncio.create_task(work()) for work in (read, write, process.listen)]
    tasks[0].add_done_callback(lambda _: notice.over.set())
    try:
        yield read_stream, write_stream
    finally:
        # Whoever ends this waits until nothing of the server is left.
        ending = asyncio.create_task(_end(process, tasks, place))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(ending)
        for stream in (incoming, read_stream, write_stream, outgoing):
            stream.close()


def _parsed(line: bytes) -> Any:
    """A message of JSON-RPC. ValueError where it is none."""
    from mcp import types

    validate = types.jsonrpc_message_adapter.validate_json
    try:
        return validate(line, by_name=False)
    except ValueError:
        # Texts that JavaScript has cut may end in half of a character (a lone surrogate), which
        # pydantic refuses. Whoever waits for the answer shall have it all the same.
        if b"\\u" not in line:
            raise
    try:
        text = json.dumps(json.loads(line), ensure_ascii=False)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return validate(text.encode(errors="replace"), by_name=False)


async def _end(process: ServerProcess, tasks: Sequence[asyncio.Task[None]], place: Path) -> None:
    code = await process.stop()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    if code:
        _log.info("mcp_server_ended", code=code, said=process.said)
    await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
