"""Ranks sentences by how well they answer a clause.

Coverage of the clause's terms, weighted by how rare a term is among the sentences at
hand (as the inverse document frequency of BM25 does), found in the sentence itself, in
its headings or in what introduces it; then hints from the kind of answer that is
wanted. Coverage alone decides whether anything fits at all.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from services.models.providers.extractive.lexicon import UNITS
from services.models.providers.extractive.markdown import Sentence
from services.models.providers.extractive.questions import Clause, Expects
from services.models.providers.extractive.text import akin, stem, synonyms, terms

FITTING_MIN = 0.5
"""Least coverage, from 0 to 1, at which a sentence counts as an answer."""

_IN_SENTENCE, _SYNONYM, _AKIN = 1.0, 0.75, 0.7
_IN_HEADING, _IN_LEAD = 0.75, 0.6
_CONTEXT_WEIGHT = 0.6
_UNIT_WEIGHT = 0.5
_UNITS = frozenset(stem(word) for word in UNITS)
_LENGTH_TERMS = 30

_NUMBER = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty"
    r"|hundred|thousand|once|twice|none|zero|half)\b",
    re.IGNORECASE,
)
_DURATION = re.compile(
    r"\b(?:seconds?|minutes?|hours?|days?|weeks?|months?|quarters?|years?|nights?|daily"
    r"|weekly|monthly|yearly|annually|hourly|every|ms|min|forever|once|twice"
    r"|overnight)\b",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"\b(?:\d{4}|\d{1,2}:\d{2}|\d{1,2}\s?[ap]\.?m\.?|january|february|march|april|may|june"
    r"|july|august|september|october|november|december|monday|tuesday|wednesday"
    r"|thursday|friday|saturday|sunday|noon|midnight|before|after|until|within|days?"
    r"|weeks?|first|end of)\b",
    re.IGNORECASE,
)
_PERSON = re.compile(
    r"(?<=[\w,;:] )[A-Z][a-z]+(?: [A-Z][a-z]+)*|^[A-Z][a-z]+ [A-Z][a-z]+|\b(?:team|manager"
    r"|director|officer|department|staff|lead|owner|head|engineer|administrator)\b"
)
_PLACE = re.compile(
    r"[\w.-]+/[\w./-]+|\.\w{2,4}\b|\b(?:in|at|on|under|near|behind|room|floor|street|building"
    r"|folder|directory)\b",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"\b(?:because|since|so that|so as to|to avoid|due to|therefore|reason|otherwise|in order"
    r"|prevents?|ensures?|lets?|keeps?|as it|for the)\b",
    re.IGNORECASE,
)
_DEFINITION = re.compile(
    r"^(?:an? |the )?[\w\s-]{2,50}? (?:is|are|means|refers to|stands for)\b"
    r"|^[\w -]{2,40}:\s",
    re.IGNORECASE,
)
_HINTS = {
    Expects.NUMBER: (_NUMBER, 0.2, 0.12),
    Expects.DURATION: (_DURATION, 0.25, 0.12),
    Expects.DATE: (_DATE, 0.2, 0.08),
    Expects.PERSON: (_PERSON, 0.15, 0.1),
    Expects.PLACE: (_PLACE, 0.12, 0.0),
    Expects.REASON: (_REASON, 0.2, 0.0),
    Expects.DEFINITION: (_DEFINITION, 0.2, 0.0),
}
"""Per kind of answer: what shows it, what it adds, and what its absence takes."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence with where it came from; `rank` is its passage's place in the results."""

    sentence: Sentence
    uri: str
    title: str
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate's coverage of the clause, from 0 to 1, and its score with the hints."""

    candidate: Candidate
    coverage: float
    score: float
    matched: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Indexed:
    candidate: Candidate
    own: tuple[str, ...]
    heading: frozenset[str]
    lead: frozenset[str]


class Ranking:
    """Sentences, indexed once, to rank for several clauses."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._items = [_index(candidate) for candidate in candidates]
        self._frequency = Counter(
            term for item in self._items for term in {*item.own, *item.heading}
        )

    def best(self, clause: Clause) -> list[Ranked]:
        """All sentences that share a term with `clause`, best first; ties keep their order."""
        weights = self._weights(clause)
        if not weights:
            return []
        ranked = [self._rank(item, clause, weights) for item in self._items]
        return sorted(
            (one for one in ranked if one.matched), key=lambda one: one.score, reverse=True
        )

    def _weights(self, clause: Clause) -> dict[str, float]:
        weights = {
            term: self._rarity(term) * (_UNIT_WEIGHT if term in _UNITS else 1.0)
            for term in clause.terms
        }
        for term in clause.context_terms:
            weights[term] = _CONTEXT_WEIGHT * self._rarity(term)
        return weights

    def _rarity(self, term: str) -> float:
        """Between 0.4 for a term of every sentence and 1.4 for a term of one or none."""
        count = max(len(self._items), 2)
        frequency = max(1, self._frequency[term])
        return 0.4 + math.log(1 + (count - frequency) / frequency) / math.log(count)

    def _rank(self, item: _Indexed, clause: Clause, weights: dict[str, float]) -> Ranked:
        strengths = {term: _strength(term, item) for term in weights}
        total = sum(weights.values())
        coverage = sum(weights[term] * strengths[term] for term in weights) / total
        score = coverage + _closeness(item.own, weights) + _hint(item, clause)
        score -= 0.12 * max(0.0, len(item.own) / _LENGTH_TERMS - 1)
        score -= 0.01 * min(item.candidate.rank, 10)
        if item.candidate.sentence.text.endswith((":", "?")):
            score -= 0.15
        matched = frozenset(term for term, strength in strengths.items() if strength > 0)
        return Ranked(item.candidate, coverage, score, matched)


def _index(candidate: Candidate) -> _Indexed:
    sentence = candidate.sentence
    heading = terms(" ".join((candidate.title, *sentence.headings)))
    return _Indexed(
        candidate, tuple(terms(sentence.text)), frozenset(heading), frozenset(terms(sentence.lead))
    )


def _strength(term: str, item: _Indexed) -> float:
    """How surely `item` speaks of `term`, from 0 to 1."""
    if term in item.own:
        return _IN_SENTENCE
    others = synonyms(term)
    found = 0.0
    if not others.isdisjoint(item.own):
        found = _SYNONYM
    elif any(akin(term, own) for own in item.own):
        found = _AKIN
    if term in item.heading:
        found = max(found, _IN_HEADING)
    elif term in item.lead:
        found = max(found, _IN_LEAD)
    elif not others.isdisjoint(item.heading) or not others.isdisjoint(item.lead):
        found = max(found, _IN_LEAD * _SYNONYM)
    return found


def _closeness(own: tuple[str, ...], weights: dict[str, float]) -> float:
    """A little more where the clause's terms stand next to each other, in its order."""
    asked = list(weights)
    pairs = set(pairwise(asked))
    found = pairs & set(pairwise(own))
    return min(0.15, 0.08 * len(found))


def _hint(item: _Indexed, clause: Clause) -> float:
    if clause.expects not in _HINTS:
        return 0.0
    pattern, bonus, malus = _HINTS[clause.expects]
    return bonus if pattern.search(item.candidate.sentence.text) else -malus
