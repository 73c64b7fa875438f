"""The one table between Weft's errors and gRPC's status codes, and both ways through it.

A status carries `google.rpc.ErrorInfo` with the domain `weft`, and where it has them
BadRequest, RetryInfo and RequestInfo (google/rpc/error_details.proto, AIP-193).
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from mesh import errors
from mesh.errors import FieldViolation, Reason, WeftError
from weft.errors.v1 import errors_pb2

DOMAIN = "weft"
DETAILS_KEY = "grpc-status-details-bin"
MESSAGE_BYTES_MAX = 512
# In metadata both texts grow by encoding; together they stay below the 8 KiB that
# gRPC clients accept by default.
STATUS_BYTES_MAX = 4096
INFO_BYTES_MAX = 2048

_REASON_PREFIX = "REASON_"
_Code = grpc.StatusCode

TABLE: dict["Reason.ValueType", tuple[grpc.StatusCode, type[WeftError]]] = {
    errors_pb2.REASON_INVALID_FIELD: (_Code.INVALID_ARGUMENT, errors.InvalidArgument),
    errors_pb2.REASON_REQUEST_ID_REUSED: (_Code.INVALID_ARGUMENT, errors.RequestIdReused),
    errors_pb2.REASON_RESOURCE_NOT_FOUND: (_Code.NOT_FOUND, errors.NotFound),
    errors_pb2.REASON_DATA_ERASED: (_Code.NOT_FOUND, errors.DataErased),
    errors_pb2.REASON_RESOURCE_EXISTS: (_Code.ALREADY_EXISTS, errors.AlreadyExists),
    errors_pb2.REASON_REVISION_CONFLICT: (_Code.ABORTED, errors.Conflict),
    errors_pb2.REASON_OWNER_LOST: (_Code.ABORTED, errors.OwnerLost),
    errors_pb2.REASON_STATE_PRECONDITION: (_Code.FAILED_PRECONDITION, errors.FailedPrecondition),
    errors_pb2.REASON_TURN_IN_PROGRESS: (_Code.FAILED_PRECONDITION, errors.TurnInProgress),
    errors_pb2.REASON_MODEL_REFUSED: (_Code.FAILED_PRECONDITION, errors.ModelRefused),
    errors_pb2.REASON_NOT_SERVING: (_Code.UNAVAILABLE, errors.NotServing),
    errors_pb2.REASON_EVENT_STORE_UNAVAILABLE: (_Code.UNAVAILABLE, errors.EventStoreUnavailable),
    errors_pb2.REASON_MODEL_UNAVAILABLE: (_Code.UNAVAILABLE, errors.ModelUnavailable),
    errors_pb2.REASON_TOOL_UNAVAILABLE: (_Code.UNAVAILABLE, errors.ToolUnavailable),
    errors_pb2.REASON_LIMIT_EXCEEDED: (_Code.RESOURCE_EXHAUSTED, errors.LimitExceeded),
    errors_pb2.REASON_MODEL_RATE_LIMITED: (_Code.RESOURCE_EXHAUSTED, errors.ModelRateLimited),
    errors_pb2.REASON_BUDGET_SPENT: (_Code.RESOURCE_EXHAUSTED, errors.BudgetSpent),
    errors_pb2.REASON_RATE_LIMITED: (_Code.RESOURCE_EXHAUSTED, errors.RateLimited),
    errors_pb2.REASON_CREDENTIAL_INVALID: (_Code.UNAUTHENTICATED, errors.CredentialInvalid),
    errors_pb2.REASON_PERMISSION_DENIED: (_Code.PERMISSION_DENIED, errors.PermissionDenied),
    errors_pb2.REASON_DEADLINE_EXCEEDED: (_Code.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
    errors_pb2.REASON_CANCELLED: (_Code.CANCELLED, errors.Cancelled),
    errors_pb2.REASON_UNIMPLEMENTED: (_Code.UNIMPLEMENTED, errors.Unimplemented),
    errors_pb2.REASON_DATA_DAMAGED: (_Code.DATA_LOSS, errors.DataDamaged),
    errors_pb2.REASON_INTERNAL: (_Code.INTERNAL, errors.Internal),
    errors_pb2.REASON_MODEL_BAD_ANSWER: (_Code.INTERNAL, errors.ModelBadAnswer),
}

# A status of somebody else's: its text isn't passed on, so each has one of ours.
_FOREIGN: dict[grpc.StatusCode, tuple[type[WeftError], str]] = {
    # A server that stops: gRPC answers so, by itself, what came before its client knew (seen with
    # a bare server of 1.78.2), and what hadn't ended in time.
    _Code.CANCELLED: (errors.Unavailable, "the server ended the call: it stops"),
    _Code.INVALID_ARGUMENT: (errors.InvalidArgument, "the server refused the request"),
    _Code.OUT_OF_RANGE: (errors.InvalidArgument, "the server refused the request"),
    _Code.DEADLINE_EXCEEDED: (errors.DeadlineExceeded, "the call's deadline passed"),
    _Code.NOT_FOUND: (errors.NotFound, "the server found no such resource"),
    _Code.ALREADY_EXISTS: (errors.AlreadyExists, "the resource is there already"),
    _Code.PERMISSION_DENIED: (errors.FailedPrecondition, "the server refused this caller"),
    _Code.UNAUTHENTICATED: (errors.FailedPrecondition, "the server doesn't know this caller"),
    _Code.RESOURCE_EXHAUSTED: (errors.LimitExceeded, "too large a message, or too many calls"),
    _Code.FAILED_PRECONDITION: (errors.FailedPrecondition, "the server's state refuses the call"),
    _Code.ABORTED: (errors.Conflict, "the server aborted the call"),
    _Code.UNIMPLEMENTED: (errors.Unimplemented, "the server doesn't offer the method"),
    _Code.UNAVAILABLE: (errors.Unavailable, "the server can't be reached"),
    _Code.DATA_LOSS: (errors.DataDamaged, "the server's data is damaged"),
}
_FOREIGN_FAULT = (errors.Internal, "the server failed")
_SEND_FAILED = "Internal error from Core"
"""What grpcio says, with INTERNAL, where a message of a stream can't be sent because the
connection just broke (seen with 1.78.2, in one of six kills under a stream)."""


def code_of(error: BaseException) -> grpc.StatusCode:
    """The status code with which a call ends that `error` ended."""
    if isinstance(error, WeftError):
        return TABLE[error.reason][0]
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return _Code.CANCELLED
    return _Code.INTERNAL


def to_status(error: WeftError, request_id: str = "") -> status_pb2.Status:
    """The status that tells a caller about `error`, of at most STATUS_BYTES_MAX bytes.

    Violations beyond that are left out, last first.
    """
    code: Any = code_of(error).value[0]
    status = status_pb2.Status(code=code, message=_shortened(error.message))
    info = error_details_pb2.ErrorInfo(
        reason=Reason.Name(error.reason).removeprefix(_REASON_PREFIX),
        domain=DOMAIN,
    )
    for key, value in error.metadata.items():
        if info.ByteSize() + len(key) < INFO_BYTES_MAX - MESSAGE_BYTES_MAX:
            info.metadata[key] = _shortened(value)
    _add(status, info)
    if request_id:
        _add(status, error_details_pb2.RequestInfo(request_id=request_id))
    if error.retry_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_seconds * 1e9))
        _add(status, retry)
    _add_violations(status, error.violations)
    return status


def from_rpc_error(error: grpc.aio.AioRpcError) -> WeftError:
    """The error that a server answered with, of the class that it raised there.

    A status that isn't Weft's is mapped by its code, without its text.
    """
    status = _details_of(error)
    found = _our_error(status) if status is not None else None
    if found is not None:
        return found
    if is_send_failed(error):
        return errors.Unavailable("the connection broke while the request was being sent")
    error_class, message = _FOREIGN.get(error.code(), _FOREIGN_FAULT)
    return error_class(message, metadata={"grpc_code": error.code().name})


def is_send_failed(error: grpc.aio.AioRpcError) -> bool:
    """Whether a stream's message couldn't be sent: no server answered so, this process's own
    gRPC says it."""
    return error.code() is _Code.INTERNAL and error.details() == _SEND_FAILED


def _details_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _our_error(status: status_pb2.Status) -> WeftError | None:
    info = _detail(status, error_details_pb2.ErrorInfo())
    if info is None or info.domain != DOMAIN:
        return None
    reason = errors_pb2.Reason.DESCRIPTOR.values_by_name.get(_REASON_PREFIX + info.reason)
    entry = TABLE.get(reason.number) if reason is not None else None
    if entry is None:
        return None
    bad_request = _detail(status, error_details_pb2.BadRequest())
    retry = _detail(status, error_details_pb2.RetryInfo())
    return entry[1](
        status.message,
        metadata=info.metadata,
        violations=[
            FieldViolation(violation.field, violation.description)
            for violation in (bad_request.field_violations if bad_request else ())
        ],
        retry_seconds=retry.retry_delay.ToNanoseconds() / 1e9 if retry else None,
    )


def _detail(status: status_pb2.Status, wanted: Any) -> Any:
    """Unpacks the detail of `wanted`'s type into it; None where there is none."""
    for detail in status.details:
        if detail.Is(wanted.DESCRIPTOR):
            try:
                detail.Unpack(wanted)
            except DecodeError:
                return None
            return wanted
    return None


def _add(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)
    if status.ByteSize() > STATUS_BYTES_MAX:
        del status.details[-1]


def _add_violations(status: status_pb2.Status, violations: Iterable[FieldViolation]) -> None:
    bad_request = error_details_pb2.BadRequest()
    # The name of the type and the lengths around it.
    size = status.ByteSize() + len(bad_request.DESCRIPTOR.full_name) + 64
    for violation in violations:
        one = error_details_pb2.BadRequest.FieldViolation(
            field=_shortened(violation.field), description=_shortened(violation.description)
        )
        size += one.ByteSize() + 4
        if size > STATUS_BYTES_MAX:
            break
        bad_request.field_violations.append(one)
    if bad_request.field_violations:
        _add(status, bad_request)


def _shortened(text: str) -> str:
    data = text.encode()
    if len(data) <= MESSAGE_BYTES_MAX:
        return text
    return data[: MESSAGE_BYTES_MAX - 3].decode(errors="ignore") + "..."
