"""Ranks sentences by how well they answer a clause.

Coverage is the share of the clause's terms that a sentence speaks of, each weighing as
much as it is rare among the sentences at hand (as the inverse document frequency of
BM25 does), and the kind of answer that is wanted counting as one term more. A term is
found in the sentence itself, in its headings, in what introduces it or stands before
it, or, weakest, elsewhere in its passage. Coverage alone decides whether anything fits
at all; the score adds how near the terms stand to each other and to the answer.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from services.models.providers.extractive.hints import MEASURES
from services.models.providers.extractive.lexicon import PRONOUNS
from services.models.providers.extractive.markdown import Sentence
from services.models.providers.extractive.questions import Clause
from services.models.providers.extractive.text import (
    akin,
    parts,
    synonyms,
    term_positions,
    terms,
    words,
)
from services.models.providers.extractive.weighing import Asked, Vocabulary, weigh

FITTING_MIN = 0.56
"""Least coverage, from 0 to 1, at which a sentence counts as an answer."""

_SYNONYM, _AKIN = 0.8, 0.75
_HEADING, _OUTER_HEADING, _TITLE = 0.8, 0.6, 0.5
_LEAD, _ASKED, _BEFORE, _MEANT, _NEAR = 0.6, 0.95, 0.4, 0.75, 0.25
"""How surely a sentence speaks of a term that is not in itself, by where it is instead."""

_WITHOUT_KIND, _WITHOUT_SUBJECT, _WITHOUT_NAME = 0.75, 0.6, 0.8
"""What remains of the coverage where the kind of answer, all of the subject, a name is missing."""

_CONTEXT_BONUS, _NO_ANSWER, _RANK_COST = 0.3, 0.15, 0.01
_FAR, _COUNTED_CHARACTERS = 0.6, 30
_MEASURED = re.compile(
    r"[\w.,]+\s?(?:%|[$€£]|(?:[kmgtp]i?b|years?|months?|weeks?|days?|hours?|minutes?|seconds?"
    r"|m?s|kg|g|[kcm]?m|l|litres?|euros?|pounds?|dollars?)\b)",
    re.IGNORECASE,
)
_NEAR_CHARACTERS, _FAR_CHARACTERS = 60, 150


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence with where it came from; `rank` is its passage's place in the results."""

    sentence: Sentence
    uri: str
    title: str
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate's coverage of the clause, from 0 to 1, and its score with the hints.

    `matched` are the terms that the sentence itself has or that are in its headings, its
    lead or before it, `own` those in itself alone; `focus` is where in its text the
    likely answer stands.
    """

    candidate: Candidate
    coverage: float
    score: float
    matched: frozenset[str]
    own: frozenset[str] = frozenset()
    focus: int = 0


@dataclass(slots=True)
class _Indexed:
    """A candidate with its stems. `around` gives those that aren't its own a strength."""

    candidate: Candidate
    own: tuple[tuple[str, int], ...]
    stems: frozenset[str]
    key: frozenset[str]
    around: dict[str, float] = field(default_factory=dict)

    def add(self, found: Iterable[str], strength: float) -> None:
        for term in found:
            self.around[term] = max(strength, self.around.get(term, 0.0))


class Ranking:
    """Sentences, indexed once, to rank for several clauses."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self._items = [_index(candidate) for candidate in candidates]
        own = Counter(term for item in self._items for term in item.stems)
        headings = Counter(term for item in self._items for term in item.around)
        nearby: dict[int, set[str]] = {}
        for item in self._items:
            nearby.setdefault(item.candidate.rank, set()).update(item.stems)
        for item in self._items:
            _add_before(item)
            item.add(nearby[item.candidate.rank], _NEAR)
        written = frozenset(
            part.lower()
            for candidate in candidates
            for word in words(_whole(candidate))
            for part in (word, *parts(word))
        )
        self._vocabulary = Vocabulary(own | headings, len(candidates), written)

    def best(self, clause: Clause) -> list[Ranked]:
        """All sentences that share a term with `clause`, best first; ties keep their order."""
        asked = weigh(clause, self._vocabulary)
        if not asked.weights:
            return []
        ranked = [_rank(item, asked) for item in self._items]
        return sorted(
            (one for one in ranked if one.matched), key=lambda one: one.score, reverse=True
        )


def _whole(candidate: Candidate) -> str:
    sentence = candidate.sentence
    return " ".join((candidate.title, *sentence.headings, sentence.text, candidate.uri))


def _index(candidate: Candidate) -> _Indexed:
    sentence = candidate.sentence
    own = tuple(term_positions(sentence.text))
    item = _Indexed(
        candidate, own, frozenset(term for term, _ in own), frozenset(terms(sentence.key))
    )
    item.add(terms(f"{candidate.title} {candidate.uri}"), _TITLE)
    headings = [heading for heading in sentence.headings if heading != candidate.title]
    item.add(terms(" ".join(headings[:-1])), _OUTER_HEADING)
    item.add(terms(" ".join(headings[-1:])), _HEADING)
    return item


def _add_before(item: _Indexed) -> None:
    """What leads to the sentence; a pronoun at its beginning points there."""
    sentence = item.candidate.sentence
    first = next(iter(words(sentence.text)), "").lower()
    item.add(terms(sentence.before), _MEANT if first in PRONOUNS else _BEFORE)
    item.add(terms(sentence.lead), _ASKED if sentence.lead.endswith("?") else _LEAD)


def _rank(item: _Indexed, asked: Asked) -> Ranked:
    hint, text = asked.hint, item.candidate.sentence.text
    answers = [match.start() for match in hint.shown.finditer(text)] if hint else []
    own = _own_positions(item, asked)
    nearness, focus = _nearness(answers, own)
    strengths = {term: _strength(term, item, focus) for term in asked.all}
    strengths |= dict.fromkeys(asked.unknown, 0.0)
    coverage = _coverage(strengths, asked, _kind_share(item, asked, answers, own))
    score = coverage + _closeness(item, asked.all, own) + _key_bonus(item, asked.all)
    if not asked.leans:
        extra = sum(asked.context[term] * strengths[term] for term in asked.context)
        score += _CONTEXT_BONUS * extra / asked.total
    if hint:
        score += hint.bonus * nearness if answers else -_NO_ANSWER
    score -= _RANK_COST * min(item.candidate.rank, 10) + _form_cost(item.candidate.sentence)
    matched = frozenset(term for term, strength in strengths.items() if strength > _NEAR)
    said = frozenset(term for term, _ in own)
    return Ranked(item.candidate, coverage, score, matched, said, focus)


def _coverage(strengths: Mapping[str, float], asked: Asked, kind_share: float) -> float:
    """The share of what is asked that is there; less where what matters most isn't."""
    found = sum(asked.weights[term] * strengths[term] for term in asked.weights)
    if asked.leans:
        found += sum(asked.context[term] * strengths[term] for term in asked.context)
    coverage = (found + asked.kind_weight * kind_share) / asked.total
    if asked.kind_weight and kind_share < _BEFORE:
        coverage *= _WITHOUT_KIND
    if asked.subject and all(strengths[term] <= _NEAR for term in asked.subject):
        coverage *= _WITHOUT_SUBJECT
    if asked.misses_head or any(strengths[term] <= _NEAR for term in asked.names):
        coverage *= _WITHOUT_NAME
    return coverage


def _form_cost(sentence: Sentence) -> float:
    """What a sentence loses by being a question, an introduction or code."""
    if sentence.text.endswith("?"):
        return 0.15
    return 0.08 if sentence.text.endswith(":") else 0.05 if sentence.is_code else 0.0


def _kind_share(
    item: _Indexed, asked: Asked, answers: Sequence[int], own: Sequence[tuple[str, int]]
) -> float:
    """How surely the likely answers are of the kind: a number has to count what is asked."""
    sentence, hint = item.candidate.sentence, asked.hint
    if hint is None:
        return 0.0
    if not answers:
        sections = " ".join((*sentence.headings[1:], sentence.lead))
        if hint.is_in_headings and hint.shown.search(sections):
            return 1.0
        return 0.5 if hint.weak and hint.weak.search(sentence.text) else 0.0
    if not asked.counted:
        return 1.0
    counts = [at for at in answers if not _is_measure(sentence.text, at)]
    places = [position for term, position in own if term in asked.counted]
    gap = min((abs(count - place) for count in counts for place in places), default=math.inf)
    if gap <= _COUNTED_CHARACTERS:
        return 1.0
    known = max(item.around.get(term, 0.0) for term in asked.counted)
    is_near = gap <= 3 * _COUNTED_CHARACTERS or (counts and known >= _OUTER_HEADING)
    return 0.6 if is_near else 0.3 if places else 0.0


def _is_measure(text: str, at: int) -> bool:
    """Whether the number at `at` measures or prices rather than counts."""
    return text[max(0, at - 1) : at] in ("$", "€", "£") or _MEASURED.match(text, at) is not None


def _strength(term: str, item: _Indexed, focus: int) -> float:
    """How surely `item` speaks of `term`, from 0 to 1, where the answer is at `focus`."""
    found = item.around.get(term, 0.0)
    for own, position in item.own:
        likeness = _likeness(own, term)
        if likeness and abs(position - focus) > _FAR_CHARACTERS and own not in item.key:
            likeness *= _FAR
        found = max(found, likeness)
    if found >= _AKIN * _FAR:
        return found
    for other in synonyms(term) & item.around.keys():
        found = max(found, _SYNONYM * item.around[other])
    measure = MEASURES.get(term)
    if measure and measure.search(item.candidate.sentence.text):
        found = max(found, _SYNONYM)
    return found


@lru_cache(maxsize=65_536)
def _likeness(own: str, term: str) -> float:
    """How surely a stem stands for another, from 0 to 1."""
    if own == term:
        return 1.0
    if own in synonyms(term):
        return _SYNONYM
    return _AKIN if akin(term, own) else 0.0


def _own_positions(item: _Indexed, asked: Asked) -> list[tuple[str, int]]:
    """The clause's terms, or their kin, where they stand in the sentence itself."""
    found: list[tuple[str, int]] = []
    terms_asked = [term for term in asked.all if term not in asked.unknown]
    for own, position in item.own:
        for term in terms_asked:
            if _likeness(own, term):
                found.append((term, position))
                break
    return found


def _closeness(item: _Indexed, weights: dict[str, float], own: Sequence[tuple[str, int]]) -> float:
    """More where the clause's terms stand next to each other, in its order or another."""
    asked = set(pairwise(weights))
    stems = [term for term, _ in item.own]
    pairs = asked & set(pairwise(stems))
    close = sum(
        1
        for (one, at), (other, to) in pairwise(own)
        if one != other and to - at <= _NEAR_CHARACTERS
    )
    return min(0.12, 0.08 * len(pairs)) + min(0.1, 0.04 * close)


def _key_bonus(item: _Indexed, weights: dict[str, float]) -> float:
    """More where the sentence's key names what the clause asks about."""
    if not item.key:
        return 0.0
    named = sum(1 for key in item.key if key in weights or not synonyms(key).isdisjoint(weights))
    return 0.2 * named / len(item.key)


def _nearness(answers: Sequence[int], own: Sequence[tuple[str, int]]) -> tuple[float, int]:
    """How near the likely answer stands to one of the terms, from 0 to 1, and where."""
    if not answers or not own:
        return 0.3 if answers else 0.0, own[0][1] if own else 0
    gap, at = min((abs(answer - position), answer) for answer in answers for _, position in own)
    return max(0.3, 1.0 - gap / (2 * _NEAR_CHARACTERS)), at
