"""A question: its clauses, its terms, and the kind of answer that it wants."""

import re
from dataclasses import dataclass
from enum import Enum, auto

from services.models.providers.extractive.lexicon import (
    IMPERATIVES,
    INTERROGATIVES,
    PRONOUNS,
    word_list,
)
from services.models.providers.extractive.text import content_words, synonym_words, terms, words

CLAUSES_MAX = 4
_CONTENT_WORDS_FEW = 2
_CONTEXT_WORDS_MAX = 8
_WIDER_WORDS_MAX = 16

_STARTS = "|".join(sorted(INTERROGATIVES | IMPERATIVES, key=len, reverse=True))
_ASKS = "|".join(
    word_list(
        "what what's how who whom whose when where which why calculate compute multiply divide "
        "subtract add tell search find look"
    )
)
_SENTENCE = re.compile(r"(?<=[?!;])\s*|(?<=\.)\s+|\n+")
_JOINT = re.compile(
    rf",?\s+(?:and|then|also|plus|but)\s+(?:then\s+|also\s+)?(?=(?:{_ASKS})\b)"
    rf"|,\s+(?=(?:{_ASKS})\b)"
    r"|,?\s+and\s+(?=(?:is|are|does|do|did|can|was|were|will)\s)",
    re.IGNORECASE,
)


_FILLERS = r"(?:(?:and|so|please|then|also|now|but|first|ok|hi|hello|hey|next|finally),?\s+)*"
_REQUEST = re.compile(
    rf"^{_FILLERS}(?:{'|'.join(sorted(IMPERATIVES))})\b(?:\s+me\b)?", re.IGNORECASE
)
_START = re.compile(rf"^{_FILLERS}(?:{_STARTS})\b", re.IGNORECASE)


class Expects(Enum):
    """What kind of answer a question wants."""

    ANYTHING = auto()
    NUMBER = auto()
    DURATION = auto()
    DATE = auto()
    PERSON = auto()
    PLACE = auto()
    REASON = auto()
    DEFINITION = auto()


_KINDS: tuple[tuple[str, Expects], ...] = (
    (r"\bhow (?:long|often|old|soon|late|early)\b", Expects.DURATION),
    (
        r"\bhow (?:many|much|far|fast|high|hot|large|big|tall|wide|deep|heavy|warm)\b",
        Expects.NUMBER,
    ),
    (
        r"\b(?:what|which)(?:'s| is| are| was)? (?:\w+ ){0,3}"
        r"(?:port|number|percentage|percent|rate|price|cost|limit|maximum|minimum|temperature|size|amount|salary|score|ratio|version)\b",
        Expects.NUMBER,
    ),
    (r"\b(?:when|(?:what|which) (?:time|date|day|year|month))\b", Expects.DATE),
    (r"\b(?:who|whom|whose)\b", Expects.PERSON),
    (r"\b(?:where|(?:what|which) (?:file|folder|path|directory|room|place|city))\b", Expects.PLACE),
    (r"\b(?:why|reason for|what causes)\b", Expects.REASON),
    (
        r"\b(?:what(?:'s| is| are) (?:an? |the )?[\w-]+\s*\??$|define|definition of"
        r"|what does [\w-]+ mean)",
        Expects.DEFINITION,
    ),
)


@dataclass(frozen=True, slots=True)
class Clause:
    """A part of the question that asks one thing.

    `context` are content words of what came before, for a clause that leans on it.
    """

    text: str
    context: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """The text without the verb of a request: `List the steps` is about `the steps`."""
        return _REQUEST.sub("", self.text) or self.text

    @property
    def terms(self) -> tuple[str, ...]:
        """Stems of the subject's content words, each once, in order."""
        return tuple(dict.fromkeys(terms(self.subject)))

    @property
    def context_terms(self) -> tuple[str, ...]:
        """Stems of the context that the clause itself doesn't have."""
        found = dict.fromkeys(term for word in self.context for term in terms(word))
        return tuple(term for term in found if term not in self.terms)

    @property
    def expects(self) -> Expects:
        """The kind of answer, by the asking words."""
        lowered = self.text.lower()
        return next(
            (kind for pattern, kind in _KINDS if re.search(pattern, lowered)), Expects.ANYTHING
        )

    def search_query(self, length_max: int) -> str:
        """The words to search with, at most `length_max` characters."""
        return self._joined([*content_words(self.subject), *self.context], length_max)

    def wider_query(self, length_max: int) -> str:
        """The words of `search_query` and others that may stand for them."""
        own = [*content_words(self.subject), *self.context]
        others = [other for word in own for other in synonym_words(word)]
        return self._joined([*own, *others[:_WIDER_WORDS_MAX]], length_max)

    def _joined(self, found: list[str], length_max: int) -> str:
        query = ""
        for word in dict.fromkeys(found):
            longer = f"{query} {word}".strip()
            if len(longer) > length_max:
                break
            query = longer
        return query


def read_clauses(text: str, previous: str = "") -> tuple[Clause, ...]:
    """What `text` asks, in at most CLAUSES_MAX clauses.

    Sentences that only tell something lend their words to what is asked. A clause with
    few words of its own, or with a pronoun, takes words from the clause before it, or
    from `previous`, the user's message before.
    """
    sentences = [part.strip() for part in _SENTENCE.split(text) if part.strip()]
    asked = [part for part in sentences if part.endswith("?") or _START.match(part)] or sentences
    told = [] if asked == sentences else [part for part in sentences if part not in asked]
    clauses: list[Clause] = []
    before = told[-1] if told else previous
    for part in [piece for sentence in asked for piece in _pieces(sentence)][:CLAUSES_MAX]:
        clauses.append(Clause(part, _context(part, before)))
        before = part if len(content_words(part)) > 1 else f"{part} {before}"
    return tuple(clauses)


def _pieces(sentence: str) -> list[str]:
    return [
        piece.strip(" ,") for piece in _JOINT.split(sentence) if terms(piece) or len(piece) > 12
    ]


def _context(part: str, before: str) -> tuple[str, ...]:
    own = content_words(part)
    lowered = {word.lower() for word in words(part)}
    leans = len(own) < _CONTENT_WORDS_FEW or (bool(lowered & PRONOUNS) and len(own) < 4)
    if not leans:
        return ()
    known = {word.lower() for word in own}
    return tuple(word for word in content_words(before) if word.lower() not in known)[
        :_CONTEXT_WORDS_MAX
    ]
