"""What of a session goes to the model: pure, from the state and the agent."""

import json

import orjson

from services.state.domain import estimate_tokens
from weft.agents.v1 import agent_pb2
from weft.models.v1 import model_service_pb2, models_pb2
from weft.state.v1 import session_pb2
from weft.tools.v1 import tools_pb2

SUMMARY_PREFACE = "Summary of the earlier conversation:"
SUMMARISE = (
    "Summarise the conversation so far in a few sentences. Keep names, numbers, decisions "
    "and open questions. Write nothing else."
)
SUMMARY_TOKENS_MAX = 1_024
UNREADABLE = "what the model gave isn't a JSON object"
CUT_NOTE = "\n[cut: the result was longer than the context has room for]"


def generate_request(
    state: session_pb2.SessionState,
    agent: agent_pb2.Agent,
    tools: list[models_pb2.ToolDefinition],
    budget_tokens: int,
) -> model_service_pb2.GenerateRequest:
    """The call for the next step. Instructions, summary and tools always go in; of the
    messages, all, or if they don't fit in `budget_tokens`, the newest whole turns."""
    request = model_service_pb2.GenerateRequest(
        parent="/".join(state.name.split("/")[:2]),
        model=agent.spec.model,
        instructions=instructions(state, agent),
        tools=tools,
    )
    if agent.spec.HasField("parameters"):
        request.parameters.CopyFrom(agent.spec.parameters)
    request.conversation.CopyFrom(state.context)
    if state.context_tokens > budget_tokens:
        _fit(request.conversation, budget_tokens)
    return request


def instructions(state: session_pb2.SessionState, agent: agent_pb2.Agent) -> str:
    """The agent's instructions, and what was compacted away."""
    if not state.summary:
        return agent.spec.instructions
    return f"{agent.spec.instructions}\n\n{SUMMARY_PREFACE}\n{state.summary}"


def fixed_tokens(
    state: session_pb2.SessionState,
    agent: agent_pb2.Agent,
    tools: list[models_pb2.ToolDefinition],
) -> int:
    """Estimated tokens of what always goes in."""
    return estimate_tokens(instructions(state, agent)) + sum(
        estimate_tokens(tool.description) + estimate_tokens(tool.parameters_json_schema)
        for tool in tools
    )


def compactable(state: session_pb2.SessionState) -> int:
    """How many of the oldest messages a summary may replace: about half of them, whole
    turns, and never the turn that runs."""
    messages = state.context.messages
    starts = [i for i, message in enumerate(messages) if message.role == models_pb2.ROLE_USER]
    if len(starts) < 2:
        return 0
    half = len(messages) // 2
    return next((start for start in starts[1:-1] if start >= half), starts[-1])


def summary_request(
    state: session_pb2.SessionState, agent: agent_pb2.Agent, message_count: int
) -> model_service_pb2.GenerateRequest:
    """The call that summarises the first messages, together with the summary so far."""
    request = model_service_pb2.GenerateRequest(
        parent="/".join(state.name.split("/")[:2]),
        model=agent.spec.model,
        instructions=instructions(state, agent),
        parameters=models_pb2.Parameters(output_tokens_max=SUMMARY_TOKENS_MAX),
    )
    request.conversation.messages.extend(state.context.messages[:message_count])
    request.conversation.messages.add(role=models_pb2.ROLE_USER, text=SUMMARISE)
    return request


def definition(tool: tools_pb2.Tool, fixed_arguments_json: str) -> models_pb2.ToolDefinition:
    """A tool as the model sees it: without the arguments that the agent fixes."""
    schema = orjson.loads(tool.parameters_json_schema or b'{"type": "object"}')
    for name in orjson.loads(fixed_arguments_json or b"{}"):
        schema.get("properties", {}).pop(name, None)
        if name in schema.get("required", ()):
            schema["required"].remove(name)
    return models_pb2.ToolDefinition(
        name=tool.name.rsplit("/", 1)[1],
        description=tool.description,
        parameters_json_schema=orjson.dumps(schema).decode(),
    )


def arguments(call: models_pb2.ToolCall, fixed_arguments_json: str) -> str:
    """The call's arguments with those that the agent fixes, as JSON. Text that isn't a
    JSON object is left as it is: the tool says what is wrong with it."""
    if not fixed_arguments_json:
        return call.arguments_json or "{}"
    try:
        given = orjson.loads(call.arguments_json.strip() or b"{}")
    except orjson.JSONDecodeError:
        return _unread(call.arguments_json)
    if not isinstance(given, dict):
        return call.arguments_json
    return orjson.dumps(given | orjson.loads(fixed_arguments_json)).decode()


def _unread(text: str) -> str:
    """The text, if the tool can't read it either. Its parser takes some that ours doesn't, such
    as `1e999`, and would take them without what the agent fixes: in place of those it gets what
    no parser takes."""
    try:
        json.loads(text)
    except RecursionError:
        return UNREADABLE
    except ValueError:
        return text
    return UNREADABLE


def _fit(conversation: models_pb2.Conversation, budget_tokens: int) -> None:
    """Drops the oldest turns, then cuts the longest results of the newest one."""
    messages = conversation.messages
    starts = [i for i, message in enumerate(messages) if message.role == models_pb2.ROLE_USER]
    while len(starts) > 1 and _tokens(conversation) > budget_tokens:
        start = starts[1]
        del messages[:start]
        starts = [index - start for index in starts[1:]]
    excess = _tokens(conversation) - budget_tokens
    results = [message for message in messages if message.role == models_pb2.ROLE_TOOL]
    for message in sorted(results, key=lambda result: -len(result.text)):
        if excess <= 0:
            return
        kept = max(200, len(message.text) - excess * 4 - len(CUT_NOTE))
        if kept < len(message.text):
            excess -= (len(message.text) - kept) // 4
            message.text = message.text[:kept] + CUT_NOTE


def _tokens(conversation: models_pb2.Conversation) -> int:
    return sum(
        8 + estimate_tokens(message.text) + sum(len(c.arguments_json) for c in message.tool_calls)
        for message in conversation.messages
    )
