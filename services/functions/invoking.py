"""Invoking functions: whose turn it is, a sandbox, its output, what came of it."""

from dataclasses import dataclass

from mesh.call import Call
from mesh.errors import DeadlineExceeded
from mesh.ids import new_id
from mesh.telemetry import traces
from services.functions.logs import Logs
from services.functions.sandbox.limits import Ended, Invocation, Limits
from services.functions.sandbox.pool import Pool
from services.functions.turns import Turns
from weft.functions.v1 import functions_pb2

_KINDS = {
    "raised": functions_pb2.FUNCTION_ERROR_KIND_RAISED,
    "source": functions_pb2.FUNCTION_ERROR_KIND_SOURCE,
    "result": functions_pb2.FUNCTION_ERROR_KIND_RESULT,
    "output": functions_pb2.FUNCTION_ERROR_KIND_OUTPUT,
    "memory": functions_pb2.FUNCTION_ERROR_KIND_MEMORY,
    "timeout": functions_pb2.FUNCTION_ERROR_KIND_TIMEOUT,
    "cpu": functions_pb2.FUNCTION_ERROR_KIND_CPU,
    "threads": functions_pb2.FUNCTION_ERROR_KIND_THREADS,
    "scratch": functions_pb2.FUNCTION_ERROR_KIND_SCRATCH,
    "crashed": functions_pb2.FUNCTION_ERROR_KIND_CRASHED,
}
_TEXT_LENGTH_MAX = 8_192


@dataclass(frozen=True, slots=True)
class Invoked:
    """What came of an invocation: `ended`, by the id `invocation`; `warm` where a process was
    there for it."""

    ended: Ended
    invocation: str
    warm: bool


class Invoker:
    """Runs functions, within the bounds that hold for all of them."""

    def __init__(self, pool: Pool, turns: Turns, logs: Logs) -> None:
        self._pool = pool
        self._turns = turns
        self._logs = logs

    async def check(
        self, name: str, version: functions_pb2.FunctionVersion, source: str, call: Call
    ) -> Ended:
        """Whether the source loads in the sandbox and has its function. What it prints then is
        let go. Raises as `invoke`."""
        invocation = Invocation(source, version.entry_point, check=True)
        limits = _limits(version.limits)
        async with self._turns.taken(name, call.remaining_seconds()):
            sandbox, _ = await self._pool.take()
            return await sandbox.run(invocation, limits, lambda stream, data: None)

    async def invoke(
        self,
        name: str,
        version: functions_pb2.FunctionVersion,
        source: str,
        arguments_json: str,
        idempotency_key: str,
        call: Call,
    ) -> Invoked:
        """Runs it once. LimitExceeded where its turn doesn't come in time, FailedPrecondition
        where nothing confines it here, Unavailable where no process can be had,
        DeadlineExceeded where the call's time ends before the function's."""
        limits = _limits(version.limits)
        identity = new_id()
        context: dict[str, object] = {
            "function": name,
            "version": version.version,
            "invocation": identity,
            "idempotency_key": idempotency_key,
            "timeout_seconds": limits.timeout_seconds,
        }
        invocation = Invocation(source, version.entry_point, arguments_json, context)
        writer = self._logs.writer(name, version.version, identity, idempotency_key)
        try:
            async with self._turns.taken(name, call.remaining_seconds()):
                sandbox, warm = await self._pool.take()
                if call.remaining_seconds() <= 0:
                    await sandbox.close()
                    raise DeadlineExceeded("the deadline passed before the function began")
                short = name.rpartition("/")[2]
                with traces.function_span(
                    short, version.version, identity, call.traceparent
                ) as span:
                    ended = await sandbox.run(invocation, limits, writer.write)
                    span.set(traces.FAAS_COLD_START, not warm)
                    span.set(traces.FUNCTION_CPU_SECONDS, ended.cpu_seconds)
                    span.set(traces.FUNCTION_MEMORY_BYTES, ended.memory_bytes)
        finally:
            await writer.close()
        return Invoked(ended, identity, warm)


def error_of(ended: Ended, limits: functions_pb2.FunctionLimits) -> functions_pb2.FunctionError:
    """Why there is no result, in words."""
    words = {
        "output": f"it returned or printed more than {limits.output_bytes} bytes",
        "memory": f"it needs more than {limits.memory_bytes} bytes of memory",
        "timeout": f"it took longer than {limits.timeout.ToMilliseconds() / 1000:g} s",
        "cpu": f"it used more than {limits.cpu_seconds} s of processor time",
        "threads": f"it had more than {limits.threads} threads",
        "scratch": f"it wrote more than {limits.scratch_bytes} bytes of files",
        "crashed": "its process ended without a result",
    }
    return functions_pb2.FunctionError(
        kind=_KINDS[ended.error],
        message=_text(ended.message or words.get(ended.error, "")),
        trace=_text(ended.trace),
    )


def _limits(limits: functions_pb2.FunctionLimits) -> Limits:
    return Limits(
        timeout_seconds=limits.timeout.ToNanoseconds() / 1e9,
        cpu_seconds=limits.cpu_seconds,
        memory_bytes=limits.memory_bytes,
        threads=limits.threads,
        open_files=limits.open_files,
        output_bytes=limits.output_bytes,
        scratch_bytes=limits.scratch_bytes,
    )


def _text(said: str) -> str:
    """What a function says, as a string of the contract's: lone surrogates aren't UTF-8."""
    return said.encode(errors="replace").decode()[:_TEXT_LENGTH_MAX]
