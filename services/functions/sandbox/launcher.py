"""Weft's side of sandboxes: the keeper that starts them, and one sandbox each."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from mesh.errors import FailedPrecondition, Unavailable
from mesh.private_files import make_private_folder
from services.functions.sandbox.backends import Backend
from services.functions.sandbox.keeper import remove_folder
from services.functions.sandbox.limits import ERRORS, Ended, Invocation, Limits

START_SECONDS_MAX = 15.0
END_SECONDS_MAX = 10.0
ANSWER_BYTES_SPARE = 65_536
READ_BYTES = 65_536
START_ATTEMPTS = 2
CPU_SHARE = 0.5
"""A process that was killed for its time has used that, as the kernel's ticks count it; on a busy
machine they count more than it had."""

OnOutput = Callable[[str, bytes], None]
"""Is told of what a function prints: `stdout` or `stderr`, and some bytes."""

_log = structlog.get_logger(__name__)


class Keeper:
    """Starts the process that starts sandboxes, and asks it for them."""

    def __init__(self, backend: Backend, scratch: Path) -> None:
        self.backend = backend
        self._scratch = scratch
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._cleared = False

    async def sandbox(self) -> "Sandbox":
        """A new one, once it is confined and waits for its invocation. Unavailable where it
        doesn't come to be, FailedPrecondition where the back end refuses."""
        for _ in range(START_ATTEMPTS - 1):
            try:
                return await self._started()
            except Unavailable:
                # Nothing ran yet. The keeper may be about to end; sandboxes don't depend on it.
                await self.stop()
        return await self._started()

    async def _started(self) -> "Sandbox":
        await self._ensure()
        channel, inner_channel = socket.socketpair()
        guard, inner_guard = socket.socketpair()
        out_read, out_write = os.pipe()
        error_read, error_write = os.pipe()
        given = [inner_channel.fileno(), out_write, error_write, inner_guard.fileno()]
        sandbox = Sandbox(channel, guard, out_read, error_read)
        try:
            assert self._control is not None
            socket.send_fds(self._control, [b"{}"], given)
        except OSError as error:
            await sandbox.close()
            raise Unavailable("functions can't be started right now") from error
        finally:
            inner_channel.close()
            inner_guard.close()
            os.close(out_write)
            os.close(error_write)
        await sandbox.ready()
        return sandbox

    async def stop(self) -> None:
        """Ends the keeper. Sandboxes end as they are closed."""
        control, self._control = self._control, None
        process, self._process = self._process, None
        if control is not None:
            control.close()
        if process is not None:
            try:
                async with asyncio.timeout(END_SECONDS_MAX):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    async def _ensure(self) -> None:
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            await self.stop()
            if not self._cleared:
                # Not again: another keeper's sandboxes go on in theirs when it has ended.
                await asyncio.to_thread(self._clear)
                self._cleared = True
            control, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            configuration = json.dumps(self.backend.configuration(self._scratch))
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self.backend.keeper_command(),
                    configuration,
                    stdin=inner.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=None,
                    env={},
                    start_new_session=True,
                )
            except OSError as error:
                control.close()
                raise Unavailable("functions can't be started right now") from error
            finally:
                inner.close()
            control.setblocking(False)
            self._control = control

    def _clear(self) -> None:
        """Makes the folder, without what a process before this one left there."""
        make_private_folder(self._scratch)
        for left in self._scratch.iterdir():
            remove_folder(str(left))


class Sandbox:
    """One confined process; it takes one invocation, and is closed after it."""

    def __init__(
        self, channel: socket.socket, guard: socket.socket, out_read: int, error_read: int
    ) -> None:
        self._channel = channel
        self._guard = guard
        self._pipes = {"stdout": out_read, "stderr": error_read}
        self._loop = asyncio.get_running_loop()
        self._closed = False
        for descriptor in (channel.fileno(), guard.fileno(), out_read, error_read):
            os.set_blocking(descriptor, False)

    async def ready(self) -> None:
        """Returns once it waits for its invocation; else it is closed, and this raises
        FailedPrecondition or Unavailable."""
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                said = await self._message(READ_BYTES)
        except (OSError, TimeoutError, ValueError):
            said = None
        except BaseException:
            await self.close()
            raise
        if said is None or "ready" not in said:
            end = await self.close()
            _log.warning("sandbox_not_started", detail=str(end.get("message", ""))[:500])
            if end.get("reason") == "start":
                raise FailedPrecondition("the sandbox for functions can't be set up here")
            raise Unavailable("functions can't be started right now")

    @property
    def alive(self) -> bool:
        """Whether it still waits, as far as can be seen."""
        if self._closed:
            return False
        try:
            # It says nothing now; the kernel closes the channel as it ends.
            self._channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    async def run(self, invocation: Invocation, limits: Limits, on_output: OnOutput) -> Ended:
        """Runs the invocation and closes the sandbox. Never raises for what the function does;
        where this is cancelled the function is ended."""
        output = _Output(self._loop, self._pipes, limits.output_bytes, on_output)
        begun = time.monotonic()
        answer: dict[str, object] = {}
        error = "crashed"
        try:
            answered = asyncio.ensure_future(self._answer(invocation, limits))
            flooded = asyncio.ensure_future(output.flooded.wait())
            try:
                await asyncio.wait(
                    (answered, flooded),
                    timeout=limits.timeout_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if flooded.done():
                    error = "output"
                elif not answered.done():
                    error = "timeout"
                else:
                    answer = answered.result() or {}
            except (OSError, ValueError):
                answer = {}
            finally:
                for task in (answered, flooded):
                    task.cancel()
                await asyncio.gather(answered, flooded, return_exceptions=True)
            duration = time.monotonic() - begun
            end = await self.close(output)
        finally:
            if not self._closed:
                await self.close(output)
        if answer == {"error": "output"}:
            error, answer = "output", {}
        return _ended(answer, error, end, limits, duration)

    async def close(self, output: "_Output | None" = None) -> dict[str, object]:
        """Ends it, and says what its guard says of that; empty where it is gone."""
        if self._closed:
            return {}
        self._closed = True
        closing = asyncio.ensure_future(self._close(output))
        try:
            return await asyncio.shield(closing)
        except asyncio.CancelledError:
            # Whoever waits is gone; that it ends doesn't depend on them.
            await asyncio.wait((closing,))
            raise

    async def _close(self, output: "_Output | None") -> dict[str, object]:
        with contextlib.suppress(OSError):
            self._guard.shutdown(socket.SHUT_WR)
        said = b""
        try:
            async with asyncio.timeout(END_SECONDS_MAX):
                while part := await self._loop.sock_recv(self._guard, READ_BYTES):
                    said += part
                    if len(said) > READ_BYTES:
                        break
        except (OSError, TimeoutError):
            said = b""
        finally:
            if output is not None:
                output.close()
            self._guard.close()
            self._channel.close()
            for pipe in self._pipes.values():
                os.close(pipe)
        try:
            end = json.loads(said)
        except ValueError:
            return {}
        return end if isinstance(end, dict) else {}

    async def _answer(self, invocation: Invocation, limits: Limits) -> dict[str, object] | None:
        kept = {
            "memory_bytes": limits.memory_bytes,
            "cpu_seconds": limits.cpu_seconds,
            "threads": limits.threads,
            "open_files": limits.open_files,
            "output_bytes": limits.output_bytes,
            "scratch_bytes": limits.scratch_bytes,
        }
        await self._loop.sock_sendall(self._guard, json.dumps({"limits": kept}).encode())
        body = json.dumps(
            {
                "source": invocation.source,
                "entry_point": invocation.entry_point,
                "arguments": invocation.arguments,
                "context": invocation.context or {},
                "check": invocation.check,
                "limits": kept,
            }
        ).encode()
        await self._loop.sock_sendall(self._channel, len(body).to_bytes(4, "big") + body)
        # JSON within JSON: a character of the result takes six bytes at most.
        return await self._message(6 * limits.output_bytes + ANSWER_BYTES_SPARE)

    async def _message(self, bytes_max: int) -> dict[str, object] | None:
        """The next message, which is the function's word: of any size and form. None where none
        comes; ValueError where it isn't one."""
        head = await self._exactly(4)
        if head is None:
            return None
        count = int.from_bytes(head, "big")
        if count > bytes_max:
            return {"error": "output"}
        body = await self._exactly(count)
        if body is None:
            return None
        try:
            message = json.loads(body)
        except RecursionError:
            raise ValueError("nested too deep") from None
        if not isinstance(message, dict):
            raise ValueError("not an object")
        return message

    async def _exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            part = await self._loop.sock_recv(self._channel, min(count - len(parts), 1 << 20))
            if not part:
                return None
            parts += part
        return bytes(parts)


class _Output:
    """Reads what a function prints, until that is too much."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pipes: dict[str, int],
        bytes_max: int,
        on_output: OnOutput,
    ) -> None:
        self.flooded = asyncio.Event()
        self._loop = loop
        self._pipes = pipes
        self._left = bytes_max
        self._on_output = on_output
        for name, pipe in pipes.items():
            loop.add_reader(pipe, self._read, name, pipe)

    def close(self) -> None:
        """Takes what is there still, and reads no more."""
        for name, pipe in self._pipes.items():
            while self._left > 0 and self._read(name, pipe):
                pass
            self._loop.remove_reader(pipe)

    def _read(self, name: str, pipe: int) -> bool:
        try:
            data = os.read(pipe, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(pipe)
            return False
        kept = data[: self._left]
        self._left -= len(kept)
        if kept:
            self._on_output(name, kept)
        if self._left <= 0:
            self.flooded.set()
            for each in self._pipes.values():
                self._loop.remove_reader(each)
        return True


def _ended(
    answer: dict[str, object],
    error: str,
    end: dict[str, object],
    limits: Limits,
    duration_seconds: float,
) -> Ended:
    """What became of an invocation, by what the function, and what its guard said of it."""
    cpu, memory = end.get("cpu_seconds"), end.get("memory_bytes")
    cpu_seconds = float(cpu) if isinstance(cpu, int | float) else 0.0
    memory_bytes = memory if isinstance(memory, int) else 0
    used = (duration_seconds, cpu_seconds, memory_bytes)
    result = answer.get("result")
    if isinstance(result, str):
        if len(result.encode(errors="replace")) > limits.output_bytes:
            return Ended(None, "output", "", "", *used)
        return Ended(result, "", "", "", *used)
    said = answer.get("error")
    if isinstance(said, str) and said in ERRORS:
        message, trace = str(answer.get("message", "")), str(answer.get("trace", ""))
        return Ended(None, said, message, trace, *used)
    reason = end.get("reason")
    if error == "crashed" and reason in ("threads", "scratch"):
        return Ended(None, str(reason), "", "", *used)
    killed = end.get("signal") == signal.SIGKILL
    if error == "crashed" and killed and cpu_seconds >= CPU_SHARE * limits.cpu_seconds:
        error = "cpu"
    return Ended(None, error, "", "", *used)
