"""Counts and times calls."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import perf_counter
from typing import Any

import grpc

from mesh.call import Call
from mesh.rpc.methods import Handler, MethodSpec
from mesh.rpc.status import code_of
from mesh.telemetry.metrics import RpcMetrics


class Metrics:
    """Reports each call with its code and duration; of a stream, until its end."""

    def __init__(self, metrics: RpcMetrics) -> None:
        self._metrics = metrics

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        method = self._metrics.method(spec.service, spec.name)

        async def counted(request: Any, call: Call) -> Any:
            method.in_flight += 1
            started = perf_counter()
            code = grpc.StatusCode.OK
            try:
                return await inner(request, call)
            except BaseException as error:
                code = code_of(error)
                raise
            finally:
                method.ended(code.name, perf_counter() - started)

        return counted

    def stream(self, spec: MethodSpec, inner: Handler) -> Handler:
        method = self._metrics.method(spec.service, spec.name)

        async def counted(request: Any, call: Call) -> AsyncGenerator[Any, None]:
            method.in_flight += 1
            started = perf_counter()
            code = grpc.StatusCode.OK
            try:
                async with aclosing(inner(request, call)) as messages:
                    async for message in messages:
                        yield message
            except BaseException as error:
                code = code_of(error)
                raise
            finally:
                method.ended(code.name, perf_counter() - started)

        return counted
