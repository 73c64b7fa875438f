"""Takes one number out of passages: the figure that a phrase names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.models.providers.extractive.arithmetic import Calculation
from services.models.providers.extractive.lexicon import SMALL_NUMBERS
from services.models.providers.extractive.markdown import SENTENCES_MAX, sentences
from services.models.providers.extractive.questions import Clause
from services.models.providers.extractive.ranking import FITTING_MIN, Candidate, Ranked, Ranking
from services.models.providers.extractive.results import Passage
from services.models.providers.extractive.text import synonyms, terms

_CANDIDATES_MAX = 3
_RATE_FITTING_MIN = 0.35
"""A figure per the unit that is asked for needs less else to fit."""
_NUMBER = re.compile(
    r"(?<![\w.-])[$€£]?(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?!\.\d)(?=[\s.,;:!?)%°`\"'/€$£]|[a-zA-Z]{1,3}\b|$)"
)
_PRICE = re.compile(
    r"[$€£¥]\s?\d|\d(?:[\d.,]*\d)?\s?(?:[$€£¥](?!\d)|euros?|dollars?|pounds?|francs?|cents?|EUR|USD"
    r"|GBP|CHF)"
)
_PART_END = re.compile(r"[,;()]\s|\. ")
_FORMER = re.compile(r"\bfrom\s+(\S+)(?:\s+\w+)?\s+to\s+\S*\d")
_WORD = re.compile(r"[\w'\u2019-]+")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number as an expression writes it, and the sentence that has it."""

    value: str
    source: Candidate


def candidates(passages: Sequence[Passage]) -> list[Candidate]:
    """The sentences of passages, each once, with their sources."""
    found: dict[tuple[str, str], Candidate] = {}
    for rank, passage in enumerate(passages):
        for sentence in sentences(passage.text, passage.headings):
            key = (passage.uri or passage.title, sentence.text)
            found.setdefault(key, Candidate(sentence, passage.uri, passage.title, rank))
        if len(found) >= SENTENCES_MAX:
            break
    return list(found.values())[:SENTENCES_MAX]


def find_figure(phrase: str, calculation: Calculation, ranking: Ranking) -> Figure | None:
    """The number that stands for `phrase`, from the sentence that fits it best; else None."""
    asked = (
        f"what is the price: {phrase}" if calculation.is_money else f"what is the number: {phrase}"
    )
    clause = Clause(asked)
    for one in ranking.best(clause)[:_CANDIDATES_MAX]:
        fitting = _RATE_FITTING_MIN if calculation.per else FITTING_MIN
        if one.coverage < fitting or not _bears(one.candidate.sentence.text, calculation):
            continue
        value = _nearest_number(one, clause, is_money=calculation.is_money)
        if value is not None:
            return Figure(value, one.candidate)
    return None


def _bears(text: str, calculation: Calculation) -> bool:
    """Whether a figure of `text` may be multiplied as an implied calculation does."""
    unit = calculation.per
    if unit:
        adverb = {"day": "daily", "hour": "hourly"}.get(unit, f"{unit}ly")
        return (
            re.search(rf"(?:\bper|\ban?|\beach|\bevery|/) ?{unit}\b|\b{adverb}\b", text, re.I)
            is not None
        )
    counted = calculation.counted
    return not counted or re.search(rf"(?<![\w.,]){counted}\b(?![.,]\d)", text) is None


def _nearest_number(ranked: Ranked, clause: Clause, *, is_money: bool) -> str | None:
    """The number that is nearest to the phrase's words, those within the same part of the
    sentence first; the one after them wins a tie."""
    text = ranked.candidate.sentence.text
    asked = set(clause.terms)
    alike = asked.union(*(synonyms(term) for term in asked))
    named = [match.end() for match in _WORD.finditer(text) if alike & set(terms(match.group()))]
    found = [(match.start(), match[1].replace(",", "")) for match in _NUMBER.finditer(text)]
    own = _key_span(ranked)
    found = [one for one in found if not own[0] <= one[0] < own[1]] or found
    if is_money:
        priced = {match.start() for match in _PRICE.finditer(text)}
        found = [one for one in found if one[0] in priced]
    else:
        found += [
            (match.start(), str(SMALL_NUMBERS[match.group().lower()]))
            for match in _WORD.finditer(text)
            if match.group().lower() in SMALL_NUMBERS
        ]
    # Of `moved from 7400 to 7420` the second is what holds now.
    former = {match.start(1) for match in _FORMER.finditer(text)}
    found = [one for one in found if one[0] not in former]
    if not found:
        return None

    def fit(at: int) -> tuple[int, float]:
        in_part = [end for end in named if _same_part(text, end, at) and end > len(_shared(ranked))]
        return -len(in_part), min((_distance(text, end, at) for end in named), default=0.0)

    return min(found, key=lambda one: fit(one[0]))[1]


def _key_span(ranked: Ranked) -> tuple[int, int]:
    """Where the sentence's key stands, whose numbers are part of a name."""
    sentence = ranked.candidate.sentence
    start = sentence.text.find(sentence.key)
    return start, start + len(sentence.key)


def _shared(ranked: Ranked) -> str:
    """What stands before the colon and so counts for all parts of the sentence."""
    sentence = ranked.candidate.sentence
    return sentence.key if sentence.text.startswith(f"{sentence.key}:") else ""


def _same_part(text: str, one: int, other: int) -> bool:
    return _PART_END.search(text[min(one, other) : max(one, other)]) is None


def _distance(text: str, end: int, at: int) -> float:
    between = text[min(end, at) : max(end, at)]
    return len(between) + (0.5 if at < end else 0)
