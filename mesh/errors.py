"""The one tree of errors.

An error says what went wrong in the terms of `weft.errors.v1.Reason`; which gRPC
status that is stands in one table, in `mesh.rpc.status`.

    WeftError
    ├── InvalidArgument           a field is missing, malformed or out of bounds
    │   └── RequestIdReused       the request_id came before with another body
    ├── NotFound                  no such resource, or no such revision of it
    │   └── DataErased            it was erased, and its key with it
    ├── AlreadyExists             a resource of that name is there
    ├── Conflict                  it changed since the revision that was named
    │   └── OwnerLost             another instance owns the turn
    ├── FailedPrecondition        its state doesn't allow this
    │   ├── TurnInProgress        a turn runs and the policy rejects another
    │   └── ModelRefused          the model's endpoint refused the request
    ├── Unavailable               try again
    │   ├── EventStoreUnavailable whether the commit was stored is unknown
    │   ├── ModelUnavailable
    │   ├── ToolUnavailable
    │   └── NotServing            draining, or not ready yet
    ├── CredentialInvalid         no credential, or one that isn't valid
    ├── PermissionDenied          the caller may not do this
    ├── LimitExceeded             a published bound was reached
    │   ├── RateLimited           too many calls; try again later
    │   └── ModelRateLimited
    ├── DeadlineExceeded
    ├── Cancelled
    ├── Unimplemented             this server doesn't offer the method
    ├── DataDamaged               stored data doesn't parse, or a hash differs
    └── Internal                  a fault of our own
        └── ModelBadAnswer        the endpoint broke its protocol
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weft.errors.v1 import errors_pb2

Reason = errors_pb2.Reason


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """What is wrong with one field; `field` is its path, such as `agent.spec.tools[2].tool`."""

    field: str
    description: str


class WeftError(Exception):
    """Base of all errors that a caller may see.

    `message` is written for the caller: it never holds another system's text or a
    secret. `metadata` goes into `google.rpc.ErrorInfo.metadata`. `retry_seconds`,
    when set, goes into `google.rpc.RetryInfo`.
    """

    reason: "Reason.ValueType" = errors_pb2.REASON_INTERNAL

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_seconds = retry_seconds


class InvalidArgument(WeftError):
    """A field is missing, malformed or out of bounds; `violations` names the fields."""

    reason = errors_pb2.REASON_INVALID_FIELD

    @classmethod
    def of(cls, field: str, description: str) -> "InvalidArgument":
        """The error for one field."""
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)])


class RequestIdReused(InvalidArgument):
    """The request_id came before with another body."""

    reason = errors_pb2.REASON_REQUEST_ID_REUSED


class NotFound(WeftError):
    """No such resource, or no such revision of it."""

    reason = errors_pb2.REASON_RESOURCE_NOT_FOUND

    @classmethod
    def of(cls, kind: str, name: str) -> "NotFound":
        """The error for the resource `name`; `kind` is a word such as `agent`."""
        return cls(f"no {kind} {name}", metadata={"resource": name})


class DataErased(NotFound):
    """The data were erased: their key is destroyed, and nothing can open them again."""

    reason = errors_pb2.REASON_DATA_ERASED


class AlreadyExists(WeftError):
    """A resource of that name is there."""

    reason = errors_pb2.REASON_RESOURCE_EXISTS


class Conflict(WeftError):
    """The resource changed since the revision or etag that was named."""

    reason = errors_pb2.REASON_REVISION_CONFLICT


class OwnerLost(Conflict):
    """Another instance owns the turn."""

    reason = errors_pb2.REASON_OWNER_LOST


class FailedPrecondition(WeftError):
    """The resource's state doesn't allow this."""

    reason = errors_pb2.REASON_STATE_PRECONDITION


class TurnInProgress(FailedPrecondition):
    """A turn runs, and the session's policy rejects another one."""

    reason = errors_pb2.REASON_TURN_IN_PROGRESS


class ModelRefused(FailedPrecondition):
    """The model's endpoint refused the request: credentials, an unknown model, a bad field."""

    reason = errors_pb2.REASON_MODEL_REFUSED


class Unavailable(WeftError):
    """Something that is needed can't be reached; try again."""

    reason = errors_pb2.REASON_NOT_SERVING


class EventStoreUnavailable(Unavailable):
    """The event store can't be reached. Whether a commit was stored is unknown."""

    reason = errors_pb2.REASON_EVENT_STORE_UNAVAILABLE


class ModelUnavailable(Unavailable):
    """The model's endpoint can't be reached, timed out or failed."""

    reason = errors_pb2.REASON_MODEL_UNAVAILABLE


class ToolUnavailable(Unavailable):
    """The tool's server can't be reached or timed out."""

    reason = errors_pb2.REASON_TOOL_UNAVAILABLE


class NotServing(Unavailable):
    """The server is draining or not ready; another one may answer."""

    reason = errors_pb2.REASON_NOT_SERVING


class LimitExceeded(WeftError):
    """A published bound was reached."""

    reason = errors_pb2.REASON_LIMIT_EXCEEDED


class RateLimited(LimitExceeded):
    """Too many calls; `retry_seconds` says when to try again."""

    reason = errors_pb2.REASON_RATE_LIMITED


class CredentialInvalid(WeftError):
    """The caller has no credential, or one that isn't valid (any more)."""

    reason = errors_pb2.REASON_CREDENTIAL_INVALID


class PermissionDenied(WeftError):
    """The caller is known, and may not do this."""

    reason = errors_pb2.REASON_PERMISSION_DENIED


class ModelRateLimited(LimitExceeded):
    """The model's endpoint limits our rate, or our own limit of calls to it is reached."""

    reason = errors_pb2.REASON_MODEL_RATE_LIMITED


class DeadlineExceeded(WeftError):
    """The call's deadline passed."""

    reason = errors_pb2.REASON_DEADLINE_EXCEEDED


class Cancelled(WeftError):
    """The caller, or somebody with the right to, cancelled."""

    reason = errors_pb2.REASON_CANCELLED


class Unimplemented(WeftError):
    """This server doesn't offer the method."""

    reason = errors_pb2.REASON_UNIMPLEMENTED


class DataDamaged(WeftError):
    """Stored data doesn't parse, or a hash differs."""

    reason = errors_pb2.REASON_DATA_DAMAGED


class Internal(WeftError):
    """A fault of Weft's own; the log has it under the request's id."""

    reason = errors_pb2.REASON_INTERNAL


class ModelBadAnswer(Internal):
    """The model's endpoint answered what its protocol doesn't allow."""

    reason = errors_pb2.REASON_MODEL_BAD_ANSWER
