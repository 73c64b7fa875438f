"""How passages are ranked: a pure function of what matched.

BM25 orders the candidates. Those near the top are ordered anew by how much of the query
they cover, each word weighing as much as it is rare, since BM25 alone lets one frequent
word outweigh three that occur once, and since SQLite's drops the weight of words that
are in more than half of the passages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.vectors.index import Hit

TERMS_MAX = 64
"""Different words of a query that are looked at, from its beginning."""
CANDIDATES_MIN = 64
"""Passages that are ranked anew, at least."""


@dataclass(frozen=True, slots=True)
class Term:
    """A word of a query. `rarity` is greater the fewer passages have it."""

    word: str
    rarity: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage that has a word of the query, with its BM25 and the stems of its words."""

    fit: float
    stems: frozenset[str]
    hit: Hit


def candidates_count(count: int) -> int:
    """How many passages are ranked anew where `count` are wanted."""
    return max(CANDIDATES_MIN, 4 * count)


def rarity(passages: int, passages_with_word: int) -> float:
    """How much a word says that occurs in some of all passages; greater than 0."""
    return math.log1p(passages / passages_with_word)


def match_expression(terms: Mapping[str, Term]) -> str:
    """The full-text query for any of the words; quoted, so that none has a meaning."""
    return " OR ".join(f'"{term.word}"' for term in terms.values())


def ranked(candidates: Sequence[Candidate], terms: Mapping[str, Term]) -> Sequence[Hit]:
    """The candidates' hits with their scores, best first. `terms` are by stem."""
    best = max((candidate.fit for candidate in candidates), default=0.0)
    whole = sum(term.rarity for term in terms.values())
    for candidate in candidates:
        covered = sum(term.rarity for stem, term in terms.items() if stem in candidate.stems)
        fit = candidate.fit / best if best > 0 else 0.0
        candidate.hit.passage.score = fit + covered / whole
    hits = [candidate.hit for candidate in candidates]
    return sorted(hits, key=lambda hit: -hit.passage.score)
