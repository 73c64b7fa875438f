"""Reads what tools returned, whatever their shape: passages to quote, or facts to report."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.models.providers.extractive.lexicon import word_list
from services.models.providers.extractive.text import parts, stem

PASSAGES_MAX = 64
PASSAGE_CHARACTERS_MAX = 20_000
FACTS_MAX = 12

_DEPTH_MAX = 6
_SHORT_CHARACTERS = 300
_TEXT_KEYS = word_list(
    """text content body passage snippet excerpt chunk page_content pageContent markdown
    summary description answer"""
)
_URI_KEYS = word_list("uri url path source file link href document id")
_TITLE_KEYS = word_list("title name heading subject")


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that a tool found, and where it is from."""

    text: str
    uri: str = ""
    title: str = ""
    headings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """A tool's answer. Either `passages`, or `facts` as (name, value); the name is empty
    for an answer that is a single value. `is_empty`: the tool answered, and found nothing."""

    passages: tuple[Passage, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    is_empty: bool = False


def read_result(text: str) -> Result:
    """The result in a tool's answer, JSON or plain text. Never raises."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        passages = tuple(_salvaged(text))
        return Result(passages) if passages else _plain(text)
    if not isinstance(value, dict | list):
        return _plain(text.strip().strip('"'))
    passages = tuple(_passages(value, 0))[:PASSAGES_MAX]
    if passages:
        return Result(passages)
    facts = tuple(_facts(value, (), 0))
    return Result(facts=facts, is_empty=not facts)


def relevant_facts(
    facts: tuple[tuple[str, str], ...], asked: frozenset[str]
) -> list[tuple[str, str]]:
    """Those whose names or values the question speaks of, else the first; at most FACTS_MAX."""
    fitting = [
        (name, value)
        for name, value in facts
        if not asked.isdisjoint(stem(part) for part in parts(name.rsplit(".", 1)[-1]))
    ]
    return (fitting or list(facts))[:FACTS_MAX]


def _plain(text: str) -> Result:
    text = text.strip()
    if not text:
        return Result(is_empty=True)
    if len(text) <= _SHORT_CHARACTERS and text.count("\n") < 3:
        return Result(facts=(("", " ".join(text.split())),))
    return Result((Passage(text[:PASSAGE_CHARACTERS_MAX]),))


def _salvaged(text: str) -> Iterator[Passage]:
    """The whole passages of a JSON text that was cut short to fit the context."""
    decoder = json.JSONDecoder()
    position = text.find("{")
    for _ in range(PASSAGES_MAX):
        if position < 0:
            return
        try:
            member, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            member, end = {}, position + 1
        passage = _passage(member) if isinstance(member, dict) else None
        if passage is not None:
            yield passage
        position = text.find("{", end)


def _passages(value: object, depth: int) -> Iterator[Passage]:
    """Passages are the objects of a list that have a field of prose."""
    if depth > _DEPTH_MAX:
        return
    if isinstance(value, Mapping):
        for member in value.values():
            if isinstance(member, Mapping | list):
                yield from _passages(member, depth + 1)
    elif isinstance(value, list):
        for member in value[:PASSAGES_MAX]:
            passage = _passage(member) if isinstance(member, Mapping) else None
            if passage is not None:
                yield passage
            elif isinstance(member, str) and len(member) > 40:
                yield Passage(member[:PASSAGE_CHARACTERS_MAX])
            else:
                yield from _passages(member, depth + 1)


def _passage(member: Mapping[str, Any]) -> Passage | None:
    nested = member.get("passage") or member.get("document") or member.get("chunk")
    fields = {**member, **nested} if isinstance(nested, Mapping) else member
    text = _first(fields, _TEXT_KEYS)
    if text is None:
        return None
    headings = fields.get("headings")
    return Passage(
        text=text[:PASSAGE_CHARACTERS_MAX],
        uri=_first(fields, _URI_KEYS) or "",
        title=_first(fields, _TITLE_KEYS) or "",
        headings=tuple(map(str, headings)) if isinstance(headings, list) else (),
    )


def _first(fields: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next(
        (fields[key] for key in keys if isinstance(fields.get(key), str) and fields[key].strip()),
        None,
    )


def _facts(value: object, path: tuple[str, ...], depth: int) -> Iterator[tuple[str, str]]:
    if depth > _DEPTH_MAX:
        return
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield from _facts(member, (*path, str(name)), depth + 1)
    elif isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        if value:
            yield ".".join(path), ", ".join(map(str, value[:FACTS_MAX]))
    elif isinstance(value, list):
        for index, member in enumerate(value[:FACTS_MAX]):
            yield from _facts(member, (*path, str(index + 1)), depth + 1)
    elif value is not None and value != "":
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        yield ".".join(path), shown[:_SHORT_CHARACTERS]
