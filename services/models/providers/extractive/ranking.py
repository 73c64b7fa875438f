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
from itertools import pairwise

from services.models.providers.extractive.hints import HINTS, Hint
from services.models.providers.extractive.lexicon import LIGHT_WORDS, PRONOUNS, UNITS
from services.models.providers.extractive.markdown import Sentence
from services.models.providers.extractive.questions import Clause
from services.models.providers.extractive.text import (
    akin,
    parts,
    stem,
    synonyms,
    term_positions,
    terms,
    words,
)

FITTING_MIN = 0.56
"""Least coverage, from 0 to 1, at which a sentence counts as an answer."""

_SYNONYM, _AKIN = 0.8, 0.75
_HEADING, _OUTER_HEADING, _TITLE = 0.8, 0.6, 0.5
_LEAD, _ASKED, _BEFORE, _MEANT, _NEAR = 0.6, 0.95, 0.4, 0.75, 0.25
"""How surely a sentence speaks of a term that is not in itself, by where it is instead."""

_CONTEXT_WEIGHT, _ASKING_WEIGHT, _LIGHT_WEIGHT, _KIND_WEIGHT = 0.6, 0.2, 0.4, 0.5
_PART_WEIGHT = 0.5
_UNKNOWN, _UNKNOWN_HEAD, _UNKNOWN_NAME = 0.75, 1.1, 1.5
_UNITS = frozenset(stem(word) for word in UNITS)
_LIGHT = frozenset(stem(word) for word in LIGHT_WORDS)
_FAR, _COUNTED_CHARACTERS, _OWN_TERMS_MIN = 0.6, 30, 2
_WITHOUT_KIND, _WITHOUT_SUBJECT, _WITHOUT_NAME = 0.75, 0.6, 0.8
_SENTENCES_FEW = 20
_MEASURED = re.compile(
    r"[\w.,]+\s?(?:%|[$€£]|(?:years?|months?|weeks?|days?|hours?|minutes?|seconds?|m?s|kg|g|[kcm]?m|l"
    r"|litres?|euros?|pounds?|dollars?)\b)"
)
"""A number that measures rather than counts."""
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


@dataclass(frozen=True, slots=True)
class _Asked:
    """A clause as it is ranked by: the weights of its terms and of its context's.

    `unknown` are names that occur nowhere, `names` the others; `subject` the terms that
    name its subject; `counted` what is to be counted. `misses_head`: what it asks for of
    something occurs nowhere.
    """

    hint: Hint | None
    weights: Mapping[str, float]
    context: Mapping[str, float]
    unknown: frozenset[str]
    subject: frozenset[str]
    names: frozenset[str]
    counted: frozenset[str]
    misses_head: bool

    @property
    def all(self) -> dict[str, float]:
        return {**self.context, **self.weights}

    @property
    def leans(self) -> bool:
        """Whether the clause says too little without its context."""
        return len(self.weights) < _OWN_TERMS_MIN

    @property
    def total(self) -> float:
        kind = _KIND_WEIGHT if self.hint and self.hint.is_needed else 0.0
        own = sum(self.weights.values()) + kind
        return own + sum(self.context.values()) if self.leans else own


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
        self._frequency = Counter(term for item in self._items for term in item.stems)
        self._headings = Counter(term for item in self._items for term in item.around)
        nearby: dict[int, set[str]] = {}
        for item in self._items:
            nearby.setdefault(item.candidate.rank, set()).update(item.stems)
        for item in self._items:
            _add_before(item)
            item.add(nearby[item.candidate.rank], _NEAR)
        self._lowered = frozenset(
            part.lower()
            for candidate in candidates
            for word in words(_whole(candidate))
            for part in (word, *parts(word))
        )

    def best(self, clause: Clause) -> list[Ranked]:
        """All sentences that share a term with `clause`, best first; ties keep their order."""
        asked = self._asked(clause)
        if not asked.weights:
            return []
        ranked = [_rank(item, asked) for item in self._items]
        return sorted(
            (one for one in ranked if one.matched), key=lambda one: one.score, reverse=True
        )

    def _asked(self, clause: Clause) -> _Asked:
        hint = HINTS.get(clause.expects)
        asking = hint.asking if hint else frozenset()
        weights: dict[str, float] = {}
        subject: set[str] = set()
        for term in clause.terms:
            factor = _LIGHT_WEIGHT if term in _LIGHT or term in clause.last_participle else 1.0
            if term in asking or (hint and term in _UNITS):
                factor = _ASKING_WEIGHT
            elif term in clause.part_terms:
                factor *= _PART_WEIGHT
            weights[term] = self._rarity(term) * factor
            if factor == 1.0:
                subject.add(term)
            if factor == 1.0 and term in clause.head and not self._is_known(term):
                weights[term] = _UNKNOWN_HEAD
        unknown = {term for term, word in clause.names.items() if not self._knows(word)}
        weights |= dict.fromkeys(unknown & weights.keys(), _UNKNOWN_NAME)
        names = clause.names.keys() & weights.keys() - unknown
        heads = [term for term in weights if weights[term] == _UNKNOWN_HEAD]
        context = {term: _CONTEXT_WEIGHT * self._rarity(term) for term in clause.context_terms}
        return _Asked(
            hint,
            weights,
            context,
            frozenset(unknown),
            frozenset(subject),
            frozenset(names),
            clause.counted - _UNITS - asking,
            bool(heads),
        )

    def _knows(self, name: str) -> bool:
        """Whether a name occurs as it is written, an acronym also in the singular."""
        acronym = name[:-1] if name.endswith("s") and name[:-1].isupper() else name
        return name.lower() in self._lowered or acronym.lower() in self._lowered

    def _is_known(self, term: str) -> bool:
        return any(self._frequency[one] or self._headings[one] for one in (term, *synonyms(term)))

    def _rarity(self, term: str) -> float:
        """Between 0.4 for a term of every sentence and 1 for a term of one."""
        count = max(len(self._items), _SENTENCES_FEW)
        frequency = min(max(self._frequency[term], self._headings[term]), count)
        if not frequency:
            return _UNKNOWN
        return 0.4 + 0.6 * math.log(count / frequency) / math.log(count)


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
    item.add(terms(" ".join(sentence.headings[:-1])), _OUTER_HEADING)
    item.add(terms(" ".join(sentence.headings[-1:])), _HEADING)
    return item


def _add_before(item: _Indexed) -> None:
    """What leads to the sentence; a pronoun at its beginning points there."""
    sentence = item.candidate.sentence
    first = next(iter(words(sentence.text)), "").lower()
    item.add(terms(sentence.before), _MEANT if first in PRONOUNS else _BEFORE)
    item.add(terms(sentence.lead), _ASKED if sentence.lead.endswith("?") else _LEAD)


def _rank(item: _Indexed, asked: _Asked) -> Ranked:
    hint, text = asked.hint, item.candidate.sentence.text
    answers = [match.start() for match in hint.shown.finditer(text)] if hint else []
    own = _own_positions(item, asked)
    nearness, focus = _nearness(answers, own)
    strengths = {term: _strength(term, item, focus) for term in asked.all}
    strengths |= dict.fromkeys(asked.unknown, 0.0)
    total, found = asked.total, sum(asked.weights[term] * strengths[term] for term in asked.weights)
    extra = sum(asked.context[term] * strengths[term] for term in asked.context)
    if asked.leans:
        found += extra
    share = _kind_share(item, asked, answers, own)
    if hint and hint.is_needed:
        found += _KIND_WEIGHT * share
    coverage = found / total
    if hint and hint.is_needed and share < _BEFORE:
        coverage *= _WITHOUT_KIND
    if asked.subject and all(strengths[term] <= _NEAR for term in asked.subject):
        coverage *= _WITHOUT_SUBJECT
    if asked.misses_head or any(strengths[term] <= _NEAR for term in asked.names):
        coverage *= _WITHOUT_NAME
    score = coverage + _closeness(item, asked.all, own) + _key_bonus(item, asked.all)
    score += 0.0 if asked.leans else 0.3 * extra / total
    if hint:
        score += hint.bonus * nearness if answers else -0.15
    score -= 0.01 * min(item.candidate.rank, 10)
    if text.endswith("?"):
        score -= 0.15
    if item.candidate.sentence.is_code:
        score -= 0.05
    matched = frozenset(term for term, strength in strengths.items() if strength > _NEAR)
    said = frozenset(term for term, _ in own)
    return Ranked(item.candidate, coverage, score, matched, said, focus)


def _kind_share(
    item: _Indexed, asked: _Asked, answers: Sequence[int], own: Sequence[tuple[str, int]]
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
    counts = [at for at in answers if not _MEASURED.match(sentence.text, at)]
    places = [position for term, position in own if term in asked.counted]
    if any(abs(count - place) <= _COUNTED_CHARACTERS for count in counts for place in places):
        return 1.0
    known = max(item.around.get(term, 0.0) for term in asked.counted)
    return 0.6 if counts and known >= _OUTER_HEADING else 0.3 if places else 0.0


def _strength(term: str, item: _Indexed, focus: int) -> float:
    """How surely `item` speaks of `term`, from 0 to 1, where the answer is at `focus`."""
    found = item.around.get(term, 0.0)
    others = synonyms(term)
    for own, position in item.own:
        likeness = 1.0 if own == term else _SYNONYM if own in others else 0.0
        likeness = likeness or (_AKIN if akin(term, own) else 0.0)
        if likeness and abs(position - focus) > _FAR_CHARACTERS and own not in item.key:
            likeness *= _FAR
        found = max(found, likeness)
    if found >= _AKIN * _FAR:
        return found
    for other in others & item.around.keys():
        found = max(found, _SYNONYM * item.around[other])
    return found


def _own_positions(item: _Indexed, asked: _Asked) -> list[tuple[str, int]]:
    """The clause's terms, or their kin, where they stand in the sentence itself."""
    found: list[tuple[str, int]] = []
    terms_asked = [term for term in asked.all if term not in asked.unknown]
    for own, position in item.own:
        for term in terms_asked:
            if own == term or own in synonyms(term) or akin(own, term):
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
