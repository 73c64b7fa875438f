"""A tool with an effect that can be counted: a gRPC server that keeps notes.

It isn't part of Weft: it stands for your own server, which becomes a tool by reflection.
"""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection

SERVICE = "demo.v1.Notebook"
METHOD = f"{SERVICE}/AddNote"
_TEXT = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_OPTIONAL = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL


class Notebook:
    """Adds notes, each idempotency key's once. `called` is set when a call arrives; the
    call goes on once `released` is set, so that somebody can die in between."""

    def __init__(self) -> None:
        self.notes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.called = threading.Event()
        self.released = threading.Event()
        pool = _pool()
        self._request = _message_class(pool, "demo.v1.AddNoteRequest")
        self._response = _message_class(pool, "demo.v1.AddNoteResponse")
        self._server = grpc.server(ThreadPoolExecutor(8))
        add_note: grpc.RpcMethodHandler[Message, Message] = grpc.unary_unary_rpc_method_handler(
            self._add_note,
            request_deserializer=self._request.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        handler = grpc.method_handlers_generic_handler(SERVICE, {"AddNote": add_note})
        self._server.add_generic_rpc_handlers((handler,))
        reflection.enable_server_reflection((SERVICE, reflection.SERVICE_NAME), self._server, pool)

    def start(self) -> str:
        """Serves on loopback; returns its address."""
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return f"127.0.0.1:{port}"

    def stop(self) -> None:
        """Ends serving; a call that waits is let go."""
        self.released.set()
        self._server.stop(0)

    def _add_note(self, request: Message, context: grpc.ServicerContext) -> Message:
        key = str(dict(context.invocation_metadata()).get("idempotency-key", ""))
        self.calls[key] += 1
        if not self.notes[key]:
            self.notes[key] += 1
        self.called.set()
        self.released.wait(timeout=30)
        return self._response(saved=request.text)  # type: ignore[attr-defined]


def _message_class(pool: descriptor_pool.DescriptorPool, name: str) -> type[Message]:
    descriptor = pool.FindMessageTypeByName(name)  # type: ignore[no-untyped-call]
    return message_factory.GetMessageClass(descriptor)


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="demo/v1/notebook.proto", package="demo.v1", syntax="proto3"
    )
    for name, field in (("AddNoteRequest", "text"), ("AddNoteResponse", "saved")):
        message = file.message_type.add(name=name)
        message.field.add(name=field, number=1, type=_TEXT, label=_OPTIONAL)
    service = file.service.add(name="Notebook")
    service.method.add(
        name="AddNote",
        input_type=".demo.v1.AddNoteRequest",
        output_type=".demo.v1.AddNoteResponse",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call]
    return pool
