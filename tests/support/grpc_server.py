"""A gRPC server of the test contracts, on a port of its own, with reflection."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection

from tests.support.protos import contract_pool, message_type

Handler = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Message]]


def add_service(server: grpc.aio.Server, service: str, handlers: Mapping[str, Handler]) -> None:
    """Serves the unary methods of `service`, by their names; `server` isn't started yet."""
    methods = contract_pool().FindServiceByName(service).methods_by_name
    rpc_handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for name, handler in handlers.items():
        request_type = message_type(methods[name].input_type.full_name)
        rpc_handlers[name] = grpc.unary_unary_rpc_method_handler(
            handler,
            request_deserializer=request_type.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, rpc_handlers),))


@asynccontextmanager
async def serving(
    services: Mapping[str, Mapping[str, Handler]],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    reflects: bool = True,
) -> AsyncIterator[str]:
    """Serves until the block ends; gives the address."""
    server = grpc.aio.server()
    for service, handlers in services.items():
        add_service(server, service, handlers)
    if reflects:
        names = (*services, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, pool=contract_pool())
    bound = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    try:
        yield f"{host}:{bound}"
    finally:
        await server.stop(grace=None)
