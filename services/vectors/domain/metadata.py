"""What is known of a document, as filters see it: keys with strings, numbers and bools."""

import math
import re
from collections.abc import Iterator, Mapping

from google.protobuf.struct_pb2 import Struct
from google.protobuf.struct_pb2 import Value as StructValue

from mesh.errors import InvalidArgument

KEYS_MAX = 32
KEY_LENGTH_MAX = 63
TEXT_LENGTH_MAX = 512
"""In code points. PostgreSQL's indexes hold no more than 2,704 bytes of an entry."""
ENTRIES_MAX = 64
"""Most entries of a list."""

Value = str | float | bool
Metadata = Mapping[str, tuple[Value, ...]]
"""The values of each key: those of a list, or the one."""

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*").fullmatch


def read_metadata(metadata: Struct, field: str) -> Metadata:
    """The values by key. Raises InvalidArgument, which names the part of `field` that is wrong."""
    if len(metadata.fields) > KEYS_MAX:
        raise InvalidArgument.of(field, f"has at most {KEYS_MAX} keys")
    return {key: _values(key, value, field) for key, value in metadata.fields.items()}


def entries(metadata: Metadata) -> Iterator[tuple[str, Value]]:
    """Each key with each of its different values."""
    for key, values in metadata.items():
        # True equals 1 in Python.
        for value in dict.fromkeys((type(value), value) for value in values):
            yield key, value[1]


def _values(key: str, value: StructValue, field: str) -> tuple[Value, ...]:
    if not _KEY(key) or len(key) > KEY_LENGTH_MAX:
        raise InvalidArgument.of(
            field, f"keys are of [A-Za-z_][A-Za-z0-9_-]* and of at most {KEY_LENGTH_MAX} characters"
        )
    place = f"{field}.{key}"
    if value.WhichOneof("kind") != "list_value":
        return (_value(value, place),)
    if len(value.list_value.values) > ENTRIES_MAX:
        raise InvalidArgument.of(place, f"a list has at most {ENTRIES_MAX} entries")
    return tuple(_value(each, place) for each in value.list_value.values)


def _value(value: StructValue, place: str) -> Value:
    kind = value.WhichOneof("kind")
    if kind == "bool_value":
        return value.bool_value
    if kind == "number_value" and math.isfinite(value.number_value):
        return value.number_value
    if kind != "string_value":
        raise InvalidArgument.of(
            place, "must be a string, a number, true or false, or a list of those"
        )
    if len(value.string_value) > TEXT_LENGTH_MAX:
        raise InvalidArgument.of(place, f"a string has at most {TEXT_LENGTH_MAX} characters")
    if "\0" in value.string_value:
        raise InvalidArgument.of(place, "a string can't hold NUL")
    return value.string_value
