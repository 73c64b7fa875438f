"""`builtin/hashing`: embeddings by feature hashing. No neural model, and no weights: texts are
close that share words and parts of words, not those that mean the same in other words.

Each word, pair of neighbouring words and group of three to five letters of a word adds a signed
weight to the number that its hash names (Weinberger et al., 2009, "Feature hashing for large
scale multitask learning"), weighted by the root of how often it occurs; the vector then has
length 1. The same text has the same vector on every machine.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise

DIMENSION = 384
DIMENSION_MIN = 16
CHARACTERS_MAX = 65_536

_WORD = re.compile(r"\w+")
_GRAMS = range(3, 6)
_WORD_CHARACTERS_MAX = 64
_WORD_WEIGHT, _PAIR_WEIGHT, _GRAM_WEIGHT = 1.0, 0.5, 0.3


def embed(text: str, dimension: int = DIMENSION) -> list[float]:
    """The vector of `text`, of length 1; a text without words gets that of its characters,
    so that no vector is all zeros."""
    weights: Counter[str] = Counter()
    words = _words(text) or [text[:_WORD_CHARACTERS_MAX]]
    for word in words:
        weights[f"w {word}"] += 1
    for first, second in pairwise(words):
        weights[f"p {first} {second}"] += 1
    for word in words:
        for gram in _grams(word):
            weights[f"g {gram}"] += 1
    vector = [0.0] * dimension
    for feature, count in weights.items():
        place, sign = _place(feature, dimension)
        vector[place] += sign * _weight(feature) * math.sqrt(count)
    length = math.sqrt(math.fsum(value * value for value in vector))
    if not length:
        # Features that cancel each other out, once in a great while.
        vector[_place(words[0], dimension)[0]] = length = 1.0
    return [value / length for value in vector]


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text[:CHARACTERS_MAX]).casefold()
    return [word[:_WORD_CHARACTERS_MAX] for word in _WORD.findall(folded)]


def _grams(word: str) -> Iterator[str]:
    """The groups of letters of a word, its begin and end marked."""
    marked = f"<{word}>"
    for size in _GRAMS:
        for start in range(len(marked) - size + 1):
            yield marked[start : start + size]


def _weight(feature: str) -> float:
    return {"w": _WORD_WEIGHT, "p": _PAIR_WEIGHT, "g": _GRAM_WEIGHT}[feature[0]]


def _place(feature: str, dimension: int) -> tuple[int, int]:
    """Where a feature counts, and whether for or against."""
    digest = int.from_bytes(blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest())
    return (digest >> 1) % dimension, 1 if digest & 1 else -1
