"""Errors to gRPC's status and back."""

import asyncio

import grpc
import grpc.aio
import pytest

from mesh import errors
from mesh.errors import FieldViolation, WeftError
from mesh.rpc.status import (
    DETAILS_KEY,
    STATUS_BYTES_MAX,
    TABLE,
    code_of,
    from_rpc_error,
    to_status,
)
from weft.errors.v1 import errors_pb2


def all_errors(base: type[WeftError] = WeftError) -> list[type[WeftError]]:
    return [found for child in base.__subclasses__() for found in (child, *all_errors(child))]


def answered(
    code: grpc.StatusCode, text: str = "", details: bytes | None = None
) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*([(DETAILS_KEY, details)] if details is not None else []))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, text)


def there_and_back(error: WeftError) -> WeftError:
    status = to_status(error, "r-1")
    return from_rpc_error(answered(code_of(error), status.message, status.SerializeToString()))


def test_every_reason_has_a_status() -> None:
    reasons = set(errors_pb2.Reason.values()) - {errors_pb2.REASON_UNSPECIFIED}
    assert set(TABLE) == reasons


def test_every_error_class_is_near_one_of_the_table_with_its_reason() -> None:
    classes = {error_class for _, error_class in TABLE.values()}
    for error_class in all_errors():
        near = [
            found
            for found in classes
            if issubclass(found, error_class) or issubclass(error_class, found)
        ]
        assert near, error_class
        assert error_class.reason in TABLE


@pytest.mark.parametrize("error_class", [entry[1] for entry in TABLE.values()])
def test_an_error_comes_back_as_it_was(error_class: type[WeftError]) -> None:
    error = error_class(
        "what happened",
        metadata={"resource": "tenants/default/agents/bot"},
        violations=[FieldViolation("spec.tools[2].tool", "is required")],
        retry_seconds=1.5,
    )
    found = there_and_back(error)
    assert type(found) is error_class
    assert found.message == error.message
    assert found.metadata == error.metadata
    assert found.violations == error.violations
    assert found.retry_seconds == 1.5


def test_an_error_without_a_retry_delay_comes_back_without_one() -> None:
    assert there_and_back(errors.Conflict("c")).retry_seconds is None


def test_the_status_carries_the_standard_details() -> None:
    status = to_status(errors.InvalidArgument.of("name", "is required"), "r-1")
    assert [detail.TypeName() for detail in status.details] == [
        "google.rpc.ErrorInfo",
        "google.rpc.RequestInfo",
        "google.rpc.BadRequest",
    ]


def test_a_status_stays_small_enough_for_metadata() -> None:
    error = errors.InvalidArgument(
        "m" * 10_000,
        metadata={f"key{number}": "v" * 10_000 for number in range(50)},
        violations=[FieldViolation("f" * 1000, "d" * 1000)] * 20,
        retry_seconds=1,
    )
    status = to_status(error, "r" * 128)
    assert status.ByteSize() <= STATUS_BYTES_MAX
    found = there_and_back(error)
    assert type(found) is errors.InvalidArgument
    assert found.violations
    assert found.retry_seconds == 1


def test_a_text_is_cut_between_characters() -> None:
    message = to_status(errors.NotFound("\N{SNOWMAN}" * 1000)).message
    assert message.endswith("\N{SNOWMAN}...")


@pytest.mark.parametrize("code", sorted(set(grpc.StatusCode) - {grpc.StatusCode.OK}, key=str))
def test_the_text_of_a_foreign_status_is_not_passed_on(code: grpc.StatusCode) -> None:
    found = from_rpc_error(answered(code, "postgres://root:hunter2@db"))
    assert "hunter2" not in repr((found.message, found.metadata, found.violations))
    assert found.metadata["grpc_code"] == code.name


@pytest.mark.parametrize(
    ("code", "error_class"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.UNKNOWN, errors.Internal),
        (grpc.StatusCode.INTERNAL, errors.Internal),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.LimitExceeded),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented),
    ],
)
def test_a_foreign_status_is_mapped_by_its_code(
    code: grpc.StatusCode, error_class: type[WeftError]
) -> None:
    assert type(from_rpc_error(answered(code))) is error_class


def test_details_of_another_domain_are_foreign() -> None:
    status = to_status(errors.TurnInProgress("ours"))
    theirs = status.SerializeToString().replace(b"\x12\x04weft", b"\x12\x04else")
    found = from_rpc_error(answered(grpc.StatusCode.FAILED_PRECONDITION, "t", theirs))
    assert type(found) is errors.FailedPrecondition
    assert found.message != "ours"


def test_details_that_do_not_parse_are_foreign() -> None:
    found = from_rpc_error(answered(grpc.StatusCode.ABORTED, "text", b"\xff\xff"))
    assert type(found) is errors.Conflict


def test_a_reason_that_is_not_known_yet_is_mapped_by_its_code() -> None:
    status = to_status(errors.OwnerLost("text")).SerializeToString()
    found = from_rpc_error(
        answered(grpc.StatusCode.ABORTED, "text", status.replace(b"OWNER_LOST", b"OWNER_GONE"))
    )
    assert type(found) is errors.Conflict


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()])
def test_a_call_that_was_given_up_counts_as_cancelled(error: BaseException) -> None:
    assert code_of(error) is grpc.StatusCode.CANCELLED
