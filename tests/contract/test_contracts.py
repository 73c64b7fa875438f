"""What every contract must say, read from the descriptors of all that is generated."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor

import weft
from mesh.rpc.methods import MethodSpec, methods_of
from mesh.rpc.open_methods import FOR_EVERY_CALLER, PUBLIC, REFLECTION
from weft.options.v1 import options_pb2

UNKNOWN, NO_SIDE_EFFECTS, IDEMPOTENT = range(3)


def services() -> Iterator[ServiceDescriptor]:
    found = (
        path for folder in weft.__path__ for path in Path(folder).glob("*/v*/*_service_pb2.py")
    )
    # The folder of the generated code may be there by two paths.
    for area, version, stem in sorted({(*path.parts[-3:-1], path.stem) for path in found}):
        module: Any = importlib.import_module(f"weft.{area}.{version}.{stem}")
        yield from module.DESCRIPTOR.services_by_name.values()


METHODS = [spec for service in services() for spec in methods_of(service)]
every_method = pytest.mark.parametrize("spec", METHODS, ids=lambda spec: spec.path)
OPEN = PUBLIC | FOR_EVERY_CALLER
methods_of_tenants = pytest.mark.parametrize(
    "spec",
    [spec for spec in METHODS if spec.path not in OPEN and not spec.policy.platform],
    ids=lambda spec: spec.path,
)


def bounds_of(field: FieldDescriptor) -> options_pb2.FieldBounds:
    extensions: Any = field.GetOptions()
    bounds: options_pb2.FieldBounds = extensions.Extensions[options_pb2.bounds]
    return bounds


def fields_of(
    message: Any, path: str = "", seen: frozenset[str] = frozenset()
) -> Iterator[tuple[str, FieldDescriptor]]:
    """All fields of a request and of our own messages inside it."""
    for field in message.fields:
        yield path + field.name, field
        inner = field.message_type
        if (
            inner is not None
            and inner.full_name.startswith("weft.")
            and inner.full_name not in seen
        ):
            yield from fields_of(inner, f"{path}{field.name}.", seen | {inner.full_name})


def test_there_are_contracts() -> None:
    assert {spec.service.split(".")[1] for spec in METHODS} >= {
        *("agents", "auth", "blobs", "models", "state", "tools", "vectors"),
    }


def test_the_open_methods_are_those_that_were_meant() -> None:
    ours = OPEN - {*REFLECTION}
    assert {spec.path for spec in METHODS} >= ours
    assert {path.rpartition("/")[2] for path in ours} == {"ExchangeToken", "GetJwks", "WhoAmI"}


@every_method
def test_a_method_needs_a_permission_of_its_area(spec: MethodSpec) -> None:
    if spec.path in OPEN:
        assert not spec.policy.permission
        return
    area, _, verb = spec.policy.permission.partition(".")
    assert area == spec.service.split(".")[1]
    assert verb.isidentifier()


@every_method
def test_a_method_acts_upon_a_resource_or_the_platform(spec: MethodSpec) -> None:
    assert spec.path in OPEN or bool(spec.policy.resource) != spec.policy.platform


@methods_of_tenants
def test_a_method_names_the_resource_that_it_acts_upon(spec: MethodSpec) -> None:
    fields = dict(fields_of(spec.request_class.DESCRIPTOR))
    field = fields[spec.policy.resource]
    bounds = bounds_of(field)
    assert field.type == FieldDescriptor.TYPE_STRING
    assert bounds.length_max
    assert bounds.resource
    assert bounds.required


@every_method
def test_a_methods_idempotency_agrees_with_its_effect(spec: MethodSpec) -> None:
    # An unknown level allows no retry by itself, so it may go with any effect but a read.
    allowed = {
        options_pb2.EFFECT_READ: {NO_SIDE_EFFECTS},
        options_pb2.EFFECT_IDEMPOTENT: {IDEMPOTENT, UNKNOWN},
        options_pb2.EFFECT_IRREVERSIBLE: {UNKNOWN},
    }
    assert spec.idempotency in allowed[spec.policy.effect]


@every_method
def test_a_method_has_an_http_rule_over_its_resource(spec: MethodSpec) -> None:
    service: Any = spec.request_class.DESCRIPTOR.file.services_by_name
    method = service[spec.service.rpartition(".")[2]].methods_by_name[spec.name]
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    pattern = rule.WhichOneof("pattern")
    assert pattern is not None
    if spec.policy.resource:
        assert f"{{{spec.policy.resource}=" in getattr(rule, pattern)
    assert (pattern == "get") <= (spec.policy.effect == options_pb2.EFFECT_READ)
    assert (rule.body == "*") == (pattern in ("post", "patch", "put"))


@every_method
def test_what_a_request_may_hold_is_bounded(spec: MethodSpec) -> None:
    unbounded = []
    for path, field in fields_of(spec.request_class.DESCRIPTOR):
        bounds = bounds_of(field)
        missing = (
            (field.is_repeated and not bounds.items_max)
            or (field.type == FieldDescriptor.TYPE_STRING and not bounds.length_max)
            or (field.type == FieldDescriptor.TYPE_BYTES and not bounds.bytes_max)
        )
        if missing:
            unbounded.append(path)
    assert unbounded == []


@every_method
def test_requests_and_responses_are_the_methods_own(spec: MethodSpec) -> None:
    assert spec.request_class.DESCRIPTOR.name == f"{spec.name}Request"
    assert spec.response_class.DESCRIPTOR.name == f"{spec.name}Response"
