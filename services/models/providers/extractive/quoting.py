"""Chooses which sentences answer a clause, and how much of them and around them to quote."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.models.providers.extractive.hints import HINTS, Expects
from services.models.providers.extractive.lexicon import PRONOUNS
from services.models.providers.extractive.questions import Clause
from services.models.providers.extractive.ranking import FITTING_MIN, Candidate, Ranked, Ranking
from services.models.providers.extractive.text import terms, words

QUOTES_MAX = 3
QUOTE_CHARACTERS_MAX = 400
LIST_ITEMS_MAX = 12
LIST_CHARACTERS_MAX = 900

_NEXT_SHARE = 0.85
_SAME_SHARE = 0.7
_BEFORE_FOCUS_CHARACTERS = 150
_WITH_NEXT_CHARACTERS_MAX = 300


@dataclass(frozen=True, slots=True)
class Quote:
    """What to show of a sentence and its neighbours, and the sentence for its source."""

    text: str
    candidate: Candidate


def quote(clause: Clause, ranking: Ranking) -> list[Quote]:
    """What to quote for `clause`, best first; nothing where nothing fits."""
    fitting = [one for one in ranking.best(clause) if one.coverage >= FITTING_MIN]
    if not fitting:
        return []
    best = fitting[0]
    items = _items(best, ranking)
    if items:
        listed = _listed(best, items)
        sections = _telling_sections(best, clause)
        return [Quote(f"{sections}: {listed}" if sections else listed, best.candidate)]
    chosen = [best]
    for one in fitting[1:]:
        if len(chosen) == QUOTES_MAX or one.score < _NEXT_SHARE * best.score:
            break
        if _adds(one, chosen):
            chosen.append(one)
    return [_with_neighbours(one, clause, ranking) for one in chosen]


def quoted(candidate: Candidate, focus: int = 0) -> Quote:
    """The sentence with what introduces it; of a long one the part around `focus`."""
    sentence = candidate.sentence
    text = _part(sentence.text, focus)
    lead = sentence.lead
    if lead.endswith(":"):
        text = text if sentence.before else f"{lead} {text}"
    elif lead and not sentence.key and not lead.endswith("?"):
        text = text if set(terms(lead)) <= set(terms(text)) else f"{lead.rstrip('.')}: {text}"
    return Quote(text, candidate)


def _part(text: str, focus: int) -> str:
    if len(text) <= QUOTE_CHARACTERS_MAX:
        return text
    start = max(0, min(focus - _BEFORE_FOCUS_CHARACTERS, len(text) - QUOTE_CHARACTERS_MAX))
    part = text[start : start + QUOTE_CHARACTERS_MAX]
    if start:
        part = "… " + part.split(" ", 1)[-1]
    if start + QUOTE_CHARACTERS_MAX < len(text):
        part = part.rsplit(" ", 1)[0] + " …"
    return part


def _items(best: Ranked, ranking: Ranking) -> list[Candidate]:
    """The items of the list that `best` introduces, or is one of without saying more of
    the question than its heading or lead does."""
    own = best.candidate
    if own.sentence.text.endswith(":"):
        items = [
            one
            for one in ranking.candidates
            if one.uri == own.uri and one.sentence.lead == own.sentence.text
        ]
    elif not best.own:
        items = [
            one
            for one in ranking.candidates
            if one.uri == own.uri
            and one.sentence.headings == own.sentence.headings
            and one.sentence.lead == own.sentence.lead
        ]
    else:
        items = []
    least = 1 if own.sentence.text.endswith(":") else 2
    return items[:LIST_ITEMS_MAX] if len(items) >= least else []


def _listed(best: Ranked, items: Sequence[Candidate]) -> str:
    text = best.candidate.sentence.text
    introduced = text.endswith(":")
    lead = text if introduced else best.candidate.sentence.lead
    listed = lead if lead.endswith(":") else ""
    for number, item in enumerate(items):
        if len(listed) + len(item.sentence.text) > LIST_CHARACTERS_MAX:
            return f"{listed} …"
        listed += ("; " if number and not listed.endswith((".", "!")) else " ") + item.sentence.text
    return listed.strip()


def _with_neighbours(one: Ranked, clause: Clause, ranking: Ranking) -> Quote:
    """The quote, after the sentence that its pronoun means, before the one that goes on."""
    found = quoted(one.candidate, one.focus)
    if sections := _telling_sections(one, clause):
        found = Quote(f"{sections}: {found.text}", one.candidate)
    sentence = one.candidate.sentence
    first = next(iter(words(sentence.text)), "").lower()
    if first in PRONOUNS and sentence.before:
        return Quote(f"{_part(sentence.before, len(sentence.before))} {found.text}", one.candidate)
    if clause.expects not in (Expects.METHOD, Expects.ANYTHING) or not sentence.key:
        return found
    following = next(
        (
            other.sentence.text
            for other in ranking.candidates
            if other.uri == one.candidate.uri and other.sentence.before == sentence.text
        ),
        "",
    )
    text = f"{found.text} {following}"
    return Quote(text, one.candidate) if len(text) <= _WITH_NEXT_CHARACTERS_MAX else found


def _telling_sections(one: Ranked, clause: Clause) -> str:
    """The headings that say something of the question which the sentence doesn't."""
    sentence = one.candidate.sentence
    hint = HINTS.get(clause.expects)
    is_shown = hint is None or hint.shown.search(sentence.text) is not None
    telling = [
        heading
        for heading in sentence.headings[1:]
        if (one.matched - one.own) & set(terms(heading))
        or (hint and not is_shown and hint.shown.search(heading))
    ]
    return " > ".join(telling)


def _adds(one: Ranked, chosen: Sequence[Ranked]) -> bool:
    """Whether a sentence isn't nearly said already by the chosen ones."""
    own = set(one.candidate.sentence.text.lower().split())
    return all(
        len(own & set(other.candidate.sentence.text.lower().split())) < _SAME_SHARE * len(own)
        for other in chosen
    )
