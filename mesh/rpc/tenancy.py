"""Which resources a request names, read from the options of its message type.

A message type is compiled once into a function that collects all its fields with a bound
`resource` or `resource_pattern`, also those nested in messages, lists, maps and oneofs.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from operator import attrgetter
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from mesh.ids import RESOURCE_ID
from mesh.rpc.validation import resource_expression
from weft.options.v1 import options_pb2

Collect = Callable[[Any, list[str]], None]
"""Adds the resource names in a message to a list."""


class _MessageNames:
    """Collects from one message type; filled after it is made, as types may recur."""

    __slots__ = ("collects",)

    def __init__(self) -> None:
        self.collects: tuple[Collect, ...] = ()

    def __call__(self, message: Any, found: list[str]) -> None:
        for collect in self.collects:
            collect(message, found)


_compiled: dict[str, _MessageNames] = {}


@cache
def names_in(message_type: Any) -> Callable[[Message], list[str]]:
    """A function that returns the resource names that a message of that type holds, wrong
    ones among them, empty ones not."""
    collect = _names_of(message_type)

    def names(message: Message) -> list[str]:
        found: list[str] = []
        collect(message, found)
        return found

    return names


def name_count(message_type: Any) -> int | None:
    """How many resource names a message of that type can hold; None where that isn't known
    from its type."""
    count = 0
    for field in message_type.fields:
        if _names_resources(field):
            if field.is_repeated:
                return None
            count += 1
        elif _nested(field) is not None or _is_map(field):
            return None
    return count


_TENANT = re.compile(rf"tenants/({RESOURCE_ID})(?:/|\Z)")


def tenant_of(name: str) -> str | None:
    """The tenant's id in a resource name; None where it isn't one in a tenant."""
    found = _TENANT.match(name)
    return found[1] if found is not None else None


def _names_of(message_type: Descriptor) -> _MessageNames:
    known = _compiled.get(message_type.full_name)
    if known is not None:
        return known
    compiled = _compiled[message_type.full_name] = _MessageNames()
    collects = (_collect(field) for field in message_type.fields)
    compiled.collects = tuple(collect for collect in collects if collect is not None)
    return compiled


def _collect(field: FieldDescriptor) -> Collect | None:
    name = field.name
    named = _names_resources(field)
    if _is_map(field):
        return _collect_map(name, named, field.message_type.fields_by_name["value"])
    if named:
        return _collect_texts(name) if field.is_repeated else _collect_text(name)
    inner = _nested(field)
    if inner is None:
        return None
    return _collect_messages(name, inner) if field.is_repeated else _collect_message(name, inner)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _names_resources(field: FieldDescriptor) -> bool:
    extensions: Any = field.GetOptions()
    bounds = extensions.Extensions[options_pb2.bounds]
    return bool(bounds.resource or bounds.resource_pattern)


def _nested(field: FieldDescriptor) -> _MessageNames | None:
    message_type = field.message_type
    if message_type is None or not message_type.full_name.startswith("weft."):
        return None
    recurring = message_type.full_name in _compiled
    inner = _names_of(message_type)
    return inner if inner.collects or recurring else None


def _collect_text(name: str) -> Collect:
    def collect(message: Any, found: list[str]) -> None:
        value = getattr(message, name)
        if value:
            found.append(value)

    return collect


def _collect_texts(name: str) -> Collect:
    def collect(message: Any, found: list[str]) -> None:
        found.extend(value for value in getattr(message, name) if value)

    return collect


def _collect_message(name: str, inner: _MessageNames) -> Collect:
    def collect(message: Any, found: list[str]) -> None:
        if message.HasField(name):
            inner(getattr(message, name), found)

    return collect


def _collect_messages(name: str, inner: _MessageNames) -> Collect:
    def collect(message: Any, found: list[str]) -> None:
        for item in getattr(message, name):
            inner(item, found)

    return collect


def _collect_map(name: str, named: bool, value_field: FieldDescriptor) -> Collect | None:
    """Keys and values of a map of names, and what the values of any map hold."""
    if named:

        def collect_names(message: Any, found: list[str]) -> None:
            for key, value in getattr(message, name).items():
                found.extend(text for text in (key, value) if isinstance(text, str) and text)

        return collect_names
    inner = _nested(value_field)
    if inner is None:
        return None

    def collect_inside(message: Any, found: list[str]) -> None:
        for value in getattr(message, name).values():
            inner(value, found)

    return collect_inside


def resource_reader(message_type: Any, path: str) -> Callable[[Message], str]:
    """A function that reads the field at a path such as `agent.name` of that type's
    messages. LookupError where there is no such string field."""
    *outer, last = path.split(".")
    descriptor: Any = message_type
    for part in outer:
        descriptor = _field(descriptor, part).message_type
    if _field(descriptor, last).type != FieldDescriptor.TYPE_STRING:
        raise LookupError(f"{path} of {message_type.full_name} isn't a string")

    return attrgetter(path)


def platform_names(message_type: Any, path: str) -> re.Pattern[str] | None:
    """What the field at a path may name that is in no tenant, and so the platform's; None
    where it may not. LookupError where there is no such field."""
    *outer, last = path.split(".")
    descriptor: Any = message_type
    for part in outer:
        descriptor = _field(descriptor, part).message_type
    extensions: Any = _field(descriptor, last).GetOptions()
    patterns = extensions.Extensions[options_pb2.bounds].resource.split("|")
    of_platform = [each for each in patterns if each and not each.startswith("tenants/")]
    return resource_expression("|".join(of_platform)) if of_platform else None


def _field(descriptor: Descriptor | None, name: str) -> FieldDescriptor:
    if descriptor is None or name not in descriptor.fields_by_name:
        raise LookupError(name)
    field: FieldDescriptor = descriptor.fields_by_name[name]
    return field


def foreign(names: Iterable[str], tenant: str) -> Iterator[str]:
    """Those of the names that are in another tenant. What isn't a name in any tenant is
    refused by its bound, which comes next."""
    for name in names:
        found = tenant_of(name)
        if found is not None and found != tenant:
            yield name
