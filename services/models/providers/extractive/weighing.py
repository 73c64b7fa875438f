"""How much each word of a clause counts, against the words of the texts at hand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from services.models.providers.extractive.hints import HINTS, Hint
from services.models.providers.extractive.lexicon import LIGHT_WORDS, UNITS
from services.models.providers.extractive.questions import Clause
from services.models.providers.extractive.text import stem, synonyms

_ASKING, _LIGHT, _PART, _CONTEXT, _WANTED = 0.2, 0.4, 0.5, 0.6, 1.3
"""Weights of words that ask for a kind of answer, say little, are parts of a word that
counts too, come from the clause before, and name what is wanted."""

_UNKNOWN, _UNKNOWN_HEAD, _UNKNOWN_NAME = 0.75, 1.1, 1.5
"""Weights of words that are in none of the texts. What has a name or a number is asked
about; another word may be said otherwise."""

_KIND = 0.5
_OWN_TERMS_MIN = 2
_SENTENCES_FEW = 20
_LIGHT_STEMS = frozenset(stem(word) for word in LIGHT_WORDS)
_UNIT_STEMS = frozenset(stem(word) for word in UNITS)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """In how many of `sentences` each stem is, and the words as `written`, in lower case."""

    frequency: Mapping[str, int]
    sentences: int
    written: frozenset[str]

    def knows_name(self, name: str) -> bool:
        """Whether a name occurs as it is written, an acronym also in the singular."""
        acronym = name[:-1] if name.endswith("s") and name[:-1].isupper() else name
        return name.lower() in self.written or acronym.lower() in self.written

    def knows(self, term: str) -> bool:
        """Whether a stem occurs, or one that may stand for it."""
        return any(one in self.frequency for one in (term, *synonyms(term)))

    def rarity(self, term: str) -> float:
        """Between 0.4 for a term of every sentence and 1 for a term of one."""
        count = max(self.sentences, _SENTENCES_FEW)
        frequency = min(self.frequency.get(term, 0), count)
        if not frequency:
            return _UNKNOWN
        return 0.4 + 0.6 * math.log(count / frequency) / math.log(count)


@dataclass(frozen=True, slots=True)
class Asked:
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
        """The weights of both, the context's first."""
        return {**self.context, **self.weights}

    @property
    def leans(self) -> bool:
        """Whether the clause says too little without its context."""
        return len(self.weights) < _OWN_TERMS_MIN

    @property
    def kind_weight(self) -> float:
        """What the kind of answer weighs beside the terms."""
        return _KIND if self.hint and self.hint.is_needed else 0.0

    @property
    def total(self) -> float:
        """The weight of all that an answer may cover."""
        own = sum(self.weights.values()) + self.kind_weight
        return own + sum(self.context.values()) if self.leans else own


def weigh(clause: Clause, vocabulary: Vocabulary) -> Asked:
    """The clause with its words weighed, each the more the rarer it is."""
    hint = HINTS.get(clause.expects)
    asking = hint.asking if hint else frozenset()
    if hint:
        asking |= _UNIT_STEMS
    factors = {term: _factor(term, clause, asking, vocabulary) for term in clause.terms}
    weights = {term: factor * vocabulary.rarity(term) for term, factor in factors.items()}
    subject = frozenset(term for term, factor in factors.items() if factor >= 1.0)
    heads = {term for term in subject & clause.head if not vocabulary.knows(term)}
    names = clause.names
    unknown = frozenset(term for term in names if not vocabulary.knows_name(names[term]))
    for term in weights:
        if term in unknown:
            weights[term] = _UNKNOWN_NAME
        elif term in heads:
            weights[term] = _UNKNOWN_HEAD
    return Asked(
        hint,
        weights,
        {term: _CONTEXT * vocabulary.rarity(term) for term in clause.context_terms},
        unknown,
        subject,
        frozenset(names.keys() & weights.keys()) - unknown,
        clause.counted - _UNIT_STEMS - asking,
        bool(heads - unknown),
    )


def _factor(term: str, clause: Clause, asking: frozenset[str], vocabulary: Vocabulary) -> float:
    """How much a term counts by what it is in the clause."""
    factor = _LIGHT if term in _LIGHT_STEMS or term in clause.last_participle else 1.0
    if term in asking:
        factor = _ASKING
    elif term in clause.part_terms:
        factor *= _PART
    return factor * _WANTED if term in clause.wanted and vocabulary.knows(term) else factor
