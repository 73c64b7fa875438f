"""Requests of random bytes and fields: refused with a reason, and never a fault of ours.

`make fuzz` runs 100,000 for each RPC; here it is WEFT_FUZZ_MESSAGES, 5,000 by default. They go
through the whole pipeline as calls from outside do, without the sockets, which would be
what is measured.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from mesh.errors import InvalidArgument, WeftError
from mesh.rpc.methods import MethodSpec
from mesh.rpc.pipeline import Endpoint
from mesh.rpc.propagation import incoming_call
from mesh.rpc.status import code_of, to_status
from tests.contract.test_contracts import METHODS
from tests.security.conftest import Deployment, deployed
from tests.support.fuzz import Fuzzer

MESSAGES = int(os.environ.get("WEFT_FUZZ_MESSAGES", "5000"))
SEED = int(os.environ.get("WEFT_FUZZ_SEED", "1"))
STREAM_SECONDS = 0.02
STEPS_AT_ONCE = 16
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
TEXT_OF_OTHERS = ("Traceback", "sqlite", "nats:", "Error(", "site-packages", "apsw")

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
async def weft(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """A deployment of their own: what is made here would be in the way of others."""
    async with deployed(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


@pytest.mark.parametrize("spec", METHODS, ids=lambda spec: spec.path)
async def test_no_request_is_a_fault_of_ours(weft: Deployment, spec: MethodSpec) -> None:
    endpoint = weft.host.endpoints[spec.path]
    tenant = "default" if spec.policy.platform else "acme"
    fuzzer = Fuzzer(spec, SEED)
    codes: Counter[grpc.StatusCode] = Counter()
    for first in range(0, MESSAGES, STEPS_AT_ONCE):
        requests = [fuzzer.request() for _ in range(min(STEPS_AT_ONCE, MESSAGES - first))]
        ends = await asyncio.gather(
            *(ended(endpoint, request, weft.credential(tenant)) for request in requests)
        )
        for request, error in zip(requests, ends, strict=True):
            code = code_of(error) if error is not None else grpc.StatusCode.OK
            codes[code] += 1
            assert code not in FAULTS, (spec.path, request, error)
            if error is not None:
                check_told(error)
    assert sum(codes.values()) == MESSAGES
    if spec.request_class.DESCRIPTOR.fields:
        assert codes[grpc.StatusCode.INVALID_ARGUMENT] > MESSAGES / 10


def check_told(error: WeftError) -> None:
    """What a caller is told names the fields that are wrong, and nothing of how we work."""
    status = to_status(error, "r1")
    said = f"{status}"
    assert not any(text in said for text in TEXT_OF_OTHERS), said
    if type(error) is InvalidArgument:
        assert error.violations, error


async def ended(
    endpoint: Endpoint, request: bytes, credential: tuple[str, str]
) -> WeftError | None:
    """How a call ends; None where it is answered. What isn't a WeftError is raised."""
    spec = endpoint.spec
    seconds = STREAM_SECONDS if spec.server_streaming else 5.0
    call = incoming_call(spec.path, seconds, None, [credential], "ipv4:127.0.0.1:1", seconds)
    decoded = spec.decode(request)
    sent: Any = one(decoded) if spec.client_streaming else decoded
    try:
        if spec.server_streaming:
            async with aclosing(endpoint.invoke(sent, call)) as messages:
                async for _ in messages:
                    break
        else:
            await endpoint.invoke(sent, call)
    except WeftError as error:
        return error
    return None


async def one(request: Any) -> Any:
    """A client's stream of one message."""
    yield request
