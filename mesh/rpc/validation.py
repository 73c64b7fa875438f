"""Checks of messages, compiled from the bounds in `weft.options.v1`.

A message type is compiled once into closures, one per field that has something to
check. Only what is set is visited: an unset field is wrong only where it is required.
Types of other packages have no bounds of ours; of them Duration and Timestamp are
checked for being well formed (google/protobuf/duration.proto, timestamp.proto).
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from mesh.errors import FieldViolation
from weft.options.v1 import options_pb2

VIOLATIONS_MAX = 20
_KEY_LENGTH_MAX = 64
_DURATION_SECONDS_MAX = 315_576_000_000
_TIMESTAMP_SECONDS = range(-62_135_596_800, 253_402_300_800)
_NANOS = 1_000_000_000
_RESOURCE_ID = "[a-z0-9][a-z0-9-]{0,62}"
_resource_pattern = re.compile(
    rf"tenants/{_RESOURCE_ID}(/[a-z][A-Za-z]{{0,62}}/({_RESOURCE_ID}|\*|-))*"
).fullmatch

Found = list[FieldViolation]
Check = Callable[[Any, Found], None]
"""Adds what is wrong with a message, with paths that begin at that message."""
Problem = Callable[[Any], str | None]
"""Says what is wrong with one value; None where nothing is."""


class _MessageCheck:
    """The checks of one message type; filled after it is made, as types may recur."""

    __slots__ = ("checks",)

    def __init__(self) -> None:
        self.checks: tuple[Check, ...] = ()

    def __call__(self, message: Message, found: Found) -> None:
        for check in self.checks:
            check(message, found)


_compiled: dict[str, _MessageCheck] = {}


@cache
def violations_of(message_type: Descriptor) -> Callable[[Message], Found]:
    """A function that returns what is wrong with a message of that type.

    It returns at most VIOLATIONS_MAX violations, none where all is well.
    """
    check = _check_of(message_type)

    def violations(message: Message) -> Found:
        found: Found = []
        check(message, found)
        return found[:VIOLATIONS_MAX]

    return violations


def _check_of(message_type: Descriptor) -> _MessageCheck:
    known = _compiled.get(message_type.full_name)
    if known is not None:
        return known
    compiled = _compiled[message_type.full_name] = _MessageCheck()
    checks = (_field_check(field) for field in message_type.fields)
    compiled.checks = tuple(check for check in checks if check is not None)
    return compiled


def _field_check(field: FieldDescriptor) -> Check | None:
    extensions: Any = field.GetOptions()
    bounds = extensions.Extensions[options_pb2.bounds]
    if _is_map(field):
        return _map_check(field, bounds)
    inner = _nested(field)
    problem = _problem(field, bounds)
    formed = bounds.pattern or bounds.resource or bounds.resource_pattern
    if field.is_repeated:
        if formed and problem is not None:
            problem = _filled(problem)
        return _repeated_check(field.name, bounds, inner, problem)
    if inner is None and problem is None and not bounds.required:
        return None
    if inner is not None:
        return _message_check(field.name, bounds.required, inner)
    if field.has_presence:
        return _present_check(field, bounds.required, problem)
    if field.type == FieldDescriptor.TYPE_STRING and not formed:
        return _text_check(field.name, bounds.required, bounds.length_max)
    return _scalar_check(field.name, bounds.required, problem)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _nested(field: FieldDescriptor) -> _MessageCheck | None:
    """The check of a field's own message type; None where it has nothing to check."""
    message_type = field.message_type
    if message_type is None or not message_type.full_name.startswith("weft."):
        return None
    recurring = message_type.full_name in _compiled
    check = _check_of(message_type)
    return check if check.checks or recurring else None


def _text_check(name: str, required: bool, length_max: int) -> Check:
    """As `_scalar_check`, for what most fields are: a string of bounded length."""
    too_long = f"must be at most {length_max} characters long"

    def check(message: Any, found: Found) -> None:
        length = len(getattr(message, name))
        if not length:
            if required:
                found.append(FieldViolation(name, "is required"))
        elif length_max and length > length_max:
            found.append(FieldViolation(name, too_long))

    return check


def _scalar_check(name: str, required: bool, problem: Problem | None) -> Check:
    def check(message: Any, found: Found) -> None:
        value = getattr(message, name)
        if not value:
            # Without presence, zero and empty are what "not set" looks like.
            if required:
                found.append(FieldViolation(name, "is required"))
        elif problem is not None and (description := problem(value)) is not None:
            found.append(FieldViolation(name, description))

    return check


def _present_check(field: FieldDescriptor, required: bool, problem: Problem | None) -> Check:
    name = field.name
    must_not_be_empty = required and field.cpp_type in (
        FieldDescriptor.CPPTYPE_STRING,
        FieldDescriptor.CPPTYPE_ENUM,
    )

    def check(message: Any, found: Found) -> None:
        if not message.HasField(name):
            if required:
                found.append(FieldViolation(name, "is required"))
            return
        value = getattr(message, name)
        if must_not_be_empty and not value:
            found.append(FieldViolation(name, "is required"))
        elif problem is not None and (description := problem(value)) is not None:
            found.append(FieldViolation(name, description))

    return check


def _message_check(name: str, required: bool, inner: _MessageCheck) -> Check:
    prefix = f"{name}."

    def check(message: Any, found: Found) -> None:
        if message.HasField(name):
            _check_inside(inner, getattr(message, name), prefix, found)
        elif required:
            found.append(FieldViolation(name, "is required"))

    return check


def _repeated_check(
    name: str, bounds: Any, inner: _MessageCheck | None, problem: Problem | None
) -> Check | None:
    items_max, required = bounds.items_max, bounds.required
    if not (items_max or required or inner or problem):
        return None

    def check(message: Any, found: Found) -> None:
        items = getattr(message, name)
        if not items:
            if required:
                found.append(FieldViolation(name, "is required"))
            return
        if items_max and len(items) > items_max:
            # Entries beyond the bound aren't worth looking at.
            found.append(FieldViolation(name, f"must have at most {items_max} entries"))
            return
        if inner is not None:
            _check_messages(items, inner, name, found)
        elif problem is not None:
            entries = ((f"{name}[{index}]", item) for index, item in enumerate(items))
            _check_entries(entries, None, problem, found)

    return check


def _map_check(field: FieldDescriptor, bounds: Any) -> Check | None:
    name, items_max, required = field.name, bounds.items_max, bounds.required
    key_field, value_field = (field.message_type.fields_by_name[part] for part in ("key", "value"))
    inner = _nested(value_field)
    problem = _problem(value_field, bounds)
    key_bounds = options_pb2.FieldBounds(length_max=bounds.length_max)
    key_problem = _problem(key_field, key_bounds)

    def check(message: Any, found: Found) -> None:
        entries = getattr(message, name)
        if required and not entries:
            found.append(FieldViolation(name, "is required"))
        if items_max and len(entries) > items_max:
            found.append(FieldViolation(name, f"must have at most {items_max} entries"))
            return
        paths = [(f'{name}["{str(key)[:_KEY_LENGTH_MAX]}"]', key) for key in entries]
        _check_entries(paths, None, key_problem, found)
        _check_entries(((path, entries[key]) for path, key in paths), inner, problem, found)

    return check


def _check_messages(items: Iterable[Any], inner: _MessageCheck, name: str, found: Found) -> None:
    """As `_check_entries`, for the one list that may be long: a conversation's messages,
    which are checked at every step of a turn."""
    checks = inner.checks
    before = len(found)
    for index, item in enumerate(items):
        for check in checks:
            check(item, found)
        if len(found) > before:
            _prefix(found, before, f"{name}[{index}].")
            before = len(found)
            if before >= VIOLATIONS_MAX:
                return


def _check_entries(
    entries: Iterable[tuple[str, Any]],
    inner: _MessageCheck | None,
    problem: Problem | None,
    found: Found,
) -> None:
    for path, item in entries:
        if inner is not None:
            _check_inside(inner, item, f"{path}.", found)
        elif problem is not None and (description := problem(item)) is not None:
            found.append(FieldViolation(path, description))
        if len(found) >= VIOLATIONS_MAX:
            return


def _check_inside(inner: _MessageCheck, message: Any, prefix: str, found: Found) -> None:
    before = len(found)
    inner(message, found)
    if len(found) > before:
        _prefix(found, before, prefix)


def _prefix(found: Found, begin: int, prefix: str) -> None:
    # Paths are put together on the way out, so that a good message costs none.
    for index in range(begin, len(found)):
        violation = found[index]
        found[index] = FieldViolation(prefix + violation.field, violation.description)


def _problem(field: FieldDescriptor, bounds: Any) -> Problem | None:
    """What can be wrong with one value of the field, apart from its absence."""
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Duration":
            return _duration_problem(bounds)
        if field.message_type.full_name == "google.protobuf.Timestamp":
            return _timestamp_problem
        return None
    if field.enum_type is not None:
        return _enum_problem(field)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _string_problem(bounds)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes_problem(bounds.bytes_max)
    return _number_problem(bounds)


def _string_problem(bounds: Any) -> Problem | None:
    length_max = bounds.length_max
    forms: list[tuple[Callable[[str], object], str]] = []
    if bounds.pattern:
        forms.append((re.compile(bounds.pattern).fullmatch, f"must match {bounds.pattern}"))
    if bounds.resource:
        form = bounds.resource.replace("|", " or ")
        forms.append((resource_expression(bounds.resource).fullmatch, f"must be named {form}"))
    if bounds.resource_pattern:
        forms.append((_resource_pattern, "must be a pattern such as tenants/acme/agents/*"))
    if not length_max and not forms:
        return None
    too_long = f"must be at most {length_max} characters long"

    def problem(value: str) -> str | None:
        if length_max and len(value) > length_max:
            return too_long
        if value:
            for matches, description in forms:
                if not matches(value):
                    return description
        return None

    return problem


def _filled(problem: Problem) -> Problem:
    """Of an entry of a list, which is there even where it is empty."""
    return lambda value: problem(value) if value else "must not be empty"


def resource_expression(pattern: str) -> re.Pattern[str]:
    """What a name must match as a whole that is of the resource pattern."""
    alternatives = (
        "/".join(_RESOURCE_ID if part == "*" else re.escape(part) for part in one.split("/"))
        for one in pattern.split("|")
    )
    return re.compile("|".join(f"(?:{alternative})" for alternative in alternatives))


def _bytes_problem(bytes_max: int) -> Problem | None:
    if not bytes_max:
        return None
    too_long = f"must be at most {bytes_max} bytes long"
    return lambda value: too_long if len(value) > bytes_max else None


def _enum_problem(field: FieldDescriptor) -> Problem:
    known = frozenset(field.enum_type.values_by_number)
    unknown = f"must be a known value of {field.enum_type.full_name}"
    return lambda value: None if value in known else unknown


def _number_problem(bounds: Any) -> Problem | None:
    minimum = bounds.minimum if bounds.HasField("minimum") else None
    maximum = bounds.maximum if bounds.HasField("maximum") else None
    if minimum is None and maximum is None:
        return None

    def problem(value: float) -> str | None:
        # Written so that NaN, which compares with nothing, is refused.
        if minimum is not None and not value >= minimum:
            return f"must be at least {minimum}"
        if maximum is not None and not value <= maximum:
            return f"must be at most {maximum}"
        return None

    return problem


def _duration_problem(bounds: Any) -> Problem:
    minimum = bounds.minimum if bounds.HasField("minimum") else None
    maximum = bounds.maximum if bounds.HasField("maximum") else None

    def problem(value: Any) -> str | None:
        seconds, nanos = value.seconds, value.nanos
        if (
            abs(seconds) > _DURATION_SECONDS_MAX
            or abs(nanos) >= _NANOS
            or (seconds and nanos and (seconds > 0) != (nanos > 0))
        ):
            return "isn't a well-formed duration"
        if minimum is not None and (seconds, nanos) < (minimum, 0):
            return f"must be at least {minimum} s"
        if maximum is not None and (seconds, nanos) > (maximum, 0):
            return f"must be at most {maximum} s"
        return None

    return problem


def _timestamp_problem(value: Any) -> str | None:
    if value.seconds in _TIMESTAMP_SECONDS and 0 <= value.nanos < _NANOS:
        return None
    return "isn't a well-formed timestamp"
