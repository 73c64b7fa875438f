"""Why a command failed: its exit code, and what the person who typed it is told."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import grpc
    from google.rpc import status_pb2  # type: ignore[import-untyped]

    from mesh.errors import WeftError


class ExitCode(IntEnum):
    """What the process answers to the shell."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    AUTHENTICATION = 4
    UNAVAILABLE = 5
    TURN_FAILED = 6
    DEADLINE = 124
    INTERRUPTED = 130


class CommandFailed(Exception):
    """Ends a command. `message` is one sentence; `notes` are further lines below it."""

    def __init__(
        self,
        message: str,
        *,
        exit_code: ExitCode = ExitCode.FAILURE,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.notes = tuple(notes)


class ServerLeft(CommandFailed):
    """The server has ended that the address was taken from; another one may come in its
    place."""


def usage_error(message: str, *notes: str) -> CommandFailed:
    """The failure of a command that was typed wrongly."""
    return CommandFailed(message, exit_code=ExitCode.USAGE, notes=notes)


_BROKEN = ("Socket closed", "Connection reset", "Broken pipe", "Connection dropped")
"""What gRPC says of a connection that there was."""
_EXIT_CODES = {
    "INVALID_ARGUMENT": ExitCode.USAGE,
    "OUT_OF_RANGE": ExitCode.USAGE,
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "UNAUTHENTICATED": ExitCode.AUTHENTICATION,
    "PERMISSION_DENIED": ExitCode.AUTHENTICATION,
    "UNAVAILABLE": ExitCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ExitCode.DEADLINE,
}


def from_weft_error(error: "WeftError") -> CommandFailed:
    """The failure that an error of this process stands for."""
    from mesh.rpc.status import code_of

    exit_code = _EXIT_CODES.get(code_of(error).name, ExitCode.FAILURE)
    return CommandFailed(error.message, exit_code=exit_code)


@contextmanager
def explained() -> Iterator[None]:
    """For a command that works in this process: what goes wrong in the block is said as a
    command says it."""
    from mesh.errors import WeftError

    try:
        yield
    except WeftError as error:
        raise from_weft_error(error) from error
    except ValueError as error:
        raise usage_error(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}") from error


def from_rpc_error(error: "grpc.RpcError", address: str) -> CommandFailed:
    """The failure that an RPC's error stands for; `address` is the server's."""
    code = _code_name(error)
    status = status_of(error)
    exit_code = _EXIT_CODES.get(code, ExitCode.FAILURE)
    if status is None and code == "UNAVAILABLE":
        if any(word in _details(error) for word in _BROKEN):
            return CommandFailed(
                f"the connection to {address} broke before the answer came",
                exit_code=exit_code,
                notes=[
                    "What was asked for may have been done, or go on. Look before you repeat it."
                ],
            )
        return CommandFailed(
            f"can't reach Weft at {address}",
            exit_code=exit_code,
            notes=["Start it with `weft up`, or name another server with --address."],
        )
    if status is None and code == "DEADLINE_EXCEEDED":
        return CommandFailed(
            f"{address} took too long to answer; --timeout gives it more seconds",
            exit_code=exit_code,
        )
    if status is None and code == "CANCELLED":
        # gRPC's own word, for what came in its server's last moment.
        return CommandFailed(
            f"{address} ended the call without an answer: it stops, or starts again",
            exit_code=ExitCode.UNAVAILABLE,
        )
    text = status.message if status is not None else _details(error)
    return CommandFailed(
        text or f"the server answered {code}",
        exit_code=exit_code,
        notes=list(_notes(code, status)) if status is not None else [f"status: {code}"],
    )


def status_of(error: "grpc.RpcError") -> "status_pb2.Status | None":
    """The `google.rpc.Status` that an error carries; None where the server sent none,
    as when the connection itself failed, or where it contradicts the error."""
    from google.protobuf.message import DecodeError
    from grpc_status import rpc_status

    try:
        return rpc_status.from_call(cast("grpc.Call", error))
    except (ValueError, DecodeError):
        return None


def was_lost(error: "grpc.RpcError | ServerLeft") -> bool:
    """Whether a stream was cut off rather than refused, so that another try may help.

    A server that stops cancels its streams without a status of its own, and a stream's
    deadline may pass while the command's has not.
    """
    if isinstance(error, ServerLeft):
        return True
    code = _code_name(error)
    if code == "CANCELLED":
        return status_of(error) is None
    return code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def is_unreached(error: "grpc.RpcError") -> bool:
    """Whether no server answered: it isn't there, or something else is."""
    return _code_name(error) == "UNAVAILABLE" and status_of(error) is None


def is_exhausted(error: "grpc.RpcError | ServerLeft") -> bool:
    """Whether a bound was reached, so that another try may help later."""
    return _code_name(error) == "RESOURCE_EXHAUSTED"


def is_not_found(error: "grpc.RpcError") -> bool:
    """Whether the server says that there is no such resource."""
    return _code_name(error) == "NOT_FOUND"


def violations_of(error: "grpc.RpcError") -> dict[str, str]:
    """What the server says is wrong with which fields of the request."""
    from google.rpc import error_details_pb2 as details

    status = status_of(error)
    bad_request = details.BadRequest()
    for detail in status.details if status is not None else ():
        detail.Unpack(bad_request)
    return {each.field: each.description for each in bad_request.field_violations}


def is_unauthenticated(error: "grpc.RpcError") -> bool:
    """Whether the server doesn't know who calls."""
    return _code_name(error) == "UNAUTHENTICATED"


def is_unimplemented(error: "grpc.RpcError") -> bool:
    """Whether the server doesn't offer the method."""
    return _code_name(error) == "UNIMPLEMENTED"


def _code_name(error: "grpc.RpcError | ServerLeft") -> str:
    code: Any = error.code() if hasattr(error, "code") else None
    return str(code.name) if code is not None else "UNKNOWN"


def _details(error: "grpc.RpcError") -> str:
    return str(error.details() or "") if hasattr(error, "details") else str(error)


def _needed(metadata: Mapping[str, str]) -> Iterator[str]:
    permission, resource = metadata.get("permission", ""), metadata.get("resource", "")
    if permission:
        yield f"needed: {permission}" + (f" on {resource}" if resource else "")
    yield "`weft whoami` shows what your key may do; a role gives more: `weft role bind`"


def _notes(code: str, status: "status_pb2.Status") -> Iterator[str]:
    from google.rpc import error_details_pb2 as details

    bad_request, error_info = details.BadRequest(), details.ErrorInfo()
    request_info, retry_info = details.RequestInfo(), details.RetryInfo()
    for detail in status.details:
        for message in (bad_request, error_info, request_info, retry_info):
            detail.Unpack(message)
    for violation in bad_request.field_violations:
        line = f"{violation.field}: {violation.description}"
        if line not in status.message:
            yield line
    if retry_info.retry_delay.ToTimedelta():
        yield f"try again in {retry_info.retry_delay.ToTimedelta().total_seconds():g} s"
    if code == "PERMISSION_DENIED":
        yield from _needed(error_info.metadata)
    yield f"status: {code}" + (f", reason: {error_info.reason}" if error_info.reason else "")
    request_id = request_info.request_id or error_info.metadata.get("request_id", "")
    if request_id:
        yield f"request id: {request_id}"
