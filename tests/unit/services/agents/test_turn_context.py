"""What of a session goes to the model, and what is put together for its tools."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.agents import context
from tests.support.session_log import SESSION, SessionLog, planned
from weft.agents.v1 import agent_pb2
from weft.models.v1 import models_pb2
from weft.state.v1 import session_pb2
from weft.tools.v1 import tools_pb2

USER, ASSISTANT, TOOL = models_pb2.ROLE_USER, models_pb2.ROLE_ASSISTANT, models_pb2.ROLE_TOOL
AGENT = agent_pb2.Agent(
    spec=agent_pb2.AgentSpec(
        model="scripted/plan",
        instructions="Be brief.",
        parameters=models_pb2.Parameters(temperature=0.5),
    )
)


def conversation(turns: int, *, result: str = "4", question: str = "what?") -> SessionLog:
    """Turns that each ask a tool, the last one still running."""
    log = SessionLog()
    log.create()
    for number in range(turns):
        log.accept(f"t{number}", question=f"{question} {number}")
        log.step(planned(f"c{number}"))
        log.complete(f"c{number}", content=result)
        if number < turns - 1:
            log.step(text="so")
    return log


def questions_of(messages: models_pb2.Conversation) -> list[str]:
    return [message.text for message in messages.messages if message.role == USER]


class TestRequests:
    def test_all_is_sent_where_it_fits(self) -> None:
        log = conversation(3)
        request = context.generate_request(log.state, AGENT, [], 10_000)
        assert request.parent == "tenants/default"
        assert request.model == "scripted/plan"
        assert request.instructions == "Be brief."
        assert request.parameters.temperature == 0.5
        assert request.conversation == log.state.context

    def test_the_newest_whole_turns_are_sent_where_all_do_not_fit(self) -> None:
        log = conversation(5, question="x" * 400)
        request = context.generate_request(log.state, AGENT, [], 300)
        assert 0 < len(questions_of(request.conversation)) < 5
        assert questions_of(request.conversation)[-1].endswith("4")
        assert request.conversation.messages[0].role == USER

    def test_a_result_that_is_too_long_for_the_window_is_cut_and_says_so(self) -> None:
        log = conversation(1, result="4" * 40_000)
        request = context.generate_request(log.state, AGENT, [], 1_000)
        (result,) = (m for m in request.conversation.messages if m.role == TOOL)
        assert result.text.endswith(context.CUT_NOTE)
        assert len(result.text) < 4_000
        assert len(log.state.context.messages[-1].text) == 40_000

    def test_the_state_is_never_changed(self) -> None:
        log = conversation(5, question="x" * 400, result="4" * 4_000)
        before = log.state.SerializeToString(deterministic=True)
        context.generate_request(log.state, AGENT, [], 100)
        context.summary_request(log.state, AGENT, 4)
        assert log.state.SerializeToString(deterministic=True) == before

    @given(budget_tokens=st.integers(1, 3_000), turns=st.integers(1, 6))
    def test_every_call_in_a_request_has_its_answer_and_the_question_stays(
        self, budget_tokens: int, turns: int
    ) -> None:
        log = conversation(turns, result="4" * 900)
        request = context.generate_request(log.state, AGENT, [], budget_tokens)
        messages = request.conversation.messages
        asked = [call.id for message in messages for call in message.tool_calls]
        assert asked == [message.tool_call_id for message in messages if message.role == TOOL]
        assert questions_of(request.conversation)[-1] == f"what? {turns - 1}"

    def test_a_summary_stands_behind_the_instructions(self) -> None:
        state = session_pb2.SessionState(name=SESSION, summary="They met.")
        assert context.instructions(state, AGENT) == (
            f"Be brief.\n\n{context.SUMMARY_PREFACE}\nThey met."
        )
        bare = session_pb2.SessionState(name=SESSION)
        assert context.fixed_tokens(state, AGENT, []) > context.fixed_tokens(bare, AGENT, [])

    def test_tools_take_room_too(self) -> None:
        state = session_pb2.SessionState(name=SESSION)
        tool = models_pb2.ToolDefinition(description="d" * 40, parameters_json_schema="s" * 40)
        without, with_two = (
            context.fixed_tokens(state, AGENT, tools) for tools in ([], [tool, tool])
        )
        assert with_two - without == 2 * (11 + 11)


class TestCompaction:
    @given(turns=st.integers(1, 8))
    def test_whole_turns_are_compacted_and_never_the_one_that_runs(self, turns: int) -> None:
        state = conversation(turns).state
        count = context.compactable(state)
        if turns == 1:
            assert count == 0
            return
        assert state.context.messages[count].role == USER
        assert 0 < count <= len(state.context.messages) - 3
        assert count >= len(state.context.messages) // 2 - 4

    def test_nothing_is_compacted_of_nothing(self) -> None:
        assert context.compactable(session_pb2.SessionState()) == 0

    def test_the_summary_is_asked_for_what_goes_and_no_more(self) -> None:
        state = conversation(3).state
        request = context.summary_request(state, AGENT, 4)
        assert list(request.conversation.messages[:-1]) == list(state.context.messages[:4])
        assert request.conversation.messages[-1].text == context.SUMMARISE
        assert request.parameters.output_tokens_max == context.SUMMARY_TOKENS_MAX
        assert not request.tools


class TestFixedArguments:
    TOOL = tools_pb2.Tool(
        name="tenants/default/tools/search",
        description="Searches.",
        parameters_json_schema=orjson.dumps(
            {
                "type": "object",
                "properties": {"collection": {"type": "string"}, "query": {"type": "string"}},
                "required": ["collection", "query"],
            }
        ).decode(),
    )

    def test_the_model_does_not_see_them(self) -> None:
        seen = context.definition(self.TOOL, '{"collection": "handbook"}')
        assert (seen.name, seen.description) == ("search", "Searches.")
        assert orjson.loads(seen.parameters_json_schema) == {
            "type": "object",
            "properties": {"query": {"type": "string"}},
            "required": ["query"],
        }

    def test_without_them_it_sees_the_whole_schema(self) -> None:
        seen = context.definition(self.TOOL, "")
        assert orjson.loads(seen.parameters_json_schema) == orjson.loads(
            self.TOOL.parameters_json_schema
        )

    def test_a_tool_without_a_schema_takes_an_object(self) -> None:
        seen = context.definition(tools_pb2.Tool(name="tenants/default/tools/now"), '{"zone": 1}')
        assert orjson.loads(seen.parameters_json_schema) == {"type": "object"}

    @pytest.mark.parametrize(
        ("given_json", "fixed_json", "expected"),
        [
            ('{"query": "q"}', '{"collection": "c"}', {"query": "q", "collection": "c"}),
            ('{"collection": "mine"}', '{"collection": "c"}', {"collection": "c"}),
            ("", '{"collection": "c"}', {"collection": "c"}),
            ('{"query": "q"}', "", {"query": "q"}),
            ("", "", {}),
        ],
    )
    def test_they_win_over_the_models(
        self, given_json: str, fixed_json: str, expected: dict[str, str]
    ) -> None:
        call = models_pb2.ToolCall(arguments_json=given_json)
        assert orjson.loads(context.arguments(call, fixed_json)) == expected

    @pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u2003"])
    def test_no_arguments_at_all_have_what_is_fixed(self, blank: str) -> None:
        call = models_pb2.ToolCall(arguments_json=blank)
        assert context.arguments(call, '{"collection": "c"}') == '{"collection":"c"}'

    @pytest.mark.parametrize(
        "text",
        ['{"n": 1e999}', '{"n": NaN}', '{"s": "\\ud800"}', '{"a":' * 2_000 + "1" + "}" * 2_000],
    )
    def test_what_another_parser_may_take_never_goes_without_what_is_fixed(self, text: str) -> None:
        """The tools' parser takes some of these, and would run the call without the agent's
        arguments."""
        call = models_pb2.ToolCall(arguments_json=text)
        with pytest.raises(json.JSONDecodeError):
            json.loads(context.arguments(call, '{"collection": "c"}'))

    @pytest.mark.parametrize("nonsense", ["{", "[1]", '"text"', "null"])
    def test_nonsense_is_left_for_the_tool_to_name(self, nonsense: str) -> None:
        call = models_pb2.ToolCall(arguments_json=nonsense)
        assert context.arguments(call, '{"collection": "c"}') == nonsense
