"""The calculator."""

import ast
import operator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tools.builtins.calculator import LENGTH_MAX, CalculatorError, evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3", "9"),
        ("0.1 + 0.2", "0.3"),
        ("1/3", "0.333333333333333"),
        ("(1/3) * 3", "1"),
        ("7 // 2", "3"),
        ("-7 // 2", "-4"),
        ("7 % 3", "1"),
        ("-2 ** 2", "-4"),
        ("2 ** -1", "0.5"),
        ("2 ** 3 ** 2", "512"),
        ("2 ^ 10", "1024"),
        ("--1", "1"),
        ("3 × 4 ÷ 2 − 1", "5"),  # noqa: RUF001 - meant
        ("12% of 340", "40.8"),
        ("340 * 12%", "40.8"),
        ("5%", "0.05"),
        ("50% of 10% of 80", "4"),
        ("1.5e3", "1500"),
        (".5 + 1.", "1.5"),
        ("sqrt(16/9) * 3", "4"),
        ("sqrt(2)", "1.4142135623730951"),
        ("abs(-3.5)", "3.5"),
        ("round(2.675, 2)", "2.68"),
        ("round(2.5)", "2"),
        ("min(3, 1, 2) + max(3, 1, 2)", "4"),
        ("floor(-1.5) + ceil(1.2)", "0"),
        ("log(1000, 10) + log(8, 2)", "6"),
        ("exp(0) + log(e)", "2"),
        ("sin(pi) + cos(0)", "1"),
        ("cos(pi / 3)", "0.5"),
        ("10 ** 30 + 1", "1" + "0" * 29 + "1"),
        ("1e-30 / 3", "3.33333333333333E-31"),
    ],
)
def test_an_expression_has_its_value(expression: str, value: str) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "the end"),
        ("1 +", "the end"),
        ("2 3", "unexpected '3'"),
        ("1,000", "unexpected ','"),
        ("(1", r"expected '\)'"),
        ("1 / 0", "division by zero"),
        ("1 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("log(2, 1)", "division by zero"),
        ("9 ** 9 ** 9", "too many digits"),
        ("10 ** 999 * 10 ** 999", "too many digits"),
        ("1e1001", "exponent"),
        ("1e99999999999", "exponent"),
        ("exp(1000)", "too large"),
        ("(-8) ** 0.5", "isn't a real number"),
        ("sqrt(-1)", "sqrt has no value there"),
        ("log(0)", "log has no value there"),
        ("round(1, 1e300)", "round takes a whole number"),
        ("sqrt()", "expected a number"),
        ("sqrt(1, 2)", "sqrt takes 1 argument, not 2"),
        ("log(1, 2, 3)", "log takes 1 to 2 arguments, not 3"),
        ("foo(1)", "'foo' isn't known; known are sqrt"),
        ("__import__('os')", "unexpected"),
        ("a.b", "unexpected"),
        ("(" * 60 + "1" + ")" * 60, "nested deeper"),
        ("-" * 60 + "1", "nested deeper"),
        ("1" * (LENGTH_MAX + 1), "longer than"),
    ],
)
def test_what_has_no_value_says_why(expression: str, says: str) -> None:
    with pytest.raises(CalculatorError, match=says):
        evaluate(expression)


_pieces = st.sampled_from(
    ["1", "2.5", "1e9", "pi", "of", "%", "*", "**", "//", "/", "-", "(", ")", ",", "log(", "tan("]
)


@given(st.one_of(st.text(max_size=200), st.lists(_pieces, max_size=60).map("".join)))
def test_any_text_has_a_value_or_says_why_not(text: str) -> None:
    try:
        outcome = evaluate(text)
    except CalculatorError as error:
        outcome = str(error)
    assert outcome


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def python_value(node: ast.expr) -> Fraction:
    """What Python makes of it, on fractions."""
    if isinstance(node, ast.BinOp):
        left, right = python_value(node.left), python_value(node.right)
        return Fraction(_OPERATORS[type(node.op)](left, right))
    if isinstance(node, ast.UnaryOp):
        return -python_value(node.operand)
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int)
    return Fraction(node.value)


_numbers = st.integers(0, 99).map(str)
_expressions = st.recursive(
    _numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "/"]), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-({text})"),
    ),
    max_leaves=12,
)


@given(_expressions)
def test_operators_bind_as_in_python(expression: str) -> None:
    try:
        expected = python_value(ast.parse(expression, mode="eval").body)
    except ZeroDivisionError:
        with pytest.raises(CalculatorError, match="division by zero"):
            evaluate(expression)
        return
    shown = Fraction(evaluate(expression))
    assert abs(shown - expected) <= abs(expected) * Fraction(1, 10**14)
