"""Words, stems and what a question is about."""

import re
from functools import lru_cache

from services.models.providers.extractive.lexicon import (
    IRREGULAR,
    NOT_SUPERLATIVES,
    STOP_WORDS,
    SYNONYMS,
)

_WORD = re.compile(r"\w+(?:['\u2019./:@-]\w+)*")
_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+(?:\.\d+)*|[^\W\d_a-zA-Z]+")
_DOUBLED = re.compile(r"([bdfgmnprt])\1$|(?<=\w{3}el)l()$")
_VOWEL = re.compile(r"[aeiouy]")

_SUFFIXES = (
    ("ability", 4),
    ("ibility", 4),
    ("ations", 4),
    ("ation", 4),
    ("ition", 4),
    ("ments", 3),
    ("ment", 3),
    ("ness", 4),
    ("able", 4),
    ("ible", 4),
    ("ates", 4),
    ("ated", 4),
    ("ate", 4),
    ("ions", 4),
    ("ion", 4),
    ("ing", 3),
    ("est", 4),
    ("ers", 3),
    ("er", 3),
    ("ors", 4),
    ("or", 4),
    ("ed", 3),
    ("al", 4),
    ("ly", 4),
)
"""Endings that are cut off, longest first, each with the letters that must remain."""


def words(text: str) -> list[str]:
    """The words of `text` as they are written; `a/b.md` and `don't` are one word each."""
    return _WORD.findall(text)


@lru_cache(maxsize=16_384)
def stem(word: str) -> str:
    """A light stem: forms of one word mostly share it. It need not be a word itself."""
    word = word.lower().replace("\u2019", "'").removesuffix("'s")
    word = IRREGULAR.get(word, word)
    if len(word) <= 3 or not word.isalpha():
        return word
    word = _singular(word)
    if word in NOT_SUPERLATIVES:
        return word
    for suffix, kept in _SUFFIXES:
        if word.endswith(suffix):
            base = word.removesuffix(suffix)
            # `repeated` isn't `repe` and an ending.
            is_ending = not (suffix.startswith("at") and base.endswith(("e", "i")))
            if is_ending and len(base) >= kept and _VOWEL.search(base):
                return _DOUBLED.sub(r"\1", base).removesuffix("e")
    return word.removesuffix("e") if len(word) > 4 else word


def _singular(word: str) -> str:
    if word.endswith(("ies", "ied")) and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def parts(word: str) -> list[str]:
    """`output_tokens-max`, `GetOrder` and `a/b.md` in their parts, in lower case."""
    return [part.lower() for part in _PARTS.findall(word)]


def is_stop_word(word: str) -> bool:
    """Whether `word` says nothing of a subject; `I'm` and `what's` count by their first part,
    and `GET` or `IT` are names."""
    if len(word) > 1 and word.isupper() and word != "OK":
        return False
    lowered = word.lower().replace("\u2019", "'")
    return lowered in STOP_WORDS or ("'" in lowered and lowered.split("'")[0] in STOP_WORDS)


@lru_cache(maxsize=16_384)
def _terms_of_word(word: str) -> tuple[str, ...]:
    if is_stop_word(word):
        return ()
    lowered = word.lower()
    found = [stem(lowered)]
    split = parts(word)
    if len(split) > 1:
        found += [stem(part) for part in split if part not in STOP_WORDS and len(part) > 1]
    return tuple(dict.fromkeys(found))


def terms(text: str) -> list[str]:
    """The stems of the content words, in order, repeated where they repeat."""
    return [term for word in words(text) for term in _terms_of_word(word)]


def term_positions(text: str) -> list[tuple[str, int]]:
    """The stems as in `terms`, each with where its word begins."""
    return [
        (term, match.start())
        for match in _WORD.finditer(text)
        for term in _terms_of_word(match.group())
    ]


def content_words(text: str) -> list[str]:
    """The words that say what `text` is about, as written, each once."""
    kept: dict[str, str] = {}
    for word in words(text):
        plain = re.sub(r"['\u2019]s$", "", word)
        if not is_stop_word(plain):
            kept.setdefault(plain.lower(), plain)
    return list(kept.values())


def _groups() -> dict[str, frozenset[str]]:
    known: dict[str, set[str]] = {}
    for group in SYNONYMS:
        stems = {stem(word) for word in group.split()}
        for one in stems:
            known.setdefault(one, set()).update(stems - {one})
    return {one: frozenset(others) for one, others in known.items()}


_SYNONYMS = _groups()


def synonym_words(word: str) -> list[str]:
    """Whole words that may stand for `word`, the closest groups first."""
    own = stem(word)
    groups = [group.split() for group in SYNONYMS]
    return [
        other
        for group in groups
        if own in {stem(member) for member in group}
        for other in group
        if stem(other) != own and other not in STOP_WORDS
    ]


def synonyms(term: str) -> frozenset[str]:
    """Stems that may stand for the stem `term`."""
    return _SYNONYMS.get(term, frozenset())


def akin(one: str, other: str) -> bool:
    """Whether two stems share so long a beginning that they are likely of one family."""
    shorter = min(len(one), len(other))
    return shorter >= 5 and one[:5] == other[:5] and abs(len(one) - len(other)) <= 4
