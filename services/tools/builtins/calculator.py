"""Arithmetic on exact numbers, from text; nothing of it is run as a program.

    sum      = product (("+" | "-") product)*
    product  = sign (("*" | "/" | "//" | "%" | "of") sign)*
    sign     = ("+" | "-") sign | power
    power    = operand ["%"] [("**" | "^") sign]
    operand  = number | name | name "(" sum ("," sum)* ")" | "(" sum ")"

A `%` behind which no operand follows makes a percentage: `12% of 340`. Numbers are
fractions, so `0.1 + 0.2` is 0.3; roots that aren't exact, logarithms and the like are
as precise as a double.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

LENGTH_MAX = 1_000
DEPTH_MAX = 50
NUMBER_BITS_MAX = 4_096
"""Bound on the numerator and the denominator of every number on the way."""
EXPONENT_MAX = 1_000
"""Bound on the exponent of a number such as 1e6."""

_EXACT_DIGITS_MAX = 40
_SHOWN_DIGITS = 15
_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<symbol>\*\*|//|[-+*/%^(),])"
)
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})  # noqa: RUF001 - meant


class CalculatorError(ValueError):
    """Why an expression has no value, in words for who wrote it."""


def evaluate(expression: str) -> str:
    """The value of the expression as text; CalculatorError where it has none."""
    if len(expression) > LENGTH_MAX:
        raise CalculatorError(f"the expression is longer than {LENGTH_MAX} characters")
    try:
        return _shown(_Parser(expression.translate(_SPELLINGS)).value())
    except ZeroDivisionError:
        raise CalculatorError("division by zero") from None
    except OverflowError:
        raise CalculatorError("the result is too large") from None


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


_END = _Token("end", "")


class _Parser:
    """Reads and calculates in one pass, by recursive descent."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._place = 0
        self._depth = 0

    def value(self) -> Fraction:
        result = self._sum()
        if self._next != _END:
            raise CalculatorError(f"unexpected {self._next.text!r}")
        return result

    def _sum(self) -> Fraction:
        result = self._product()
        while operator := self._take("+", "-"):
            operand = self._product()
            result = _bounded(result + operand if operator == "+" else result - operand)
        return result

    def _product(self) -> Fraction:
        result = self._sign()
        while operator := self._take("*", "/", "//", "%", "of"):
            result = _bounded(_PRODUCTS[operator](result, self._sign()))
        return result

    def _sign(self) -> Fraction:
        # Everything that nests passes here: one place bounds the recursion.
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise CalculatorError(f"the expression is nested deeper than {DEPTH_MAX}")
        operator = self._take("+", "-")
        result = self._sign() if operator else self._power()
        self._depth -= 1
        return -result if operator == "-" else result

    def _power(self) -> Fraction:
        result = self._operand()
        if self._next.text == "%" and not self._operand_follows():
            self._place += 1
            result /= 100
        if self._take("**", "^"):
            result = _power(result, self._sign())
        return result

    def _operand(self) -> Fraction:
        token = self._next
        self._place += 1
        if token.kind == "number":
            return _number(token.text)
        if token.kind == "name":
            return self._named(token.text)
        if token.text == "(":
            result = self._sum()
            self._expect(")")
            return result
        found = repr(token.text) if token.text else "the end"
        raise CalculatorError(f"expected a number, a name or '(' instead of {found}")

    def _named(self, name: str) -> Fraction:
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name not in _FUNCTIONS:
            known = ", ".join((*_FUNCTIONS, *_CONSTANTS))
            raise CalculatorError(f"{name!r} isn't known; known are {known}")
        self._expect("(")
        arguments = [self._sum()]
        while self._take(","):
            arguments.append(self._sum())
        self._expect(")")
        function = _FUNCTIONS[name]
        if not function.least <= len(arguments) <= function.most:
            raise CalculatorError(f"{name} takes {function.wanted}, not {len(arguments)}")
        return _bounded(_called(name, function, arguments))

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place] if self._place < len(self._tokens) else _END

    def _operand_follows(self) -> bool:
        after = self._tokens[self._place + 1] if self._place + 1 < len(self._tokens) else _END
        return after.kind == "number" or after.text == "(" or _is_operand(after)

    def _take(self, *texts: str) -> str:
        text = self._next.text
        if text not in texts:
            return ""
        self._place += 1
        return text

    def _expect(self, text: str) -> None:
        if not self._take(text):
            found = repr(self._next.text) if self._next.text else "the end"
            raise CalculatorError(f"expected {text!r} instead of {found}")


@dataclass(frozen=True, slots=True)
class _Function:
    """A function with the least and the most arguments that it takes."""

    least: int
    most: int
    call: Callable[..., Fraction | float]

    @property
    def wanted(self) -> str:
        if self.least == self.most:
            return "1 argument" if self.least == 1 else f"{self.least} arguments"
        return f"{self.least} to {self.most} arguments"


def _is_operand(token: _Token) -> bool:
    return token.kind == "name" and token.text != "of"


def _tokens(text: str) -> list[_Token]:
    tokens = []
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise CalculatorError(f"unexpected {text[place]!r}")
        tokens.append(_Token(match.lastgroup, match[0]))
        place = match.end()
    return tokens


def _number(text: str) -> Fraction:
    _, _, exponent = text.lower().partition("e")
    if exponent and (len(exponent) > 5 or abs(int(exponent)) > EXPONENT_MAX):
        raise CalculatorError(f"{text} has an exponent beyond {EXPONENT_MAX}")
    return _bounded(Fraction(text))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > NUMBER_BITS_MAX:
        raise CalculatorError("a number on the way has too many digits")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        try:
            return _inexact(math.pow(base, exponent))
        except ValueError:
            raise CalculatorError("that power isn't a real number") from None
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
    # Asked before it is calculated: 9**9**9 would never end.
    if bits * abs(exponent.numerator) > NUMBER_BITS_MAX:
        raise CalculatorError("the power has too many digits")
    return _bounded(Fraction(base**exponent.numerator))


def _called(name: str, function: _Function, arguments: list[Fraction]) -> Fraction:
    try:
        result = function.call(*arguments)
    except CalculatorError:
        raise
    except ValueError:
        raise CalculatorError(f"{name} has no value there") from None
    return result if isinstance(result, Fraction) else _inexact(result)


def _inexact(value: float) -> Fraction:
    if not math.isfinite(value):
        raise OverflowError
    return Fraction(repr(value))


def _square_root(value: Fraction) -> Fraction | float:
    if value < 0:
        raise ValueError
    numerator, denominator = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if numerator**2 == value.numerator and denominator**2 == value.denominator:
        return Fraction(numerator, denominator)
    return math.sqrt(value)


def _logarithm(value: Fraction, base: Fraction | None = None) -> float:
    if base is None:
        return math.log(value)
    # The special functions are exact for whole powers.
    exact = {2: math.log2, 10: math.log10}.get(int(base)) if base.denominator == 1 else None
    return exact(value) if exact else math.log(value) / math.log(base)


def _rounded(value: Fraction, digits: Fraction = Fraction(0)) -> Fraction:
    if digits.denominator != 1 or abs(digits) > 100:
        raise CalculatorError("round takes a whole number of digits, up to 100")
    return Fraction(round(value, digits.numerator))


def _circular(function: Callable[[float], float]) -> Callable[[Fraction], float]:
    """Rounds off what comes from pi not being exact, so that sin(pi) is 0."""
    return lambda angle: round(function(float(angle)), _SHOWN_DIGITS)


_CONSTANTS = {"pi": _inexact(math.pi), "e": _inexact(math.e)}
_PRODUCTS: Mapping[str, Callable[[Fraction, Fraction], Fraction]] = {
    "*": lambda left, right: left * right,
    "of": lambda left, right: left * right,
    "/": lambda left, right: left / right,
    "//": lambda left, right: Fraction(left // right),
    "%": lambda left, right: left % right,
}
_FUNCTIONS: Mapping[str, _Function] = {
    "sqrt": _Function(1, 1, _square_root),
    "abs": _Function(1, 1, abs),
    "round": _Function(1, 2, _rounded),
    "min": _Function(1, LENGTH_MAX, lambda *values: min(values)),
    "max": _Function(1, LENGTH_MAX, lambda *values: max(values)),
    "floor": _Function(1, 1, lambda value: Fraction(math.floor(value))),
    "ceil": _Function(1, 1, lambda value: Fraction(math.ceil(value))),
    "log": _Function(1, 2, _logarithm),
    "exp": _Function(1, 1, math.exp),
    "sin": _Function(1, 1, _circular(math.sin)),
    "cos": _Function(1, 1, _circular(math.cos)),
    "tan": _Function(1, 1, _circular(math.tan)),
}


def _shown(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    context = Context(prec=_EXACT_DIGITS_MAX)
    quotient = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    if Fraction(quotient) != value:
        quotient = Context(prec=_SHOWN_DIGITS).plus(quotient)
    quotient = quotient.normalize(context)
    return f"{quotient:f}" if -_SHOWN_DIGITS <= quotient.adjusted() <= 21 else str(quotient)
