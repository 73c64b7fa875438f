"""What Weft's edge adds to a unary call: validation, errors, deadline, metrics and trace,
against a bare grpc.aio server that answers with as many bytes."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import grpc.aio

from tests.benchmarks import echo_server
from tests.benchmarks.measure import alternate, median_ms
from tests.benchmarks.results import Baseline, Result
from tests.support.platform import TENANT, platform
from tests.support.processes import line_of, running
from weft.models.v1 import model_service_pb2

ROUNDS = 9
CALLS = 300
PATH = "/weft.models.v1.ModelService/ListModels"


async def run() -> list[Result]:
    """The results of the rounds."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weft = await stack.enter_async_context(platform(folder / "weft"))
        echo = await stack.enter_async_context(running("tests.benchmarks.echo_server"))
        channel = grpc.aio.insecure_channel(await line_of(echo))
        await stack.enter_async_context(channel)
        list_models: Any = weft.open_channel.unary_unary(PATH)
        bare: Any = channel.unary_unary(echo_server.PATH)
        request = model_service_pb2.ListModelsRequest(parent=TENANT).SerializeToString()
        response = await list_models(request)
        variants = {
            "bare": lambda: median_ms(lambda: bare(response), CALLS),
            "edge": lambda: median_ms(lambda: list_models(request), CALLS),
        }
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
    baseline = Baseline("ms, bare grpc.aio echo", values["bare"])
    return [Result("edge, unary call, p50", "ms", values["edge"], baseline)]
