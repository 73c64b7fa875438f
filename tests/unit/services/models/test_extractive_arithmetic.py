"""Arithmetic out of prose."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.models.providers.extractive.arithmetic import find_calculation, without_roots
from tests.unit.services.models.arithmetic_value import value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is 12.5% of 340?", 42.5),
        ("how much is 17 times 23", 391),
        ("What is the square root of 144?", 12),
        ("(3+4)*2", 14),
        ("What is 7-3?", 4),
        ("Compute 2 + 2 * (3 - 1), please.", 6),
        ("seventeen times twenty-three", 391),
        ("two hundred and five plus one", 206),
        ("What do I pay with 20% off 80?", 64),
        ("340 plus 15%", 391),
        ("What is 200 increased by 15 percent?", 230),
        ("the sum of 1, 2 and 3", 6),
        ("average of 4 and 8", 6),
        ("divide 100 by 8", 12.5),
        ("subtract 5 from 12", 7),
        ("add 5 to 12", 17),
        ("multiply 6 by 7", 42),
        ("What is half of 90?", 45),
        ("twice 21", 42),
        ("10 more than 32", 42),
        ("difference between 10 and 4", 6),
        ("1,200 / 4", 300),
        ("5 squared plus 3", 28),
        ("2 to the power of 10", 1024),
        ("2^10", 1024),
        ("17 km plus 5 km", 22),
        ("17x23", 391),
        ("17 mod 5", 2),
        ("If a ticket costs 12.50, how much are 3 * 12.50?", 37.5),
        ("100 / 10% of 50", 20),
        ("20 minus -5", 25),
    ],
)
def test_reads_what_people_write(text: str, expected: float) -> None:
    found = find_calculation(text)
    assert found is not None
    assert value(found.expression) == pytest.approx(expected)
    assert value(without_roots(found.expression)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "Is the release of 2024-05-01 fine?",
        "How many times does it retry?",
        "What is the difference between a task and a job?",
        "It needs 3-5 days of rest",
        "Show pages 3-5 of the manual",
        "What does the Plus plan cost?",
        "How long is the second half of the year?",
        "Is CI/CD supported?",
        "What is the number of times a job retries?",
        "Is version 1.2.3 better than 1.2.2?",
        "Is it more than 10 degrees?",
        "What happened at 10:30?",
        "",
    ],
)
def test_leaves_alone_what_only_looks_like_arithmetic(text: str) -> None:
    assert find_calculation(text) is None


@pytest.mark.parametrize(
    ("text", "expression", "phrases"),
    [
        ("What is the default port plus 10?", "{0} + 10", ("default port",)),
        ("What is half of the annual budget?", "0.5 * {0}", ("the annual budget",)),
        ("10 more than the retry limit", "{0} + 10", ("the retry limit",)),
        ("multiply the hotel limit by 3", "{0} * 3", ("the hotel limit",)),
        ("12% of the base salary", "12 / 100 * {0}", ("the base salary",)),
        ("How many seconds is the lease times 3?", "{0} * 3", ("lease",)),
        ("sum of the deposit and the rent", "{0} + {1}", ("the deposit", "the rent")),
    ],
)
def test_names_the_figures_to_look_up(text: str, expression: str, phrases: tuple[str]) -> None:
    found = find_calculation(text)
    assert found is not None
    assert (found.expression, found.phrases) == (expression, phrases)


def test_fills_figures_in() -> None:
    found = find_calculation("What is the default port plus 10?")
    assert found is not None
    assert value(found.filled(["7420"])) == 7430


_NUMBERS = st.integers(0, 9_999).map(str) | st.decimals(0, 999, places=2).map(str)
_SPOKEN = {"plus": "+", "minus": "-", "times": "*", "divided by": "/", "+": "+", "*": "*"}


@given(st.lists(st.tuples(st.sampled_from(sorted(_SPOKEN)), _NUMBERS), min_size=1, max_size=6))
def test_spoken_operators_mean_what_the_symbols_mean(rest: list[tuple[str, str]]) -> None:
    text = "What is 5" + "".join(f" {word} {number}" for word, number in rest) + "?"
    symbols = "5" + "".join(f" {_SPOKEN[word]} {number}" for word, number in rest)
    found = find_calculation(text)
    assert found is not None
    try:
        expected = value(symbols)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            value(found.expression)
    else:
        assert value(found.expression) == pytest.approx(expected)


_WORDS = (
    "1 2.5 1,000 12% % of ( ) + - * / ^ ** sqrt square root half twice sum average , and the port"
    " plus minus times over divided by multiply add to from off more than less squared mod"
)
_PIECES = st.sampled_from(_WORDS.split())


@example("0\u00b7\u1b50")  # A digit, of Bali
@given(st.lists(_PIECES, max_size=40).map(" ".join) | st.text(max_size=200))
def test_never_fails_and_writes_only_arithmetic(text: str) -> None:
    found = find_calculation(text)
    if found is not None:
        figures = ["3"] * len(found.phrases)
        try:
            value(without_roots(found.filled(figures)))
        except (ZeroDivisionError, OverflowError, TypeError):
            return  # a value that doesn't exist, or isn't real, is the calculator's to report
