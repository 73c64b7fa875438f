"""What a version is made of: the limits that were asked for, and those that hold."""

import hashlib

from mesh.errors import InvalidArgument
from services.functions.settings import MEBIBYTE, FunctionsSettings
from weft.functions.v1 import function_service_pb2 as pb
from weft.functions.v1 import functions_pb2

ENTRY_POINT = "handler"
SOURCE_BYTES_MAX = 262_144
TIMEOUT_SECONDS = 10
CPU_SECONDS = 10
MEMORY_BYTES = 256 * MEBIBYTE
MEMORY_BYTES_MIN = 64 * MEBIBYTE
THREADS = 16
OPEN_FILES = 64
OPEN_FILES_MIN = 16
OUTPUT_BYTES = MEBIBYTE
SCRATCH_BYTES = 16 * MEBIBYTE


def new_version(
    request: pb.DeployFunctionRequest, settings: FunctionsSettings, now_ns: int
) -> functions_pb2.FunctionVersion:
    """The version that the request deploys, without its number. InvalidArgument for limits out
    of bounds, or a source that is too large."""
    source = request.source.encode()
    if len(source) > SOURCE_BYTES_MAX:
        raise InvalidArgument.of("source", f"has more than {SOURCE_BYTES_MAX} bytes")
    if "\0" in request.source:
        raise InvalidArgument.of("source", "has a character that isn't text")
    version = functions_pb2.FunctionVersion(
        sha256=hashlib.sha256(source).digest(),
        source_bytes=len(source),
        entry_point=request.entry_point or ENTRY_POINT,
        limits=_limits(request.limits, settings),
    )
    version.create_time.FromNanoseconds(now_ns)
    return version


def _limits(
    asked: functions_pb2.FunctionLimits, settings: FunctionsSettings
) -> functions_pb2.FunctionLimits:
    limits = functions_pb2.FunctionLimits(
        cpu_seconds=asked.cpu_seconds or CPU_SECONDS,
        memory_bytes=asked.memory_bytes or min(MEMORY_BYTES, settings.memory_bytes_max),
        threads=asked.threads or THREADS,
        open_files=asked.open_files or OPEN_FILES,
        output_bytes=asked.output_bytes or OUTPUT_BYTES,
        scratch_bytes=asked.scratch_bytes or min(SCRATCH_BYTES, settings.scratch_bytes_max),
    )
    if asked.HasField("timeout"):
        limits.timeout.CopyFrom(asked.timeout)
    else:
        limits.timeout.FromNanoseconds(
            int(min(TIMEOUT_SECONDS, settings.timeout_seconds_max) * 1e9)
        )
    timeout_seconds = limits.timeout.ToNanoseconds() / 1e9
    _within("timeout", timeout_seconds, 0.001, settings.timeout_seconds_max)
    _within("memory_bytes", limits.memory_bytes, MEMORY_BYTES_MIN, settings.memory_bytes_max)
    _within("open_files", limits.open_files, OPEN_FILES_MIN, 1_024)
    _within("scratch_bytes", limits.scratch_bytes, 0, settings.scratch_bytes_max)
    return limits


def _within(field: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise InvalidArgument.of(f"limits.{field}", f"must be {least} to {most} here")
