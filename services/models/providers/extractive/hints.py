"""The kind of answer that a question wants, and how such an answer shows in a text."""

import re
from dataclasses import dataclass
from enum import Enum, auto

from services.models.providers.extractive.lexicon import word_list, word_set
from services.models.providers.extractive.text import stem


class Expects(Enum):
    """What kind of answer a question wants."""

    ANYTHING = auto()
    NUMBER = auto()
    MONEY = auto()
    SIZE = auto()
    VERSION = auto()
    DURATION = auto()
    AGE = auto()
    DATE = auto()
    DAY = auto()
    PERSON = auto()
    PLACE = auto()
    REASON = auto()
    DEFINITION = auto()
    METHOD = auto()


@dataclass(frozen=True, slots=True)
class Hint:
    """How an answer of a kind shows. Where it `is_needed`, a text without it is none.

    `asking` are stems of words that ask for the kind rather than name a subject; `bonus`
    is what an answer of the kind adds to a score. What is `weak` may be an answer too.
    `is_in_headings`: it may stand in a heading, as the date of a release does.
    """

    shown: re.Pattern[str]
    is_needed: bool = False
    asking: frozenset[str] = frozenset()
    bonus: float = 0.2
    weak: re.Pattern[str] | None = None
    is_in_headings: bool = False


_MONEY_WORDS = "cost costs price prices fee fees charge rent fare pay paid expensive salary earn"

_QUESTIONS: tuple[tuple[str, Expects], ...] = (
    (r"\bhow old\b|\bwhat age\b", Expects.AGE),
    (r"\bhow (?:long|often|soon|late|early|quickly|frequently)\b", Expects.DURATION),
    (r"\bhow (?:much|many) (?:time|seconds|minutes|hours|days|weeks|months|years)\b"
     r"|\b(?:after|within|for|in) (?:how many|what|which) "
     r"(?:time|seconds|minutes|hours|days|weeks|months|years)\b", Expects.DURATION),
    (r"\bhow (?:far|long|much|many \w+) (?:ahead|in advance|beforehand|before)\b",
     Expects.DURATION),
    (r"\b(?:what|which) (?:\w+ ){0,3}(?:version|release)\b", Expects.VERSION),
    (r"\bby how (?:much|many)\b", Expects.NUMBER),
    (r"\bhow much (?:\w+ )?(?:memory|ram|storage|space|disk|bandwidth)\b", Expects.SIZE),
    (r"\bhow much money\b"
     r"|\bhow much (?:do|does|will|must|can|should) \w+ (?:get|pay|earn|owe|receive)\b"
     r"|\b(?:what|which)\b.*\b(?:salary|wage)\b", Expects.MONEY),
    (rf"\bhow (?:much|expensive)\b.*\b(?:{'|'.join(word_list(_MONEY_WORDS))})\b"
     r"|\b(?:what|which)\b.*\b(?:price|costs?|fee|fare|rent)\b", Expects.MONEY),
    (r"\bhow (?:many|much|far|fast|high|hot|large|big|tall|wide|deep|heavy|warm|loud|close)\b",
     Expects.NUMBER),
    (r"\b(?:what|which)(?:'s| is| are| was)? (?:[\w-]+ ){0,3}"
     r"(?:port|number|percentage|percent|rate|limit|maximum|minimum|temperature|size|amount|score"
     r"|ratio|speed|height|length|width|depth|distance|capacity|weight)\b", Expects.NUMBER),
    (r"^(?:\w+,? ){0,2}(?<!happens )(?<!happen )when (?:was|were|did)\b"
     r"|\b(?:what|which) (?:date|day|year|month)\b", Expects.DAY),
    (r"^(?:\w+,? ){0,2}(?<!happens )(?<!happen )when\b(?! i\b| we\b)"
     r"|\b(?:what|which) time\b", Expects.DATE),
    (r"\b(?:who|whom|whose)\b", Expects.PERSON),
    (r"\b(?:where|(?:what|which) (?:file|folder|path|directory|room|place|city|country|town))\b",
     Expects.PLACE),
    (r"\b(?:why|reason for|what causes)\b", Expects.REASON),
    (r"\b(?:what(?:'s| is| are) (?:an? |the )?[\w-]+\s*\??$|define|definition of"
     r"|what (?:does|do) \S+ (?:mean|stand for))", Expects.DEFINITION),
    (r"\bhow (?:do|can|should|would|to)\b|\bwhat (?:do|should|can|must) (?:i|we|you|one) do\b",
     Expects.METHOD),
)  # fmt: skip

_NUMBER_WORDS = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen"
    "|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
    "|hundred|thousand|million|half|dozen|a few|several"
)
_COUNTED = rf"(?:\d[\d.,]*[\s-]?|(?<!\w)(?:an?|one|{_NUMBER_WORDS})(?:-\w+)?[\s-](?:\w+ )?)"
_MONTHS = (
    "january|february|(?-i:March)|april|(?-i:May)|june|july|august|september|october|november|december"
    "|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec"
)
_WEEKDAYS = "(?:mon|tues|wednes|thurs|fri|satur|sun)days?"
_TIMES = (
    r"(?:milli|micro|nano)?seconds?|minutes?|hours?|(?:business |working |calendar )?days?|weeks?"
    r"|months?|quarters?|years?|nights?"
)
_STARTERS = "|".join(
    word_list(
        """A An All At By Each Every For From He How If In It No On She The There These They This
        To We What When Where With You Your Our"""
    )
)
_ROLES = "|".join(
    word_list(
        """team manager director officer department staff lead owner head engineer administrator
        admin council board user committee member chair customer client employee everyone anyone
        nobody party parties provider supplier landlord tenant contractor visitor guest parent
        student teacher doctor nurse desk office court company"""
    )
)
_STEPS = "|".join(
    word_list(
        """add ask call change check choose clean click configure copy create delete disable edit
        enable enter execute fill go hold install let open pass place press put remove replace
        restart run select send set start stop switch turn type unplug update use wait write"""
    )
)


def _pattern(text: str, *, cased: bool = False) -> re.Pattern[str]:
    return re.compile(text, 0 if cased else re.IGNORECASE)


def _stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in word_set(text))


HINTS = {
    Expects.NUMBER: Hint(
        _pattern(rf"(?<![A-Za-z_/@])\d|\b(?:{_NUMBER_WORDS}|once|twice|none|zero|no|unlimited)\b"),
        is_needed=True,
        asking=_stems("number amount count size figure value"),
    ),
    Expects.MONEY: Hint(
        _pattern(
            r"[$€£¥]\s?\d|\d\s?(?:[$€£¥]|euros?|dollars?|pounds?|francs?|cents?|pence|usd|eur|gbp"
            r"|chf)\b|\d\s?[€£$]|\bfree\b|\bno charge\b|\bat cost\b"
        ),
        is_needed=True,
        asking=_stems(_MONEY_WORDS + " much money amount"),
    ),
    Expects.SIZE: Hint(
        _pattern(r"\d\s?(?:[kmgtp]i?b|bytes?|bits?|[kmg]bit/s|[mg]bps|%)(?!\w)|\bunlimited\b"),
        is_needed=True,
        asking=_stems("memory ram storage space disk bandwidth much use take need"),
    ),
    Expects.VERSION: Hint(
        _pattern(r"\bv?\d+(?:\.\d+)+\b|\bv\d+\b|\b(?:version|release) \d+|(?<=\w )\d+(?:\.\d+)*\b"),
        is_needed=True,
        asking=_stems("version release number"),
        is_in_headings=True,
    ),
    Expects.DURATION: Hint(
        _pattern(
            rf"(?:{_COUNTED}|\b(?:every|each|per|once a|twice a)\s)(?:{_TIMES})\b"
            r"|\d\s?(?:us|ms|s|h|d|m|min|sec)\b|\b(?:daily|weekly|monthly|yearly|annually|hourly|quarterly|nightly"
            r"|forever|indefinitely|permanently|once|twice|overnight|immediately|always|never"
            r"|until|as long as|every|\w+ times)\b"
        ),
        is_needed=True,
        asking=_stems(
            "time duration period long often frequently length frequency interval"
            " soon late early quickly ahead far"
        ),
    ),
    Expects.AGE: Hint(
        _pattern(
            rf"\b(?:1\d{{3}}|20\d{{2}})\b|(?:\d|\b(?:{_NUMBER_WORDS})(?:-\w+)?)[\s-](?:years?|months?)"
            rf"|\bage\b|\bat (?:the age of )?(?:\d|{_NUMBER_WORDS})|\b(?:under|over) \d"
        ),
        is_needed=True,
        asking=_stems("old age year"),
    ),
    Expects.DATE: Hint(
        _pattern(
            rf"\b(?:\d{{4}}|\d{{1,2}}[:.]\d{{2}}|\d{{1,2}}\s?[ap]\.?m\b|{_MONTHS}"
            rf"|{_WEEKDAYS}|noon|midnight|morning|evening|dusk|dawn"
            r"|christmas|easter|winter|summer|spring|autumn"
            r"|daily|weekly|monthly|yearly|immediately|\d+ (?:days?|weeks?|months?))\b|\d\s?%"
        ),
        is_needed=True,
        weak=_pattern(
            r"\b(?:before|after|until|till|within|once|when|as soon as"
            r"|(?:start|end|beginning) of)\b"
        ),
        is_in_headings=True,
        asking=_stems("time date day year month"),
    ),
    Expects.DAY: Hint(
        _pattern(rf"\b(?:[12]\d{{3}}|\d{{1,2}}/\d{{1,2}}|{_MONTHS}|{_WEEKDAYS})\b|\b\d+th\b"),
        is_needed=True,
        is_in_headings=True,
        asking=_stems("time date day year month"),
    ),
    Expects.PERSON: Hint(
        _pattern(
            rf"^(?!(?:{_STARTERS})\b)[A-Z][a-z]+ (?:and\b|[a-z]+(?:s|ed)\b)"
            r"|(?<=[\w,;:] )[A-Z][a-z]+(?: [A-Z][a-z]+)*|^[A-Z][a-z]+ [A-Z][a-z]+"
            rf"|\b(?i:{_ROLES})s?\b",
            cased=True,
        ),
        is_needed=True,
        asking=_stems("person name people"),
    ),
    Expects.PLACE: Hint(
        _pattern(
            r"[\w.~%-]*/[\w./{}-]+|%\w+%|\.\w{2,4}\b|\b(?:in|at|on|under|near|behind|between|beside"
            r"|from|stored|located|location|path|room|floor|street|building|folder|directory)\b"
        ),
        asking=_stems("place location file folder path directory located"),
    ),
    Expects.REASON: Hint(
        _pattern(
            r"\b(?:because|since|so that|so as to|to avoid|due to|therefore|reason|otherwise"
            r"|in order|prevents?|ensures?|lets?|keeps?|as it|for the|hence|thus|would|so)\b|:"
        ),
        asking=_stems("reason cause"),
    ),
    Expects.DEFINITION: Hint(
        _pattern(
            r"^(?:an? |the )?\S(?:[\w\s`'-]{0,50}?)[ ](?:is|are|means?|refers to|stands for"
            r"|represents?|describes?|defines?)\b|^[\S ]{2,40}(?:: | [→\u2013\u2014-] )"
        ),
        asking=_stems("mean definition define stand meaning"),
    ),
    Expects.METHOD: Hint(
        _pattern(
            rf"^To \w+|^(?:[^:]{{1,40}}: )?(?:{_STEPS})\b|(?:^|\s)--?\w|\bby \w+ing\b"
            r"|\byou can\b|\bcan be\b|\b(?:use|using|run|set|with)\b"
        ),
        bonus=0.15,
    ),
}
"""Per kind of answer, how it shows; a question for anything has none."""


def expected(question: str) -> Expects:
    """The kind of answer, by the asking words."""
    lowered = question.lower()
    return next(
        (kind for pattern, kind in _QUESTIONS if re.search(pattern, lowered)), Expects.ANYTHING
    )


_UNITS_OF = {
    "current": r"m?A",
    "deep depth far distance height high length tall wide width": (
        r"[kcm]?m|ft|miles?|met(?:re|er)s?"
    ),
    "energy": r"k?Wh|[kM]?J|kcal",
    "fast speed": r"km/h|mph|m/s|[kMG]?(?:B|bit)/s",
    "frequency": r"[kMG]?Hz",
    "loud noise volume": r"dB(?:\(A\))?",
    "power": r"[mkM]?W",
    "pressure": r"m?bar|[kh]?Pa|psi",
    "resolution": r"dpi|px|pixels",
    "hot temperature warm": r"(?:°\s?[CF]?|degrees)",
    "voltage": r"[mk]?V",
    "heavy weigh weight": r"(?:[km]?g|t|lb|pounds|grams?|kilos?|tonnes?)",
}
MEASURES = {
    stem(word): re.compile(rf"\d\s?(?:{unit})(?![\w/])")
    for words, unit in _UNITS_OF.items()
    for word in word_list(words)
}
"""How a figure of what a word names shows, by the word's stem: `230 V` is a voltage."""
