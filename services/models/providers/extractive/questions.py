"""A question: its clauses, its terms, and the kind of answer that it wants."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.models.providers.extractive.hints import Expects, expected
from services.models.providers.extractive.lexicon import (
    IMPERATIVES,
    INTERROGATIVES,
    IRREGULAR,
    PHRASAL_VERBS,
    PRONOUNS,
    word_list,
)
from services.models.providers.extractive.text import (
    content_words,
    stem,
    synonym_words,
    terms,
    words,
)

CLAUSES_MAX = 4
_CONTENT_WORDS_FEW = 2
_CONTENT_WORDS_SOME = 4
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


_COUNTED = re.compile(
    r"\b(?:how many|number of|how much(?! (?:does|do|is|are|can|will|would|did|may|must|of)\b))"
    r" ((?:[\w-]+ ?){1,3})",
    re.IGNORECASE,
)
_HEAD = re.compile(
    r"\b(?:is|are|was|were) (?:the|an?) ((?:[\w-]+ ){1,3}?)(?:of|for|on|in|at|to|from|with|like)\b",
    re.IGNORECASE,
)
_PHRASAL = re.compile(rf"\b(?:{'|'.join(PHRASAL_VERBS)})\b", re.IGNORECASE)
_WANTED = re.compile(r"\b(?:which|what) ([\w-]+)", re.IGNORECASE)
_GOES_ON = re.compile(
    r"^(?:and|but|or|so|what about|how about)\b|\b(?:then|there|too|as well|instead)\s*\??$",
    re.IGNORECASE,
)
_FILLERS = r"(?:(?:and|so|please|then|also|now|but|first|ok|hi|hello|hey|next|finally),?\s+)*"
_REQUEST = re.compile(
    rf"^{_FILLERS}(?:{'|'.join(sorted(IMPERATIVES))})\b(?:\s+me\b)?", re.IGNORECASE
)
_START = re.compile(rf"^{_FILLERS}(?:{_STARTS})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Clause:
    """A part of the question that asks one thing.

    `context` are content words of what came `before`, for a clause that leans on it.
    """

    text: str
    context: tuple[str, ...] = ()
    before: str = ""

    @property
    def subject(self) -> str:
        """The text without the verb of a request: `List the steps` is about `the steps`."""
        text = _PHRASAL.sub(lambda found: PHRASAL_VERBS[found[0].lower()], self.text)
        return _REQUEST.sub("", text) or text

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
    def names(self) -> Mapping[str, str]:
        """Words that are likely names, capitalised within the text or with a digit, by stem."""
        found = [word for word in words(self.text)[1:] if word[0].isupper()]
        found += [word for word in words(self.text) if any(letter.isdigit() for letter in word)]
        return {stem(word): word for word in found if terms(word)}

    @property
    def counted(self) -> frozenset[str]:
        """Stems of what `How many ...` counts: of the first word of a subject after it."""
        match = _COUNTED.search(self.text)
        return (
            frozenset(terms(content_words(match[1])[0]))
            if match and terms(match[1])
            else frozenset()
        )

    @property
    def head(self) -> frozenset[str]:
        """Stems of the words between `the` and `of` in `What is the speed of the car?`."""
        match = _HEAD.search(self.text)
        return frozenset(terms(match[1])) if match else frozenset()

    @property
    def wanted(self) -> frozenset[str]:
        """The stem of the word after `which` or `what`: a form in `Which form is needed?`."""
        match = _WANTED.search(self.text)
        return frozenset(terms(match[1])) if match else frozenset()

    @property
    def part_terms(self) -> frozenset[str]:
        """Stems of the parts of words such as `logs-max`, which are terms as a whole too."""
        return frozenset(term for word in words(self.subject) for term in terms(word)[1:])

    @property
    def last_participle(self) -> frozenset[str]:
        """The stem of `stored` in `Where are logs stored?`; such a verb says little."""
        last = (words(self.text) or [""])[-1].lower()
        is_one = last.endswith("ed") or last in IRREGULAR
        return frozenset(terms(last)) if is_one and len(self.terms) > 1 else frozenset()

    @property
    def expects(self) -> Expects:
        """The kind of answer, by the asking words; `And the other?` asks as before."""
        own = expected(self.text)
        return expected(self.before) if own is Expects.ANYTHING and self.before else own

    def search_query(self, length_max: int) -> str:
        """The words to search with, at most `length_max` characters."""
        return self._joined([*content_words(self.subject), *self.context], length_max)

    def wider_query(self, length_max: int) -> str:
        """The words of `search_query`, and others that may stand for them."""
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


def read_clauses(text: str, earlier: Sequence[str] = ()) -> tuple[Clause, ...]:
    """What `text` asks, in at most CLAUSES_MAX clauses.

    Sentences that only tell something lend their words to what is asked. A clause with
    few words of its own, with a pronoun, or that goes on with `And ...?` takes words from
    the clause before it, or from `earlier`, the user's messages before, oldest first.
    """
    sentences = [part.strip() for part in _SENTENCE.split(text) if part.strip()]
    asked = [part for part in sentences if part.endswith("?") or _START.match(part)] or sentences
    told = [] if asked == sentences else [part for part in sentences if part not in asked]
    clauses: list[Clause] = []
    before = told[-1] if told else _meant(earlier)
    for part in [piece for sentence in asked for piece in _pieces(sentence)][:CLAUSES_MAX]:
        context = _context(part, before)
        clauses.append(Clause(part, context, before if context else ""))
        before = part if len(content_words(part)) > 1 else f"{part} {before}"
    return tuple(clauses)


def _meant(earlier: Sequence[str]) -> str:
    """The last of the earlier messages, with those that it leans on itself."""
    before = ""
    for text in earlier:
        before = f"{text} {before}" if before and _leans(text) else text
    return before


def _pieces(sentence: str) -> list[str]:
    return [
        piece.strip(" ,") for piece in _JOINT.split(sentence) if terms(piece) or len(piece) > 12
    ]


def _leans(part: str) -> bool:
    """Whether a clause says too little alone."""
    own = len(content_words(part))
    pointing = not PRONOUNS.isdisjoint(word.lower() for word in words(part))
    goes_on = _GOES_ON.search(part) is not None
    return own < _CONTENT_WORDS_FEW or ((pointing or goes_on) and own < _CONTENT_WORDS_SOME)


def _context(part: str, before: str) -> tuple[str, ...]:
    if not _leans(part):
        return ()
    known = {word.lower() for word in content_words(part)}
    return tuple(word for word in content_words(before) if word.lower() not in known)[
        :_CONTEXT_WORDS_MAX
    ]
