"""Calls whose end no server told: they may have run, and are no results."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.errors import ToolUnavailable
from services.tools.grpc_methods import GrpcMethods, Invocation
from services.tools.secrets import ToolSecrets
from services.tools.settings import ToolsSettings
from tests.support.grpc_server import serving
from tests.support.http2_server import (
    STATUS_200,
    STATUS_500,
    End,
    breaking_off,
    reset,
    without_status,
)
from tests.support.keys import memory_keyring
from tests.support.ledger_server import LEDGER, Ledger
from weft.tools.v1 import tools_pb2

CREDIT = f"{LEDGER}/Credit"
PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 1, 2, 7, 8, 11


@pytest.fixture
async def methods() -> AsyncIterator[GrpcMethods]:
    methods = GrpcMethods(ToolsSettings(), ToolSecrets(memory_keyring()))
    yield methods
    await methods.close()


@pytest.fixture
async def credit(methods: GrpcMethods, tmp_path: Path) -> tools_pb2.Tool:
    """The ledger's tool, at no address."""
    async with serving({LEDGER: Ledger(tmp_path / "ledger").handlers}) as address:
        method = tools_pb2.GrpcTool(address=address, method=CREDIT)
        described = await methods.describe(method, {}, 5)
    method.descriptors.CopyFrom(described.descriptors)
    return tools_pb2.Tool(name="tenants/acme/tools/credit", etag="credit", grpc=method)


@pytest.mark.parametrize(
    "end",
    [
        *map(reset, (PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM)),
        without_status(STATUS_200),
        without_status(STATUS_500),
    ],
    ids=["protocol", "internal", "refused", "cancel", "calm", "no status", "http 500"],
)
async def test_a_call_that_was_broken_off_is_unavailable(
    methods: GrpcMethods, credit: tools_pb2.Tool, end: End
) -> None:
    async with breaking_off(end) as credit.grpc.address:
        with pytest.raises(ToolUnavailable):
            await methods.invoke(credit, {"account": "ann", "amount": 1}, Invocation(5))


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNKNOWN,
    ],
)
async def test_the_same_status_from_the_server_itself_is_a_result(
    methods: GrpcMethods, credit: tools_pb2.Tool, code: grpc.StatusCode
) -> None:
    async def refuse(request: Any, context: Any) -> Any:
        await context.abort(code, "no credit today")

    async with serving({LEDGER: {"Credit": refuse}}) as credit.grpc.address:
        result = await methods.invoke(credit, {"account": "ann", "amount": 1}, Invocation(5))
    assert result.is_error
    assert result.content == f"{code.name}: no credit today"
