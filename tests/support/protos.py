"""The contracts of test servers, compiled when they are needed."""

import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc  # type: ignore[import-untyped]

_SOURCES = Path(__file__).parent / "proto"


@cache
def compiled_files() -> descriptor_pb2.FileDescriptorSet:
    """All files under `tests/support/proto` and what they import, with their comments."""
    google = resources.files("google.protobuf").joinpath("../..")
    includes = (_SOURCES, resources.files("grpc_tools") / "_proto", google)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "files.binpb"
        arguments = ["protoc", *(f"-I{each}" for each in includes)]
        arguments += ["--include_imports", "--include_source_info"]
        arguments += [f"--descriptor_set_out={output}"]
        arguments += [str(path) for path in sorted(_SOURCES.rglob("*.proto"))]
        if protoc.main(arguments) != 0:
            raise RuntimeError("the test contracts don't compile")
        return descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())


@cache
def contract_pool() -> Any:
    """A pool of those files alone."""
    pool: Any = descriptor_pool.DescriptorPool()
    for file in compiled_files().file:
        pool.Add(file)
    return pool


def message_type(full_name: str) -> Any:
    """The class of a message of those files."""
    return message_factory.GetMessageClass(contract_pool().FindMessageTypeByName(full_name))
