"""Random requests: bytes, mutated requests, and messages of random fields.

Deterministic for a seed, so that what was found can be found again.
"""

import random
import struct
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from mesh.rpc.methods import MethodSpec
from tests.support.requests import bounds_of, filled, resource_name

DEPTH_MAX = 4
HOSTILE = (
    *("", " ", "\x00", "a\x00b", "\n", "\u202e", "\ufeff", "💥" * 20, "ß" * 300, "a" * 5000),
    *("../../etc/passwd", "%s%n%x", "{{7*7}}", "${jndi:ldap://x}", "'; DROP TABLE turns;--"),
    *("tenants/acme", "tenants/globex", "tenants/acme/agents/-", "tenants/-/agents/-", "-", "null"),
    *("<script>", "NaN", "1e400", "0x" + "f" * 40, "{" * 200, "[" * 2000, '{"a":' * 500),
    *("http://127.0.0.1:1", "127.0.0.1:1", "unix:/tmp/x", "builtin/extractive", "SELECT", "AND OR"),
)
INTEGERS = (0, 1, -1, 2, 127, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
FLOATS = (0.0, -0.0, 1.5, -1.0, 1e308, float("inf"), float("-inf"), float("nan"), 5e-324)
_INTEGER_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class Fuzzer:
    """Makes requests of one method, for the tenant `acme`."""

    def __init__(self, spec: MethodSpec, seed: int) -> None:
        self._spec = spec
        self._random = random.Random(f"{spec.path} {seed}")
        self._valid = filled(spec, "acme").SerializeToString()

    def request(self) -> bytes:
        """The next one."""
        make = self._random.choices(
            (self._bytes, self._mutated, self._fields, self._nested, self._almost_valid),
            (2, 4, 5, 1, 3),
        )[0]
        return make()

    def _bytes(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 1, 2, 7, 40, 300, 3000)))

    def _mutated(self) -> bytes:
        """A good request with some bytes changed, cut, doubled or put in."""
        data = bytearray(self._valid)
        for _ in range(self._random.randint(1, 4)):
            place = self._random.randrange(len(data) + 1)
            match self._random.randrange(4):
                case 0 if place < len(data):
                    data[place] ^= 1 << self._random.randrange(8)
                case 1:
                    del data[place:]
                case 2:
                    data[place:place] = data[:place]
                case _:
                    data[place:place] = self._random.randbytes(self._random.randint(1, 8))
            if len(data) > 100_000:
                break
        return bytes(data)

    def _fields(self) -> bytes:
        message = self._spec.request_class()
        self._fill(message, 0)
        return bytes(message.SerializeToString())

    def _almost_valid(self) -> bytes:
        """A good request with one field of it replaced."""
        message = self._spec.request_class.FromString(self._valid)
        fields = list(message.DESCRIPTOR.fields)
        if fields:
            self._set(message, self._random.choice(fields), 0)
        return bytes(message.SerializeToString())

    def _nested(self) -> bytes:
        """Groups or messages within messages, deeper than any parser goes."""
        depth = self._random.choice((50, 101, 1000, 5000))
        number = self._random.randint(1, 8)
        if self._random.random() < 0.3:
            return bytes([number << 3 | 3]) * depth
        data = b""
        for _ in range(min(depth, 1000)):
            size = len(data)
            length = b""
            while size >= 128:
                length += bytes([size % 128 + 128])
                size //= 128
            data = bytes([number << 3 | 2]) + length + bytes([size]) + data
        return data

    def _fill(self, message: Any, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self._random.random() < 0.5:
                self._set(message, field, depth)

    def _set(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        inner_type = field.message_type
        if inner_type is not None and (
            inner_type.GetOptions().map_entry
            # Descriptors, as tools have: their enums are closed.
            or inner_type.full_name.startswith("google.protobuf.File")
        ):
            return
        count = self._random.choice((0, 1, 2, 30)) if field.is_repeated else 1
        if field.message_type is not None:
            for _ in range(min(count, 3) if depth < DEPTH_MAX else 0):
                inner = getattr(message, field.name)
                inner = inner.add() if field.is_repeated else inner
                inner.SetInParent()
                self._fill(inner, depth + 1)
            return
        values = [self._value(field) for _ in range(count)]
        if field.is_repeated:
            getattr(message, field.name).extend(values)
        else:
            setattr(message, field.name, values[0])

    def _value(self, field: FieldDescriptor) -> Any:
        pick = self._random
        kind = field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return pick.randbytes(pick.choice((0, 1, 32, 5000)))
            return self._text(field)
        if kind in _INTEGER_RANGES:
            low, high = _INTEGER_RANGES[kind]
            return min(max(pick.choice(INTEGERS), low), high)
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return pick.choice((0, 1, 2, 3, 77, -1, 2**31 - 1))
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return pick.random() < 0.5
        value = pick.choice(FLOATS)
        if kind == FieldDescriptor.CPPTYPE_FLOAT:
            return struct.unpack("f", struct.pack("f", min(max(value, -3e38), 3e38)))[0]
        return value

    def _text(self, field: FieldDescriptor) -> str:
        pick = self._random
        bounds = bounds_of(field)
        if bounds.resource or bounds.resource_pattern:
            name = resource_name(bounds, pick.choice(("acme", "acme", "acme", "globex", "x")))
            return pick.choice((name, name, name + "/", name[:-1], *HOSTILE))
        return pick.choice(HOSTILE)
