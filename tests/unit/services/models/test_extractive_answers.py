"""What the offline model answers, on documents that it was not made for."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.models.providers.extractive.reply import WHAT_I_AM, reply
from services.models.providers.extractive.results import read_result
from services.models.tokens import tokens_estimate
from tests.unit.services.models.arithmetic_value import value
from tests.unit.services.models.assistant import (
    CALCULATOR,
    CLOCK,
    SEARCH,
    Chat,
    Run,
    asked,
    tool,
)
from tests.unit.services.models.questions import ANSWERABLE, UNANSWERABLE
from tests.unit.services.models.retrieval import Search
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

RIGHT_SHARE_MIN = 0.85
NOTHING = "I found nothing"

_search = Search()
RUNS: dict[str, Run] = {
    "search": lambda arguments: _search(arguments["query"]),
    "calculator": lambda arguments: f"{value(arguments['expression']):g}",
    "time": lambda arguments: "2025-01-02T03:04:05+00:00",
}


def chat(*tools: models_pb2.ToolDefinition, **runs: Run) -> Chat:
    return Chat(tools or (SEARCH, CALCULATOR, CLOCK), RUNS | runs)


def test_answers_questions_about_unseen_documents() -> None:
    missed = [
        (question, answer)
        for question, fact in ANSWERABLE
        if fact.lower() not in (answer := chat().ask(question)).split("Sources:")[0].lower()
    ]
    assert len(missed) <= (1 - RIGHT_SHARE_MIN) * len(ANSWERABLE), missed


@pytest.mark.parametrize("question", UNANSWERABLE)
def test_says_so_when_the_documents_hold_no_answer(question: str) -> None:
    assert NOTHING in chat().ask(question)


def test_quotes_are_verbatim_and_numbered_with_their_source() -> None:
    answer = chat().ask("How tall is the tower?")
    assert "Its tower is 41 metres tall" in answer
    assert "[1] The Skerrin Light — lighthouse.txt" in answer


def test_answers_each_part_of_a_question() -> None:
    talk = chat()
    answer = talk.ask("How tall is the tower, and what is 12 * 7?")
    assert [name for name, _ in talk.made] == ["search", "calculator"]
    assert "41 metres" in answer
    assert "12 * 7 = 84" in answer


@pytest.mark.parametrize(
    ("question", "expression", "result"),
    [
        ("What is Pelican's default listening port plus 10?", "7420 + 10", "7430"),
        ("What is the meal limit per day? Multiply it by 3.", "40 * 3", "120"),
        ("What is half of the height of the lighthouse tower?", "0.5 * 41", "20.5"),
    ],
)
def test_calculates_with_a_figure_that_it_found(
    question: str, expression: str, result: str
) -> None:
    talk = chat()
    answer = talk.ask(question)
    assert talk.made[-1] == ("calculator", {"expression": expression})
    assert f"{expression} = {result}" in answer
    assert "[1]" in answer


def test_a_figure_that_is_not_there_is_not_made_up() -> None:
    talk = chat()
    answer = talk.ask("What is the annual budget plus 10?")
    assert "calculator" not in [name for name, _ in talk.made]
    assert "I found no figure" in answer


def test_a_calculation_can_go_on_from_the_one_before() -> None:
    assert "= 89" in chat().ask("What is 12 * 7? Then add 5 to it.")


def test_a_follow_up_leans_on_the_question_before() -> None:
    talk = chat()
    talk.ask("How many vacation days do I get?")
    assert "31 March" in talk.ask("And when do they expire?")


def test_no_call_is_made_twice_in_a_turn() -> None:
    for question, _ in ANSWERABLE:
        talk = chat()
        talk.ask(question)
        made = [json.dumps(call) for call in talk.made]
        assert len(made) == len(set(made))


def test_a_call_that_somebody_added_arguments_to_counts_as_made() -> None:
    request = asked("How tall is the tower?", SEARCH)
    message = reply(request).message
    arguments = {**json.loads(message.tool_calls[0].arguments_json), "collection": "docs"}
    message.tool_calls[0].arguments_json = json.dumps(arguments)
    request.conversation.messages.append(message)
    request.conversation.messages.add(
        role=models_pb2.ROLE_TOOL,
        tool_call_id=message.tool_calls[0].id,
        text=_search("tower tall"),
    )
    assert "41 metres" in reply(request).message.text


def test_the_same_question_in_a_later_turn_calls_again() -> None:
    talk = chat()
    talk.ask("What is 12 * 7?")
    talk.ask("What is 12 * 7?")
    assert len(talk.made) == 2


def test_a_failed_tool_is_reported() -> None:
    def refuse(arguments: dict[str, Any]) -> str:
        raise ValueError("index is being built")

    answer = chat(search=refuse).ask("How tall is the tower?")
    assert answer == "The tool search failed: index is being built"


def test_reports_the_fields_of_an_object_that_the_question_asks_for() -> None:
    order = tool("get-order", "Returns an order.", {"order_id": {"type": "string"}})
    result = {"order": {"id": "A-17", "status": "SHIPPED", "lines": [{"sku": "x"}]}}
    talk = chat(order, **{"get-order": lambda arguments: json.dumps(result)})
    assert talk.ask("What is the status of order A-17?") == "get-order: order.status: SHIPPED"


def test_an_empty_result_is_said_to_be_one() -> None:
    orders = tool("list-orders", "Lists the open orders.", {})
    assert "nothing" in chat(orders, **{"list-orders": lambda _: "{}"}).ask("List open orders")


def test_a_result_that_was_cut_short_is_still_read() -> None:
    cut = _search("tower tall")[:-20] + "\n[cut]"
    answer = chat(search=lambda arguments: cut).ask("How tall is the tower?")
    assert "41 metres" in answer


def test_without_tools_it_says_what_it_is() -> None:
    assert reply(asked("Write a poem about the sea")).message.text.startswith(WHAT_I_AM)


def test_without_tools_it_quotes_its_instructions() -> None:
    request = asked("What are the office hours?")
    request.instructions = "You are Nia. Our office hours are 9 to 17 on weekdays. Be kind."
    assert reply(request).message.text == (
        "“Our office hours are 9 to 17 on weekdays.” (from my instructions)"
    )


def test_without_tools_it_quotes_the_conversation() -> None:
    talk = Chat((), {})
    talk.ask("My favourite colour is teal.")
    assert "teal" in talk.ask("What is my favourite colour?")


def test_an_answer_is_cut_at_its_bound() -> None:
    request = asked("What are the office hours?")
    request.instructions = "Our office hours are " + "really " * 50 + "from 9 to 17."
    request.parameters.output_tokens_max = 10
    response = reply(request)
    assert tokens_estimate(response.message.text) <= 10
    assert response.finish_reason == models_pb2.FINISH_REASON_LENGTH


def summary_request(tokens_max: int) -> pb.GenerateRequest:
    request = pb.GenerateRequest()
    request.instructions = (
        "Be kind.\n\nSummary of the earlier conversation:\nUser: I live in Bergen."
    )
    for number in range(20):
        request.conversation.messages.add(
            role=models_pb2.ROLE_USER, text=f"Project Falcon needs {number} new turbines. Hm."
        )
        request.conversation.messages.add(
            role=models_pb2.ROLE_ASSISTANT, text=f"Noted: {number} turbines for project Falcon."
        )
    request.conversation.messages.add(
        role=models_pb2.ROLE_USER, text="Summarise the conversation so far in a few sentences."
    )
    request.parameters.output_tokens_max = tokens_max
    return request


@pytest.mark.parametrize("tokens_max", [20, 100, 400])
def test_a_summary_keeps_what_counts_within_its_bound(tokens_max: int) -> None:
    response = reply(summary_request(tokens_max))
    assert tokens_estimate(response.message.text) <= tokens_max
    assert "Falcon" in response.message.text
    assert response.finish_reason == models_pb2.FINISH_REASON_STOP


def test_a_summary_carries_the_summary_before_it() -> None:
    assert "User: I live in Bergen." in reply(summary_request(2_000)).message.text


@given(
    st.text(max_size=300)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=60),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["text", "uri", "passages", "title", "x"]), inner, max_size=3
            )
        ),
    ).map(json.dumps)
)
def test_any_result_of_a_tool_leads_to_an_answer(text: str) -> None:
    read_result(text)
    assert chat(search=lambda arguments: text).ask("How tall is the tower?")
