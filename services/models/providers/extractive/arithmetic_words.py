"""Cuts a question into the tokens of arithmetic: numbers, operators and plain words."""

import re
from dataclasses import dataclass
from enum import Enum, auto

from services.models.providers.extractive.lexicon import word_list

TOKENS_MAX = 400


class Kind(Enum):
    """What a token is to the parser."""

    NUMBER = auto()
    PERCENT = auto()
    ADD = auto()
    MULTIPLY = auto()
    POWER = auto()
    AFTER_POWER = auto()  # squared, cubed: follow their operand
    MORE_THAN = auto()  # 10 more than X
    CHANGED_BY = auto()  # X increased by 10
    ROOT = auto()
    SCALE = auto()  # half, twice: precede their operand
    LIST = auto()  # sum, product, average of a list
    DIFFERENCE = auto()
    VERB = auto()  # add A to B, divide A by B
    OFF = auto()
    OPEN = auto()
    CLOSE = auto()
    COMMA = auto()
    AND = auto()
    OF = auto()
    LINK = auto()  # by, to, from, with: the second operand of a verb
    WORD = auto()


@dataclass(frozen=True, slots=True)
class Token:
    """`value` is the operator or number as the expression writes it, else the word.

    `is_strong` marks an operator that can hardly be anything else; a bare `-` or `/`
    between digits may as well part a range or a path.
    """

    kind: Kind
    value: str
    is_strong: bool = True


_PHRASES: tuple[tuple[str, Kind, str], ...] = (
    (r"multiplied by|times", Kind.MULTIPLY, "*"),
    (r"divided by|over", Kind.MULTIPLY, "/"),
    (r"modulo|mod", Kind.MULTIPLY, "%"),
    (r"(?:raised )?to the power of|to the power", Kind.POWER, "**"),
    (r"plus|added to", Kind.ADD, "+"),
    (r"minus", Kind.ADD, "-"),
    (r"percent|per cent", Kind.PERCENT, "%"),
    (r"squared", Kind.AFTER_POWER, "2"),
    (r"cubed", Kind.AFTER_POWER, "3"),
    (r"more than|greater than|above", Kind.MORE_THAN, "+"),
    (r"less than|fewer than|below", Kind.MORE_THAN, "-"),
    (r"increased by|raised by", Kind.CHANGED_BY, "+"),
    (r"decreased by|reduced by|lowered by", Kind.CHANGED_BY, "-"),
    (r"square root|sqrt|root", Kind.ROOT, "sqrt"),
    (r"half|one half", Kind.SCALE, "0.5"),
    (r"(?:a|one) quarter", Kind.SCALE, "0.25"),
    (r"twice|double", Kind.SCALE, "2"),
    (r"triple", Kind.SCALE, "3"),
    (r"sum|total", Kind.LIST, "+"),
    (r"product", Kind.LIST, "*"),
    (r"average|mean", Kind.LIST, "average"),
    (r"difference", Kind.DIFFERENCE, "-"),
    (r"add", Kind.VERB, "+"),
    (r"subtract", Kind.VERB, "-"),
    (r"multiply", Kind.VERB, "*"),
    (r"divide", Kind.VERB, "/"),
    (r"off", Kind.OFF, "off"),
    (r"and", Kind.AND, "and"),
    (r"of|between", Kind.OF, "of"),
    (r"by|to|from|with", Kind.LINK, "by"),
)

_SMALL = {
    word: number
    for number, word in enumerate(
        word_list(
            """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
        fifteen sixteen seventeen eighteen nineteen"""
        )
    )
} | {
    word: 10 * number
    for number, word in enumerate(
        word_list("twenty thirty forty fifty sixty seventy eighty ninety"), start=2
    )
}
_LARGE = {"dozen": 12, "hundred": 100, "thousand": 1_000, "million": 1_000_000}

_LEXER = re.compile(
    r"""
      (?P<opaque>\d{4}-\d\d?-\d\d?[\w:.+-]* | \d{1,2}:\d\d(?::\d\d)? | v?\d+\.\d+\.\d+[\w.-]*
                | \w*[A-Za-z_][\w]*(?:[./@:-]+\w+)+ | \d+(?:st|nd|rd|th)\b )
    | (?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![\d,])
                | [0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?(?!\w) | \.[0-9]+(?!\w) )
    | (?P<word>[^\W\d_][\w'\u2019-]* | \d+\w+)
    | (?P<symbol>\*\* | [-+*/^%()\u00d7÷\u2212·,])
    """,
    re.VERBOSE,
)
_TIMES_SIGN = re.compile(r"(?<=\d)(?<!\b0)\s*[x✕]\s*(?=\d)")
_SYMBOLS = {
    "+": Token(Kind.ADD, "+"),
    "*": Token(Kind.MULTIPLY, "*"),
    "\u00d7": Token(Kind.MULTIPLY, "*"),
    "·": Token(Kind.MULTIPLY, "*"),
    "÷": Token(Kind.MULTIPLY, "/"),
    "^": Token(Kind.POWER, "**"),
    "**": Token(Kind.POWER, "**"),
    "%": Token(Kind.PERCENT, "%"),
    "(": Token(Kind.OPEN, "("),
    ")": Token(Kind.CLOSE, ")"),
    ",": Token(Kind.COMMA, ","),
}
_WORDS = [
    (re.compile(rf"(?:{pattern})(?![\w'\u2019-])", re.IGNORECASE), kind, value)
    for pattern, kind, value in _PHRASES
]


def tokenise(text: str) -> list[Token]:
    """The tokens of `text`, at most TOKENS_MAX; what is none of them is left out."""
    text = _TIMES_SIGN.sub(" * ", text)
    tokens: list[Token] = []
    position = 0
    while len(tokens) < TOKENS_MAX and (match := _LEXER.search(text, position)):
        token, position = _token(text, match)
        tokens.append(token)
    return _join_number_words(tokens)


def _token(text: str, match: re.Match[str]) -> tuple[Token, int]:
    written, end = match.group(), match.end()
    if match.lastgroup == "number":
        return Token(Kind.NUMBER, written.replace(",", "")), end
    if match.lastgroup == "symbol":
        return _symbol(text, match), end
    if match.lastgroup == "word":
        for pattern, kind, value in _WORDS:
            if phrase := pattern.match(text, match.start()):
                return Token(kind, value), phrase.end()
    return Token(Kind.WORD, written), end


def _symbol(text: str, match: re.Match[str]) -> Token:
    written = match.group()
    if written in _SYMBOLS:
        return _SYMBOLS[written]
    is_spaced = (
        text[match.start() - 1 : match.start()] == " " == text[match.end() : match.end() + 1]
    )
    if written == "/":
        return Token(Kind.MULTIPLY, "/", is_strong=is_spaced)
    return Token(Kind.ADD, "-", is_strong=is_spaced)


def _join_number_words(tokens: list[Token]) -> list[Token]:
    joined: list[Token] = []
    index = 0
    while index < len(tokens):
        value, end = _number_in_words(tokens, index)
        if end > index:
            joined.append(Token(Kind.NUMBER, str(value)))
            index = end
        else:
            joined.append(tokens[index])
            index += 1
    return joined


def _number_in_words(tokens: list[Token], start: int) -> tuple[int, int]:
    """The number that words spell from `start`, and where it ends; `start` if none does."""
    whole, group, index = 0, 0, start
    while index < len(tokens):
        pieces = tokens[index].value.lower().split("-")
        if tokens[index].kind is Kind.AND and group and group % 100 == 0:
            following = tokens[index + 1].value.lower() if index + 1 < len(tokens) else ""
            if following.split("-")[0] in _SMALL:
                index += 1
                continue
        if tokens[index].kind is not Kind.WORD:
            break
        if all(piece in _SMALL for piece in pieces):
            group += sum(_SMALL[piece] for piece in pieces)
        elif len(pieces) == 1 and pieces[0] in _LARGE and index > start:
            group = max(group, 1) * _LARGE[pieces[0]]
            if _LARGE[pieces[0]] >= 1_000:
                whole, group = whole + group, 0
        else:
            break
        index += 1
    return whole + group, index
