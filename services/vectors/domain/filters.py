"""Filters over metadata: a part of AIP-160 (https://google.aip.dev/160), typed.

    author = "Ann" AND year >= 2020 AND NOT tag IN ("draft", 'old') AND note:*

A comparison holds where the key is there and one of its values is of the same type and
compares so; `!=` where the key is there and none of its values is equal. So everything is
true or false, and NOT turns one into the other. AND beside OR needs parentheses: AIP-160
binds OR closer than AND, most languages the other way round.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from mesh.errors import InvalidArgument
from services.vectors.domain.metadata import KEY_LENGTH_MAX, TEXT_LENGTH_MAX, Value

DEPTH_MAX = 16
"""Most parentheses and NOTs around a comparison."""
TERMS_MAX = 64
"""Most comparisons of a filter."""
CHOICES_MAX = 100
"""Most values of one IN."""


class Operator(StrEnum):
    """How a value is compared."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="


@dataclass(frozen=True, slots=True)
class Comparison:
    """One of the key's values compares so; with NOT_EQUAL none is equal."""

    key: str
    operator: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of the key's values is among `values`."""

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Present:
    """The key is there, and isn't an empty list."""

    key: str


@dataclass(frozen=True, slots=True)
class Not:
    """What is inside doesn't hold."""

    inner: "Filter"


@dataclass(frozen=True, slots=True)
class All:
    """Each part holds."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Any:
    """One part holds, at least."""

    parts: tuple["Filter", ...]


Filter = Comparison | OneOf | Present | Not | All | Any

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<number>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
  | (?P<word>[A-Za-z_][A-Za-z0-9_-]*)
  | (?P<sign><=|>=|!=|:\*|[=<>(),])
  | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_WORDS = frozenset({"AND", "OR", "NOT", "IN", "TRUE", "FALSE", "NULL"})


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


def parse_filter(text: str) -> Filter | None:
    """The filter that the text says; None where it is empty.

    Raises InvalidArgument that says where and what was expected.
    """
    if not text.strip():
        return None
    return _Parser(text).whole()


class _Parser:
    """Reads one filter from left to right."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._token = next(self._tokens)
        self._terms = 0
        self._depth = 0

    def whole(self) -> Filter:
        found = self._expression()
        if self._token.kind != "end":
            raise self._expected("AND, OR or the end")
        return found

    def _expression(self) -> Filter:
        parts = [self._part()]
        joined = ""
        while self._is_word("AND") or self._is_word("OR"):
            if joined and self._token.text != joined:
                raise _wrong(self._token, "AND beside OR needs parentheses")
            joined = self._take().text
            parts.append(self._part())
        if not joined:
            return parts[0]
        return All(tuple(parts)) if joined == "AND" else Any(tuple(parts))

    def _part(self) -> Filter:
        if self._is_word("NOT"):
            with_not = self._take()
            return Not(self._inside(with_not, self._part))
        if self._is_sign("("):
            opening = self._take()
            found = self._inside(opening, self._expression)
            self._sign(")")
            return found
        return self._term()

    def _inside(self, token: _Token, read: Callable[[], Filter]) -> Filter:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise _wrong(token, f"at most {DEPTH_MAX} NOTs and parentheses may be nested")
        found = read()
        self._depth -= 1
        return found

    def _term(self) -> Filter:
        self._terms += 1
        if self._terms > TERMS_MAX:
            raise _wrong(self._token, f"at most {TERMS_MAX} comparisons are accepted")
        key = self._key()
        if self._is_sign(":*"):
            self._take()
            return Present(key)
        if self._is_word("IN"):
            self._take()
            return OneOf(key, self._choices())
        if self._token.kind != "sign" or self._token.text not in set(Operator):
            raise self._expected("=, !=, <, <=, >, >=, IN or :*")
        sign = self._take()
        operator = Operator(sign.text)
        value = self._value()
        ordered = operator not in (Operator.EQUAL, Operator.NOT_EQUAL)
        if ordered and isinstance(value, bool):
            raise _wrong(sign, "true and false have no order; = and != are for them")
        return Comparison(key, operator, value)

    def _key(self) -> str:
        if self._token.kind != "word" or self._token.text in _WORDS:
            raise self._expected("a key")
        if len(self._token.text) > KEY_LENGTH_MAX:
            raise _wrong(self._token, f"a key has at most {KEY_LENGTH_MAX} characters")
        return self._take().text

    def _choices(self) -> tuple[Value, ...]:
        self._sign("(")
        values = [self._value()]
        while self._is_sign(","):
            comma = self._take()
            if len(values) == CHOICES_MAX:
                raise _wrong(comma, f"IN takes at most {CHOICES_MAX} values")
            values.append(self._value())
        self._sign(")")
        return tuple(values)

    def _value(self) -> Value:
        token = self._token
        if token.kind == "text":
            return self._text(self._take())
        if token.kind == "number":
            number = float(self._take().text)
            if not math.isfinite(number):
                raise _wrong(token, "the number is too large")
            return number
        if token.kind == "word" and token.text in ("true", "false"):
            return self._take().text == "true"
        raise self._expected("a string in quotes, a number, true or false")

    def _text(self, token: _Token) -> str:
        text = _ESCAPED.sub(r"\1", token.text[1:-1])
        if len(text) > TEXT_LENGTH_MAX:
            raise _wrong(token, f"a string has at most {TEXT_LENGTH_MAX} characters")
        if "\0" in text:
            raise _wrong(token, "a string can't hold NUL")
        return text

    def _sign(self, sign: str) -> None:
        if not self._is_sign(sign):
            raise self._expected(sign)
        self._take()

    def _is_sign(self, sign: str) -> bool:
        return self._token.kind == "sign" and self._token.text == sign

    def _is_word(self, word: str) -> bool:
        return self._token.kind == "word" and self._token.text == word

    def _take(self) -> _Token:
        taken = self._token
        if taken.kind != "end":
            self._token = next(self._tokens)
        return taken

    def _expected(self, what: str) -> InvalidArgument:
        return _wrong(self._token, f"expected {what}")


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while True:
        match = _TOKEN.match(text, position)
        if match is None:
            bare = len(text) - len(text[position:].lstrip())
            what = "the string has no end" if text[bare] in "\"'" else "can't be read"
            raise _wrong(_Token("", "", bare), what)
        kind = match.lastgroup or ""
        yield _Token(kind, match[kind], match.start(kind))
        if kind == "end":
            return
        position = match.end()


def _wrong(token: _Token, what: str) -> InvalidArgument:
    return InvalidArgument.of("filter", f"{what} at character {token.position + 1}")
