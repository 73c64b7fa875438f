"""How the offline model reads documents and questions: forms of text, kinds of answers."""

import pytest

from services.models.providers.extractive.amounts import find_amount
from services.models.providers.extractive.hints import HINTS, Expects, expected
from services.models.providers.extractive.markdown import sentences
from services.models.providers.extractive.questions import read_clauses


def test_a_row_is_read_with_its_columns_names_and_its_first_cell_is_its_key() -> None:
    (row,) = sentences("| Plan | Price |\n| --- | --- |\n| Solo | 4 € |")
    assert row.text == "Plan: Solo; Price: 4 €"
    assert row.key == "Solo"


def test_rows_without_a_rule_below_the_first_have_no_names() -> None:
    assert [one.text for one in sentences("| Solo | 4 € |\n| Duo | 7 € |")] == [
        "Solo; 4 €",
        "Duo; 7 €",
    ]


def test_the_answer_to_a_question_in_the_text_knows_the_question() -> None:
    _, answer = sentences("**Is it loud?** Hardly: 20 dB at night.")
    assert answer.lead == "Is it loud?"
    _, apart = sentences("Is it loud?\n\nHardly: 20 dB at night.")
    assert apart.lead == "Is it loud?"


def test_lines_of_keys_and_values_are_read_one_by_one() -> None:
    assert [(one.key, one.text) for one in sentences("Power: 650 W\nWeight: 8 kg")] == [
        ("Power", "Power: 650 W"),
        ("Weight", "Weight: 8 kg"),
    ]


@pytest.mark.parametrize(
    "text", ["Maintenance\n\nClean the filter.", "  Maintenance\n      Clean the filter."]
)
def test_a_line_that_stands_above_or_alone_is_a_heading(text: str) -> None:
    (only,) = sentences(text)
    assert (only.headings, only.text) == (("Maintenance",), "Clean the filter.")


def test_code_is_introduced_by_the_sentence_above_it() -> None:
    intro, code = sentences("Remove it:\n\n    $ tool remove")
    assert (code.lead, code.is_code) == (intro.text, True)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("How often is it cleaned?", Expects.DURATION),
        ("How far ahead must I book?", Expects.DURATION),
        ("How much does it cost?", Expects.MONEY),
        ("What is the price?", Expects.MONEY),
        ("How much memory does it use?", Expects.SIZE),
        ("How many rooms are there?", Expects.NUMBER),
        ("How old is the bridge?", Expects.AGE),
        ("Since which version is it there?", Expects.VERSION),
        ("When was it built?", Expects.DAY),
        ("When does it open?", Expects.DATE),
        ("What happens when it rains?", Expects.ANYTHING),
        ("Who built it?", Expects.PERSON),
        ("How do I open it?", Expects.METHOD),
    ],
)
def test_a_question_tells_what_kind_of_answer_it_wants(question: str, kind: Expects) -> None:
    assert expected(question) is kind


@pytest.mark.parametrize(
    ("kind", "answer", "other"),
    [
        (Expects.DURATION, "It takes 20 minutes and more.", "It takes patience and skill."),
        (Expects.MONEY, "That is €38 a month.", "That is 38 km away."),
        (Expects.SIZE, "It fills 2 GB.", "It fills 2 rooms."),
        (Expects.DAY, "It opened in May 1931.", "It may open again."),
        (Expects.PERSON, "Hannah takes the minutes.", "They take the minutes."),
        (Expects.AGE, "She is 30 years old.", "She has 30 clocks."),
    ],
)
def test_an_answer_shows_its_kind(kind: Expects, answer: str, other: str) -> None:
    assert HINTS[kind].shown.search(answer)
    assert not HINTS[kind].shown.search(other)


@pytest.mark.parametrize(
    ("question", "expression", "per"),
    [
        ("How much do 3 licences cost?", "3 * {0}", ""),
        ("What would ten Fleet plans cost?", "10 * {0}", ""),
        ("How much is the Home plan for 12 months?", "12 * {0}", "month"),
        ("How many litres does it pump in 4 hours?", "4 * {0}", "hour"),
        ("What is the price difference between A and B?", "{0} - {1}", ""),
        ("How much do the desk and the chair cost together?", "{0} + {1}", ""),
    ],
)
def test_a_question_of_quantity_implies_a_calculation(
    question: str, expression: str, per: str
) -> None:
    found = find_amount(question)
    assert found is not None
    assert (found.expression, found.per) == (expression, per)


@pytest.mark.parametrize(
    "question",
    ["How much does it cost?", "What are the three levels of the cache?", "Who has 3 licences?"],
)
def test_other_questions_imply_none(question: str) -> None:
    assert find_amount(question) is None


def test_a_chain_of_follow_ups_keeps_its_subject() -> None:
    earlier = ("How long is the warranty of the pump?", "And how heavy is it?")
    (clause,) = read_clauses("And how loud?", earlier)
    assert "pump" in clause.context


def test_a_question_that_stands_alone_takes_nothing_from_before() -> None:
    (clause,) = read_clauses("Which port does the gateway use?", ("Who paints the boat?",))
    assert clause.context == ()
