"""Lets only Weft's own errors out of a handler."""

import asyncio

import structlog

from mesh.call import Call
from mesh.errors import Cancelled, Internal, WeftError
from mesh.rpc.methods import MethodSpec

log = structlog.get_logger()


def outward(error: BaseException, call: Call) -> BaseException:
    """What the caller gets for `error`: a WeftError as it is; for anything else Internal,
    whose cause only the log has.

    A cancellation passes on where this task is being cancelled. Where it isn't, the
    handler waited for something that was cancelled, and the caller gets Cancelled.
    """
    if isinstance(error, WeftError):
        return error
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            return Cancelled("something that the call waited for was cancelled")
    elif isinstance(error, Exception):
        log.error("call failed", method=call.method, request_id=call.request_id, exc_info=error)
        return Internal(
            f"a fault of Weft's own; the log has it under request {call.request_id}",
            metadata={"request_id": call.request_id},
        )
    return error


def wrong_answer(spec: MethodSpec, response: object) -> TypeError:
    """For an answer of another type than the contract's."""
    return TypeError(f"{spec.path} answered with {type(response).__name__}")
