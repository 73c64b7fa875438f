"""Processes in which plain functions run, one in each at a time.

Each is an executor of its own, so that a function may be ended with its process: one that
is cancelled, and one that kills its process, disturb no other.
"""

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

_SENT_AS_IT_IS = (bytes, str, type(None))
TELL_SECONDS = 0.1
"""What a function says of how far it is goes to the worker no more often."""

Heard = Callable[[float, str], None]
"""Takes how far a function is, and a note."""


def _unheard(fraction: float, note: str) -> None:
    """Nobody asked."""


class Untold(Exception):
    """What a function raised, or returned, that can't be sent from process to process: its
    type and text."""


class Processes:
    """There are as many as functions ran at once; each is used again."""

    def __init__(self) -> None:
        self._idle: list[_Process] = []
        self._ending: set[asyncio.Future[None]] = set()

    async def run(
        self, function: Callable[[Any], Any], argument: Any, heard: Heard = _unheard
    ) -> Any:
        """What the function returns, which runs in another process; `heard` gets what it
        tells by `tell`. Raises what it raises,
        Untold where that can't be sent from there, and BrokenProcessPool where its process
        dies; one that is cancelled is killed."""
        process, returned = await self._begin(function, argument)
        process.heard = heard
        try:
            result = await returned
        except (asyncio.CancelledError, BrokenProcessPool):
            self._end(process)
            raise
        except BaseException:
            self._idle.append(process)
            raise
        self._idle.append(process)
        return result

    async def close(self) -> None:
        """Returns once all processes have ended."""
        while self._idle:
            self._end(self._idle.pop())
        await asyncio.gather(*self._ending)

    async def _begin(
        self, function: Callable[[Any], Any], argument: Any
    ) -> tuple["_Process", "asyncio.Future[Any]"]:
        while self._idle:
            process = self._idle.pop()
            try:
                return process, process.submit(function, argument)
            except BrokenProcessPool:
                # It died while it had nothing to do.
                self._end(process)
        process = _Process()
        try:
            process.pid = await process.submit(_pid, None)
        except BaseException:
            self._end(process)
            raise
        return process, process.submit(function, argument)

    def _end(self, process: "_Process") -> None:
        process.let_go()
        ending = asyncio.get_running_loop().run_in_executor(None, process.end)
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


class _Process:
    """One process, begun with its first function."""

    def __init__(self) -> None:
        self.pid = 0
        self.heard: Heard = _unheard
        # Not forked: a child would inherit signal handlers and connections.
        context = multiprocessing.get_context("forkserver")
        theirs, self._ours = context.Pipe(duplex=False)
        self._told, telling = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(
            1, mp_context=context, initializer=_live_with_worker, initargs=(theirs, telling)
        )
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._told.fileno(), self._hear)

    def submit(self, function: Callable[[Any], Any], argument: Any) -> "asyncio.Future[Any]":
        return asyncio.wrap_future(self._executor.submit(_told, function, argument))

    def let_go(self) -> None:
        """Hears nothing more of it."""
        self._loop.remove_reader(self._told.fileno())
        self._told.close()

    def _hear(self) -> None:
        try:
            fraction, note = self._told.recv()
        except (EOFError, OSError):
            self._loop.remove_reader(self._told.fileno())
        else:
            self.heard(fraction, note)

    def end(self) -> None:
        """Kills it, and returns once its executor's thread has ended: one that is still
        about it at the interpreter's exit fails there."""
        self._ours.close()
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._executor.shutdown(cancel_futures=True)


def _told(function: Callable[[Any], Any], argument: Any) -> Any:
    """Runs there. What can't be read here would break the pool, as if the process had died."""
    try:
        result = function(argument)
    except BaseException as error:
        if _can_be_sent(error):
            raise
        traceback.print_exc()
        raise Untold(_said(error)) from None
    if not isinstance(result, _SENT_AS_IT_IS) and not _can_be_sent(result):
        raise Untold(f"its result, {type(result).__name__}, can't be sent from its process")
    return result


def _can_be_sent(value: object) -> bool:
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:  # noqa: BLE001 - classes of others may raise anything
        return False
    return True


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - also what tells of itself wrongly is told of
        return type(error).__name__


def _pid(_: None) -> int:
    return os.getpid()


_telling: Connection
_told_at = float("-inf")


def tell(fraction: float, note: str) -> None:
    """Called there: tells the worker how far the function is."""
    global _told_at
    now = time.monotonic()
    if now - _told_at >= TELL_SECONDS:
        _told_at = now
        _telling.send((fraction, note))


def _live_with_worker(pipe: Connection, telling: Connection) -> None:
    """Ends the process when the worker ends, however that comes; a signal from the terminal
    is the worker's to handle."""
    global _telling
    _telling = telling
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=partial(_exit_at_end_of, pipe), daemon=True).start()


def _exit_at_end_of(pipe: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        pipe.recv_bytes()
    os._exit(1)
