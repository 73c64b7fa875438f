"""Fills a tool's arguments from what a question mentions."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.models.providers.extractive import mentions
from services.models.providers.extractive.lexicon import STOP_WORDS, word_set
from services.models.providers.extractive.schema import Property, Tool
from services.models.providers.extractive.text import parts, stem, terms, words

_WINDOW_CHARACTERS = 24
_DETERMINERS = word_set("a an the this that which what whole my our your is of and")
_PLAIN_ID = r"[A-Za-z0-9][A-Za-z0-9-]{0,62}"
_KEY_PARTS = word_set("id number no code key ref reference sku")
_FREE_TEXT_PARTS = word_set("text message body content input prompt sentence value string")
_NAME_PARTS = word_set(
    """name city place location town country region person user customer author title company
    origin destination airport station address"""
)
_PREPOSITIONS = {
    "from": word_set("origin from source start departure sender since"),
    "to": word_set("destination to target end arrival recipient receiver until"),
}


@dataclass(slots=True)
class Arguments:
    """What was found. `said` are the stems of the question that went into values."""

    values: dict[str, Any] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    filled: int = 0

    def put(self, item: Property, value: object) -> None:
        """Sets a property that the question mentions."""
        self.put_default(item, value)
        self.filled += 1
        self.said |= {stem(word) for word in words(str(value))} | set(terms(str(value)))

    def put_default(self, item: Property, value: object) -> None:
        """Sets a property that the schema alone decides."""
        target = self.values
        for name in item.path[:-1]:
            target = target.setdefault(name, {})
        target[item.path[-1]] = value

    def used(self) -> set[str]:
        """The values so far, as text, so that none is used twice."""
        return set(_leaves(self.values))


def fill(tool: Tool, text: str) -> Arguments | None:
    """Arguments from `text`, the query and the expression aside; None where one is missing."""
    arguments = Arguments()
    own = (tool.query, tool.expression)
    ordered = sorted(tool.properties, key=lambda item: not item.is_required)
    for item in ordered:
        if item in own:
            continue
        value = _find(tool, item, text, arguments)
        if value is not None:
            arguments.put(item, value)
        elif item.is_required and (value := _decided(item)) is not None:
            arguments.put_default(item, value)
        elif item.is_required:
            return None
    return arguments


def _leaves(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [leaf for member in value.values() for leaf in _leaves(member)]
    if isinstance(value, list):
        return [leaf for member in value for leaf in _leaves(member)]
    return [str(value)]


def _decided(item: Property) -> object:
    if item.default is not None:
        return item.default
    return item.values[0] if len(item.values) == 1 else None


def _find(tool: Tool, item: Property, text: str, arguments: Arguments) -> object:
    if item.values:
        return _enum_value(item, text)
    finders: dict[str, Callable[[], object]] = {
        "boolean": lambda: _flag(item, text),
        "integer": lambda: _number(tool, item, text, arguments),
        "number": lambda: _number(tool, item, text, arguments),
        "array": lambda: _list(item, text),
        "string": lambda: _string(tool, item, text, arguments),
    }
    finder = finders.get(item.type)
    return finder() if finder else None


def _enum_value(item: Property, text: str) -> object:
    """The value whose own words `text` holds; words that all values share don't count."""
    said = {stem(word) for word in words(text)} | set(terms(text))
    stems = {value: {stem(part) for part in parts(str(value))} for value in item.values}
    shared = set.intersection(*stems.values()) if len(stems) > 1 else set()
    fitting = [value for value, own in stems.items() if own - shared and (own - shared) <= said]
    return max(fitting, key=lambda value: len(stems[value]), default=None)


def _flag(item: Property, text: str) -> bool | None:
    own = [stem(part) for part in item.name_parts if part not in STOP_WORDS | {"include"}]
    said = [stem(word) for word in words(text)]
    if not own or not set(own) <= set(said):
        return None
    before = said[max(0, said.index(own[0]) - 2) : said.index(own[0])]
    return not {"no", "not", "without", "don't", "exclud"} & set(before)


def _number(tool: Tool, item: Property, text: str, arguments: Arguments) -> float | int | None:
    used = arguments.used()
    found = [(at, value) for at, value in mentions.numbers(text) if _plain(value) not in used]
    named = [value for at, value in found if _stands_by(item, text, at)]
    alike = [
        one for one in tool.properties if one.type in ("integer", "number") and one.is_required
    ]
    if not named and item.is_required and (len(found) == 1 or len(alike) > 1):
        named = [value for _, value in found]
    if not named:
        return None
    value = named[0]
    if item.type == "integer":
        return int(value) if value.is_integer() else None
    return int(value) if value.is_integer() else value


def _plain(value: float) -> str:
    return str(int(value) if value.is_integer() else value)


def _stands_by(item: Property, text: str, at: int) -> bool:
    """Whether the number at `at` stands next to a word of the property's name."""
    own = item.name_stems | {stem(word) for word in words(item.description)[:12]} - STOP_WORDS
    near_before = words(text[max(0, at - _WINDOW_CHARACTERS) : at])[-2:]
    near_after = words(text[at : at + _WINDOW_CHARACTERS])[1:2]
    near = [stem(word) for word in near_before + near_after if word.lower() not in STOP_WORDS]
    return not own.isdisjoint(near)


def _list(item: Property, text: str) -> list[object] | None:
    found: list[object]
    if item.item_type in ("integer", "number"):
        found = [int(value) if value.is_integer() else value for _, value in mentions.numbers(text)]
    else:
        found = list(mentions.quoted(text))
    return found or None


def _string(tool: Tool, item: Property, text: str, arguments: Arguments) -> str | None:
    if item.format:
        return _unused(mentions.of_format(text, item.format), arguments)
    about = f"{' '.join(item.name_parts)} {item.description}".lower().replace(
        "time zone", "timezone"
    )
    if "timezone" in about or "iana" in about:
        return mentions.time_zone(text)
    if set(item.name_parts) & {"date", "day"} and (days := mentions.dates(text)):
        return _unused(days, arguments)
    return (
        _after_name(item, text, arguments)
        or (_key(item, text, arguments) if _wanted(tool, item) else None)
        or (_free_text(tool, item, text, arguments) if _wanted(tool, item) else None)
    )


def _wanted(tool: Tool, item: Property) -> bool:
    """Whether a value may be guessed: it is required, or the schema requires nothing at all,
    as those made from protobuf messages do."""
    return item.is_required or not any(one.is_required for one in tool.properties)


def _unused(found: list[str], arguments: Arguments) -> str | None:
    used = arguments.used()
    return next((value for value in found if value not in used), None)


def _after_name(item: Property, text: str, arguments: Arguments) -> str | None:
    """`name: value`, `name "value"`, `order A-17`: a value right after the property's name."""
    own = [part for part in item.name_parts if part not in _KEY_PARTS] or item.name_parts
    name = r"[\s_-]?".join(re.escape(part) for part in own)
    value = r"\"([^\"]+)\"|'([^']+)'|`([^`]+)`"
    marked = re.search(rf"\b{name}\s*(?:[:=]|is|named|called)?\s*(?:{value})", text, re.IGNORECASE)
    if marked:
        return str(next(filter(None, marked.groups())))
    keyed = re.search(rf"\b{name}\s*[:=]\s*([^\s,;?]+)", text, re.IGNORECASE)
    if keyed:
        return keyed[1].rstrip(".!")
    if item.is_required and item.has_pattern and (found := _id_by_name(name, text)):
        return found
    if not set(item.name_parts) & _KEY_PARTS and not set(item.name_parts) & _NAME_PARTS:
        return None
    followed = re.search(
        rf"\b(?i:{name})\s+(?i:id\s+|number\s+|no\.?\s+|code\s+|in\s+|of\s+|named\s+)?#?"
        rf"([A-Z][\w'\u2019-]*(?:\s+[A-Z][\w'\u2019-]*)*|[\w-]*\d[\w:-]*)",
        text,
    )
    return _unused([followed[1]], arguments) if followed else None


def _id_by_name(name: str, text: str) -> str | None:
    """The id in `the handbook collection` or `collection handbook`, for the name `collection`."""
    before = rf"\b(?:the|in|from|of)\s+({_PLAIN_ID})\s+{name}\b"
    after = rf"\b{name}\s+({_PLAIN_ID})\b"
    found = re.search(before, text, re.IGNORECASE) or re.search(after, text, re.IGNORECASE)
    return found[1].lower() if found and found[1].lower() not in _DETERMINERS else None


def _key(item: Property, text: str, arguments: Arguments) -> str | None:
    """An id for a property that is one: the word with digits, or what is quoted."""
    if not set(item.name_parts) & _KEY_PARTS:
        return None
    return _unused(mentions.quoted(text) + mentions.ids(text), arguments)


def _free_text(tool: Tool, item: Property, text: str, arguments: Arguments) -> str | None:
    own = set(item.name_parts)
    likely = _FREE_TEXT_PARTS | _NAME_PARTS.union(*_PREPOSITIONS.values())
    if own & _KEY_PARTS or (not item.is_required and own.isdisjoint(likely)):
        return None
    quoted = _unused(mentions.quoted(text), arguments)
    if quoted is not None:
        return quoted
    if own & _FREE_TEXT_PARTS:
        return _remainder(tool, text)
    return _proper_name(item, text, arguments)


def _remainder(tool: Tool, text: str) -> str | None:
    """What follows the word that names the tool: `Echo hello there` gives `hello there`."""
    for match in re.finditer(r"[\w'\u2019-]+", text):
        if stem(match.group()) in tool.name_stems:
            return text[match.end() :].lstrip(" :,-").strip() or None
    _, colon, after = text.partition(":")
    return after.strip() if colon and after.strip() else None


def _proper_name(item: Property, text: str, arguments: Arguments) -> str | None:
    """A capitalised name, the one after a preposition that fits the property first."""
    used = arguments.used()
    own = set(item.name_parts)
    fallback: str | None = None
    for at, name in mentions.names(text):
        before = words(text[:at])
        preposition = before[-1].lower() if before else ""
        if name in used or preposition not in (
            *_PREPOSITIONS,
            "in",
            "at",
            "for",
            "of",
            "is",
            "with",
        ):
            continue
        if preposition in _PREPOSITIONS and own & _PREPOSITIONS[preposition]:
            return name
        fallback = fallback or name
    directed = any(own & fitting for fitting in _PREPOSITIONS.values())
    return None if directed else fallback
