"""Compares `weft.xds.v1` with Envoy's own messages, of the package xds-protos in FOLDER.

Run as a process of its own: that package brings copies of `google.api` and others that must
not meet Weft's. Prints one JSON object, `differences` and what was `compared`.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

FOLDER = sys.argv[1]
# In front, so that all of its packages are one version's.
sys.path.insert(0, FOLDER)

from google.protobuf import any_pb2, descriptor_pool, json_format, message_factory  # noqa: E402

from mesh.control.xds.messages import ENVOY_NAMES  # noqa: E402

MODULES = (
    "envoy.service.discovery.v3.discovery_pb2",
    "envoy.config.listener.v3.listener_pb2",
    "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2",
    "envoy.extensions.filters.http.router.v3.router_pb2",
    "envoy.extensions.filters.http.stateful_session.v3.stateful_session_pb2",
    "envoy.extensions.http.stateful_session.cookie.v3.cookie_pb2",
    "envoy.config.route.v3.route_pb2",
    "envoy.config.cluster.v3.cluster_pb2",
    "envoy.config.endpoint.v3.endpoint_pb2",
    "envoy.extensions.transport_sockets.tls.v3.tls_pb2",
    "envoy.service.status.v3.csds_pb2",
    "xds.data.orca.v3.orca_load_report_pb2",
    "envoy.extensions.load_balancing_policies.wrr_locality.v3.wrr_locality_pb2",
    "envoy.extensions.load_balancing_policies.round_robin.v3.round_robin_pb2",
    "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3"
    ".client_side_weighted_round_robin_pb2",
)
DEPTH_MAX = 12


def descriptor_differences(ours: Any, theirs: Any, seen: dict[str, str]) -> Iterator[str]:
    """Where a message of ours isn't a part of theirs; goes on into its fields' messages."""
    if ours.full_name in seen:
        if seen[ours.full_name] != theirs.full_name:
            yield f"{ours.full_name} stands for {theirs.full_name} and another"
        return
    seen[ours.full_name] = theirs.full_name
    if ours.name != theirs.name:
        yield f"{ours.full_name} is {theirs.full_name}"
    for field in ours.fields:
        other = theirs.fields_by_number.get(field.number)
        if other is None:
            yield f"{theirs.full_name} has no field {field.number}"
            continue
        if shape(field) != shape(other):
            yield f"{field.full_name}: {shape(field)}, theirs {shape(other)}"
        if field.enum_type is not None and other.enum_type is not None:
            named = {value.number: value.name for value in other.enum_type.values}
            for value in field.enum_type.values:
                if named.get(value.number) != value.name:
                    yield f"{field.enum_type.full_name}.{value.name}"
        if field.message_type is not None and other.message_type is not None:
            if field.message_type.file.package == "google.protobuf":
                if field.message_type is not other.message_type:
                    yield f"{field.full_name}: {other.message_type.full_name}"
            else:
                yield from descriptor_differences(field.message_type, other.message_type, seen)


def shape(field: Any) -> tuple[Any, ...]:
    oneof = field.containing_oneof
    return (
        *(field.name, field.number, field.type, field.is_repeated, field.has_presence),
        oneof.name if oneof is not None else None,
    )


def filled(message_type: Any, choice: int, depth: int = 0) -> Any:
    """A message with every field set, each to another value; of a oneof, the `choice`th."""
    message = message_type()
    for field in message_type.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is not None and oneof.fields[choice % len(oneof.fields)] is not field:
            continue
        for entry in range(2 if field.is_repeated else 1):
            value = value_of(field, choice, depth, entry)
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                getattr(message, field.name)[value.key].CopyFrom(value.value)
                continue
            if field.message_type is not None:
                place = getattr(message, field.name)
                (place.add() if field.is_repeated else place).CopyFrom(value)
            elif field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
    return message


def value_of(field: Any, choice: int, depth: int, entry: int) -> Any:
    number = 100 * field.number + 10 * entry + choice + 1
    if field.message_type is not None:
        if depth > DEPTH_MAX:
            raise AssertionError(f"{field.full_name} lies too deep")
        if field.message_type.full_name == "google.protobuf.Any":
            inside = any_pb2.Any()
            inside.Pack(message_factory.GetMessageClass(DURATION)(seconds=number))
            return inside
        inner = message_factory.GetMessageClass(field.message_type)
        return filled(inner, choice, depth + 1)
    if field.enum_type is not None:
        return field.enum_type.values[-1 - entry].number
    if field.type == field.TYPE_STRING:
        return f"{field.name}-{number}"
    if field.type == field.TYPE_BOOL:
        return True
    return number


def value_differences(ours: Any, theirs: Any) -> Iterator[str]:
    """Where what one writes isn't what the other reads."""
    for choice in range(3):
        written = filled(ours, choice)
        data = written.SerializeToString(deterministic=True)
        read = theirs.FromString(data)
        if as_json(read) != as_json(written):
            yield f"{ours.DESCRIPTOR.full_name} reads otherwise: {as_json(read)}"
        if ours.FromString(read.SerializeToString(deterministic=True)) != written:
            yield f"{ours.DESCRIPTOR.full_name} comes back otherwise"


def as_json(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


pools: Any = descriptor_pool
pool = pools.Default()
DURATION = pool.FindMessageTypeByName("google.protobuf.Duration")


def main() -> None:
    files = [importlib.import_module(module).__file__ or "" for module in MODULES]
    differences = [f"{file} isn't theirs" for file in files if not file.startswith(FOLDER)]
    seen: dict[str, str] = {}
    for ours, name in ENVOY_NAMES.items():
        theirs = pool.FindMessageTypeByName(name)
        differences += descriptor_differences(ours.DESCRIPTOR, theirs, seen)
        differences += value_differences(ours, message_factory.GetMessageClass(theirs))
    print(json.dumps({"differences": differences, "compared": sorted(seen)}))


if __name__ == "__main__":
    main()
