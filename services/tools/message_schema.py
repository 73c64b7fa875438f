"""JSON Schema (draft 2020-12) of protobuf messages in their JSON form.

It follows the ProtoJSON mapping (protobuf.dev/programming-guides/json). Fields have the
names of the proto file, which every parser of ProtoJSON accepts. Messages below the
first stand in `$defs`, so that types may recur.
"""

from collections.abc import Callable, Mapping
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from weft.options.v1 import options_pb2

Schema = dict[str, Any]

_DEFINITIONS = "#/$defs/"
_NULL_VALUE = "google.protobuf.NullValue"
_INT64_DIGITS = 20


def _integer(minimum: int, maximum: int) -> Schema:
    return {"type": "integer", "minimum": minimum, "maximum": maximum}


def _long_integer(minimum: int, maximum: int) -> Schema:
    # Beyond 2**53 a JSON number may lose digits, so a string is as good.
    return {
        "type": ["integer", "string"],
        "minimum": minimum,
        "maximum": maximum,
        "pattern": f"^{'-?' if minimum else ''}[0-9]{{1,{_INT64_DIGITS}}}$",
    }


def _int32() -> Schema:
    return _integer(-(2**31), 2**31 - 1)


def _uint32() -> Schema:
    return _integer(0, 2**32 - 1)


def _int64() -> Schema:
    return _long_integer(-(2**63), 2**63 - 1)


def _uint64() -> Schema:
    return _long_integer(0, 2**64 - 1)


def _number() -> Schema:
    return {"type": "number"}


def _string() -> Schema:
    return {"type": "string"}


def _boolean() -> Schema:
    return {"type": "boolean"}


def _bytes() -> Schema:
    return {"type": "string", "contentEncoding": "base64"}


_SCALARS: Mapping[int, Callable[[], Schema]] = {
    FieldDescriptor.TYPE_DOUBLE: _number,
    FieldDescriptor.TYPE_FLOAT: _number,
    FieldDescriptor.TYPE_INT32: _int32,
    FieldDescriptor.TYPE_SINT32: _int32,
    FieldDescriptor.TYPE_SFIXED32: _int32,
    FieldDescriptor.TYPE_UINT32: _uint32,
    FieldDescriptor.TYPE_FIXED32: _uint32,
    FieldDescriptor.TYPE_INT64: _int64,
    FieldDescriptor.TYPE_SINT64: _int64,
    FieldDescriptor.TYPE_SFIXED64: _int64,
    FieldDescriptor.TYPE_UINT64: _uint64,
    FieldDescriptor.TYPE_FIXED64: _uint64,
    FieldDescriptor.TYPE_BOOL: _boolean,
    FieldDescriptor.TYPE_STRING: _string,
    FieldDescriptor.TYPE_BYTES: _bytes,
}
_WELL_KNOWN: Mapping[str, Callable[[], Schema]] = {
    "google.protobuf.Timestamp": lambda: {
        "type": "string",
        "format": "date-time",
        "description": "A time in RFC 3339, such as 2026-01-31T12:00:00Z.",
    },
    "google.protobuf.Duration": lambda: {
        "type": "string",
        "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$",
        "description": "A span in seconds, such as 1.5s.",
    },
    "google.protobuf.FieldMask": lambda: {
        "type": "string",
        "description": "Names of fields, parted by commas.",
    },
    "google.protobuf.Struct": lambda: {"type": "object"},
    "google.protobuf.Value": dict,
    "google.protobuf.ListValue": lambda: {"type": "array"},
    "google.protobuf.Any": lambda: {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "required": ["@type"],
    },
    "google.protobuf.DoubleValue": _number,
    "google.protobuf.FloatValue": _number,
    "google.protobuf.Int32Value": _int32,
    "google.protobuf.UInt32Value": _uint32,
    "google.protobuf.Int64Value": _int64,
    "google.protobuf.UInt64Value": _uint64,
    "google.protobuf.BoolValue": _boolean,
    "google.protobuf.StringValue": _string,
    "google.protobuf.BytesValue": _bytes,
}


def message_schema(message: Descriptor, comments: Mapping[str, str]) -> Schema | None:
    """The schema of `message`, an object schema; None where its JSON is no object.

    `comments` are by full name, as `comments_of` gives them; they become descriptions.
    """
    well_known = _WELL_KNOWN.get(message.full_name)
    if well_known is not None:
        schema = well_known()
        return schema if schema.get("type") == "object" else None
    return _Writer(message, comments).schema()


class _Writer:
    """Writes one schema with the definitions that it needs."""

    def __init__(self, root: Descriptor, comments: Mapping[str, str]) -> None:
        self._root = root
        self._comments = comments
        self._definitions: dict[str, Schema] = {}

    def schema(self) -> Schema:
        schema = self._message(self._root)
        if self._definitions:
            schema["$defs"] = self._definitions
        return schema

    def _message(self, message: Descriptor) -> Schema:
        schema: Schema = {
            "type": "object",
            "properties": {field.name: self._field(field) for field in message.fields},
            "additionalProperties": False,
        }
        required = [field.name for field in message.fields if _is_required(field)]
        if required:
            schema["required"] = required
        notes = [self._comments.get(message.full_name, ""), *_oneof_notes(message)]
        return _described(schema, "\n".join(filter(None, notes)))

    def _field(self, field: FieldDescriptor) -> Schema:
        if _is_map(field):
            schema = self._map(field)
        elif field.is_repeated:
            schema = {"type": "array", "items": self._single(field)}
        else:
            schema = self._single(field)
        return _described(schema, self._comments.get(field.full_name, ""))

    def _map(self, field: FieldDescriptor) -> Schema:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        schema: Schema = {"type": "object", "additionalProperties": self._single(value)}
        if key.type == FieldDescriptor.TYPE_BOOL:
            schema["propertyNames"] = {"enum": ["true", "false"]}
        elif key.type != FieldDescriptor.TYPE_STRING:
            schema["propertyNames"] = {"pattern": f"^-?[0-9]{{1,{_INT64_DIGITS}}}$"}
        return schema

    def _single(self, field: FieldDescriptor) -> Schema:
        if field.type == FieldDescriptor.TYPE_ENUM:
            if field.enum_type.full_name == _NULL_VALUE:
                return {"type": "null"}
            return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
        if field.message_type is None:
            return _SCALARS[field.type]()
        well_known = _WELL_KNOWN.get(field.message_type.full_name)
        return well_known() if well_known is not None else self._reference(field.message_type)

    def _reference(self, message: Descriptor) -> Schema:
        if message.full_name == self._root.full_name:
            return {"$ref": "#"}
        if message.full_name not in self._definitions:
            # Noted before it is written: a field of it may be of its own type.
            self._definitions[message.full_name] = {}
            self._definitions[message.full_name] = self._message(message)
        return {"$ref": _DEFINITIONS + message.full_name}


def _is_map(field: FieldDescriptor) -> bool:
    message = field.message_type
    return message is not None and message.GetOptions().map_entry


def _is_required(field: FieldDescriptor) -> bool:
    """Whether the field says so: by proto2, by google.api.field_behavior or our bounds."""
    # Options of a private pool don't know the extensions that were compiled in here.
    options = descriptor_pb2.FieldOptions.FromString(field.GetOptions().SerializeToString())
    behaviours = options.Extensions[field_behavior_pb2.field_behavior]
    return (
        field.is_required
        or field_behavior_pb2.REQUIRED in behaviours
        or options.Extensions[options_pb2.bounds].required
    )


def _oneof_notes(message: Descriptor) -> list[str]:
    notes = []
    for oneof in message.oneofs:
        # A lone optional field is a oneof of its own, with a name that says so.
        if not (len(oneof.fields) == 1 and oneof.name == f"_{oneof.fields[0].name}"):
            names = ", ".join(field.name for field in oneof.fields)
            notes.append(f"At most one of these may be set: {names}.")
    return notes


def _described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description} if description else schema
