"""Finds the calculation that a question asks for, as an expression that a calculator reads.

The grammar, where `phrase` is a run of words that names a figure to look up first:

    sum     = product {("+" | "-") product [percent]}  |  sum "increased by" product [percent]
    product = power {("*" | "/" | "mod") power}
    power   = signed ["**" signed | "squared" | "cubed"]
    signed  = "-" signed | operand
    operand = number [percent ["of" | "off"] signed] | number "more than" signed
            | "(" sum ")" | ("square root" | "half" | "twice") ["of"] signed
            | ("sum" | "product" | "average") "of" list | "difference between" a "and" b
            | ("add" | "subtract" | "multiply" | "divide") a ("by" | "to" | "from" | "and") b
            | phrase
"""

import re
from dataclasses import dataclass, replace

from services.models.providers.extractive.arithmetic_words import Kind, Token, tokenise
from services.models.providers.extractive.text import content_words

_DEPTH_MAX = 24
_PHRASE_WORDS_MAX = 12
_OPERANDS_MAX = 32

_SUM, _PRODUCT, _POWER, _OPERAND = 1, 2, 3, 4

_LEAD = re.compile(
    r"^(?:(?:and|then|so|please|now|also|is|are|i|me|if|you|we|do|does|can|could|what's|what|whats|"
    r"would|be|will|tell|give|calculate|compute|evaluate|work|out|find|get|the|a|an|result|value|"
    r"how\s+(?:much|many)(?:\s+\w+(?=\s+(?:is|are|does|do|will)\b))?)\s+)+",
    re.IGNORECASE,
)
_ASKS_OTHERWISE = re.compile(
    r"(?:who|whom|why|where|when|which|how (?:do|does|can|could|should|to)|can|may|must|should)\b",
    re.I,
)
_OPTION = re.compile(r"(?<!\S)--?(?=[A-Za-z])")
"""The sign of `-k`, which subtracts nothing."""
_TAIL = re.compile(r",?\s+(?:according to|as stated in|in the doc|please\b|then\b).*$", re.I)


@dataclass(frozen=True, slots=True)
class Calculation:
    """An expression; `{0}`, `{1}` stand for the figures that `phrases` name.

    `is_money`: they are prices. An implied calculation is made only where the figures
    bear it: each `per` that unit, where one is given, and not already for the number
    `counted`.
    """

    expression: str
    phrases: tuple[str, ...] = ()
    per: str = ""
    counted: str = ""
    is_money: bool = False
    is_implied: bool = False

    def filled(self, figures: list[str]) -> str:
        """The expression with a figure for each phrase."""
        text = self.expression
        for index, figure in enumerate(figures):
            text = text.replace(f"{{{index}}}", figure)
        return text


@dataclass(frozen=True, slots=True)
class _Node:
    text: str
    level: int = _OPERAND
    operators: int = 0
    is_strong: bool = False
    is_percent: bool = False
    is_phrase: bool = False

    def at(self, level: int) -> str:
        """The text, in parentheses where it binds less than `level`."""
        return self.text if self.level >= level else f"({self.text})"


def find_calculation(text: str) -> Calculation | None:
    """The calculation that `text` asks for, or None. Never raises."""
    tokens = tokenise(text)
    plain = _find_plain(tokens)
    return plain or _find_with_phrases(_TAIL.sub("", text))


def without_roots(expression: str) -> str:
    """The expression with `sqrt(x)` written as a power, for calculators without roots."""
    while (start := expression.find("sqrt(")) >= 0:
        depth, end = 1, start + len("sqrt(")
        while depth and end < len(expression):
            depth += {"(": 1, ")": -1}.get(expression[end], 0)
            end += 1
        inner = expression[start + len("sqrt(") : end - 1]
        base = inner if inner.isalnum() else f"({inner})"
        power = f"{base} ** 0.5"
        is_whole = start == 0 and end == len(expression)
        expression = power if is_whole else f"{expression[:start]}({power}){expression[end:]}"
    return expression


def _find_plain(tokens: list[Token]) -> Calculation | None:
    tokens = [token for token in tokens if token.value.lower() not in ("the", "a", "an")]
    best: tuple[int, _Node] | None = None
    for start in range(len(tokens)):
        parser = _Parser(tokens, start)
        node = parser.sum()
        if node is None or not node.operators:
            continue
        rest = tokens[:start] + tokens[parser.position :]
        spoken = " ".join(token.value for token in rest if token.kind is Kind.WORD)
        is_whole = not content_words(spoken) or _LEAD.fullmatch(spoken + " ") is not None
        length = parser.position - start
        if (node.is_strong or is_whole) and (best is None or length > best[0]):
            best = length, node
    return Calculation(best[1].text) if best else None


def _find_with_phrases(text: str) -> Calculation | None:
    """A calculation with figures to look up; only where all of `text` is one."""
    if _ASKS_OTHERWISE.match(text):
        return None
    text = _LEAD.sub("", _OPTION.sub(" ", text).strip().rstrip("?!. "))
    tokens = _join_phrases(tokenise(text))
    parser = _Parser(tokens, 0, with_phrases=True)
    node = parser.sum()
    if node is None or not node.operators or parser.position < len(tokens) or not parser.phrases:
        return None
    return Calculation(node.text, tuple(parser.phrases))


def _join_phrases(tokens: list[Token]) -> list[Token]:
    """Runs of words become one token each; runs that say nothing are left out."""
    joined: list[Token] = []
    run: list[str] = []
    # `by` in `multiply the fee by 2` parts the operands; elsewhere it is a word of a phrase.
    has_verb = any(token.kind is Kind.VERB for token in tokens)
    inner = (Kind.OF,) if has_verb else (Kind.OF, Kind.LINK)
    for token in [*tokens, Token(Kind.COMMA, "")]:
        if token.kind is Kind.WORD or (token.kind in inner and run):
            run.append(token.value if token.kind is Kind.WORD else "of")
            continue
        phrase = " ".join(run)
        if content_words(phrase):
            joined.append(Token(Kind.WORD, phrase))
        run = []
        if token.value:
            joined.append(token)
    return joined


class _Parser:
    """Recursive descent over tokens; a method gives None where its rule doesn't fit."""

    def __init__(self, tokens: list[Token], position: int, *, with_phrases: bool = False) -> None:
        self.tokens = tokens
        self.position = position
        self.phrases: list[str] = []
        self._with_phrases = with_phrases
        self._depth = 0

    def sum(self) -> _Node | None:
        left = self._product()
        while left is not None:
            start = self.position
            operator = self._take(Kind.ADD) or self._take(Kind.CHANGED_BY)
            right = self._product() if operator else None
            if operator is None or right is None:
                self.position = start
                return left
            left = _changed(left, operator, right)
        return None

    def _product(self) -> _Node | None:
        left = self._power()
        while left is not None:
            start = self.position
            operator = self._take(Kind.MULTIPLY)
            right = self._power() if operator else None
            if operator is None or right is None or (left.is_phrase and right.is_phrase):
                self.position = start
                return left
            left = _binary(left, operator, right)
        return None

    def _power(self) -> _Node | None:
        base = self._signed()
        if base is None:
            return None
        start = self.position
        if after := self._take(Kind.AFTER_POWER):
            return _power_of(base, after.value)
        if self._take(Kind.POWER):
            exponent = self._signed()
            if exponent is not None:
                return _power_of(base, exponent.at(_OPERAND))
        self.position = start
        return base

    def _signed(self) -> _Node | None:
        if self._depth >= _DEPTH_MAX:
            return None
        self._depth += 1
        start = self.position
        sign = self._take(Kind.ADD)
        if sign is None:
            node = self._operand()
        elif sign.value == "-" and (operand := self._signed()) is not None:
            node = replace(operand, text=f"-{operand.at(_POWER)}", level=_PRODUCT)
        else:
            node = None
        if node is None:
            self.position = start
        self._depth -= 1
        return node

    def _operand(self) -> _Node | None:
        token = self._peek()
        if token is None:
            return None
        self.position += 1
        match token.kind:
            case Kind.NUMBER:
                return self._number(token)
            case Kind.OPEN:
                inner = self.sum()
                return inner if inner and self._take(Kind.CLOSE) else None
            case Kind.ROOT | Kind.SCALE:
                return self._prefixed(token)
            case Kind.LIST:
                return self._list(token)
            case Kind.DIFFERENCE | Kind.VERB:
                return self._pair(token)
            case Kind.WORD if self._with_phrases and len(token.value.split()) <= _PHRASE_WORDS_MAX:
                self.phrases.append(token.value)
                return _Node(f"{{{len(self.phrases) - 1}}}", is_phrase=True)
        return None

    def _number(self, token: Token) -> _Node:
        start = self.position
        if self._take(Kind.PERCENT):
            start = self.position
            link = self._take(Kind.OF) or self._take(Kind.OFF) or self._take(Kind.MORE_THAN)
            operand = self._signed() if link else None
            if link and operand:
                return _share(token.value, link, operand)
            self.position = start
            return _Node(f"{token.value} / 100", _PRODUCT, is_percent=True)
        more = self._take(Kind.MORE_THAN)
        operand = self._signed() if more else None
        if more and operand:
            return _binary(operand, more, _Node(token.value))
        self.position = start
        self._skip_unit()
        return _Node(token.value)

    def _skip_unit(self) -> None:
        """Passes over the unit in `17 km plus 5 km`, also over the last one."""
        following = self.tokens[self.position : self.position + 2]
        if not self._with_phrases and following and following[0].kind is Kind.WORD:
            after = following[1].kind if len(following) > 1 else None
            if after in (Kind.ADD, Kind.MULTIPLY):
                self.position += 1

    def _prefixed(self, token: Token) -> _Node | None:
        self._take(Kind.OF)
        operand = self._signed()
        if operand is None:
            return None
        if token.kind is Kind.ROOT:
            return _counted(_Node(f"sqrt({operand.text})"), operand)
        return _binary(_Node(token.value), Token(Kind.MULTIPLY, "*"), operand)

    def _list(self, token: Token) -> _Node | None:
        if not self._take(Kind.OF):
            return None
        items = [self._product()]
        while len(items) < _OPERANDS_MAX and self._separator():
            items.append(self._product())
        found = [item for item in items if item is not None]
        if len(found) < 2 or len(found) < len(items):
            return None
        operator = "*" if token.value == "*" else "+"
        level = _PRODUCT if operator == "*" else _SUM
        text = f" {operator} ".join(item.at(level) for item in found)
        if token.value == "average":
            return _Node(f"({text}) / {len(found)}", _PRODUCT, 1, is_strong=True)
        return _Node(text, level, 1, is_strong=True)

    def _separator(self) -> bool:
        comma, conjunction = self._take(Kind.COMMA), self._take(Kind.AND)
        return bool(comma or conjunction)

    def _pair(self, token: Token) -> _Node | None:
        self._take(Kind.OF)
        first = self._product()
        link = self._take(Kind.AND) or self._take(Kind.LINK)
        second = self._product() if first and link else None
        if first is None or link is None or second is None:
            return None
        if token.kind is Kind.DIFFERENCE and first.is_phrase and second.is_phrase:
            return None
        if token.kind is Kind.VERB and token.value == "-":
            first, second = second, first
        return _binary(first, token, second)

    def _peek(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def _take(self, kind: Kind) -> Token | None:
        token = self._peek()
        if token is None or token.kind is not kind:
            return None
        self.position += 1
        return token


def _counted(node: _Node, *operands: _Node, is_strong: bool = True) -> _Node:
    operators = 1 + sum(operand.operators for operand in operands)
    strong = is_strong or any(operand.is_strong for operand in operands)
    return replace(node, operators=operators, is_strong=strong)


def _binary(left: _Node, operator: Token, right: _Node) -> _Node:
    level = _PRODUCT if operator.value in "*/%" else _SUM
    # `a - (b - c)` and `a / (b * c)` keep their parentheses.
    text = f"{left.at(level)} {operator.value} {right.at(level + 1)}"
    return _counted(_Node(text, level), left, right, is_strong=operator.is_strong)


def _changed(left: _Node, operator: Token, right: _Node) -> _Node:
    """`340 plus 15 %` adds that share of 340, as people mean it."""
    if not right.is_percent or left.is_percent:
        return _binary(left, operator, right)
    text = f"{left.at(_PRODUCT)} * (1 {operator.value} {right.text})"
    return _counted(_Node(text, _PRODUCT), left)


def _power_of(base: _Node, exponent: str) -> _Node:
    return _counted(_Node(f"{base.at(_OPERAND)} ** {exponent}", _POWER), base)


def _share(percent: str, link: Token, operand: _Node) -> _Node:
    if link.kind is Kind.OF:
        text = f"{percent} / 100 * {operand.at(_POWER)}"
    else:
        sign = "-" if link.kind is Kind.OFF or link.value == "-" else "+"
        text = f"{operand.at(_PRODUCT)} * (1 {sign} {percent} / 100)"
    return _counted(_Node(text, _PRODUCT), operand)
