"""How handlers are bound, and what stands around them in which order."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mesh.errors import Internal
from mesh.rpc.local import LocalChannel
from mesh.rpc.methods import Handler, MethodSpec, method_of, methods_of, service_of, snake_case
from mesh.rpc.pipeline import bind, default_deadline
from mesh.rpc.settings import RpcSettings
from tests.support.edge import interceptors
from weft.agents.v1 import agent_service_pb2, turn_service_pb2
from weft.options.v1 import options_pb2

GET_AGENT = "/weft.agents.v1.AgentService/GetAgent"
RUN_TURN = "/weft.agents.v1.TurnService/RunTurn"
REQUEST = agent_service_pb2.GetAgentRequest(name="tenants/default/agents/bot")
TURN = turn_service_pb2.RunTurnRequest(
    session="tenants/default/agents/bot/sessions/s1", input="hello"
)
SETTINGS = RpcSettings()


class Agents:
    async def get_agent(self, request: Any, call: Any) -> Any:
        return agent_service_pb2.GetAgentResponse()


class Turns:
    async def run_turn(self, request: Any, call: Any) -> AsyncGenerator[Any, None]:
        yield turn_service_pb2.RunTurnResponse()


class WrongAnswers:
    async def get_agent(self, request: Any, call: Any) -> Any:
        return agent_service_pb2.ListAgentsResponse()

    async def run_turn(self, request: Any, call: Any) -> AsyncGenerator[Any, None]:
        yield None


class Passing:
    """An interceptor that writes down when it is passed."""

    def __init__(self, name: str, passed: list[str]) -> None:
        self._name = name
        self._passed = passed

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        def passing(request: Any, call: Any) -> Any:
            self._passed.append(self._name)
            return inner(request, call)

        return passing

    stream = unary


def test_the_order_of_interceptors_is_the_projects() -> None:
    names = [type(each).__name__ for each in interceptors(SETTINGS)]
    assert names == [
        *("Trace", "Metrics", "Errors", "Limits", "PeerIdentity", "Authenticate"),
        *("RateLimit", "Decode", "Authorize", "Deadline", "Validate"),
    ]


@pytest.mark.parametrize(
    ("service", "handlers", "path", "request_message"),
    [
        ("weft.agents.v1.AgentService", Agents(), GET_AGENT, REQUEST),
        ("weft.agents.v1.TurnService", Turns(), RUN_TURN, TURN),
    ],
)
async def test_interceptors_are_passed_in_the_order_in_which_they_are_given(
    service: str, handlers: object, path: str, request_message: Any
) -> None:
    passed: list[str] = []
    interceptors = [Passing(name, passed) for name in ("first", "second", "third")]
    channel = LocalChannel(bind({service: handlers}, interceptors, SETTINGS))
    answer = channel.callable_of(path)(request_message)
    await (anext(answer) if hasattr(answer, "__anext__") else answer)
    assert passed == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("service", "path", "request_message"),
    [
        ("weft.agents.v1.AgentService", GET_AGENT, REQUEST),
        ("weft.agents.v1.TurnService", RUN_TURN, TURN),
    ],
)
async def test_an_answer_of_another_type_is_a_fault(
    service: str, path: str, request_message: Any
) -> None:
    endpoints = bind({service: WrongAnswers()}, interceptors(SETTINGS), SETTINGS)
    answer = LocalChannel(endpoints).callable_of(path)(request_message)
    with pytest.raises(Internal):
        await (anext(answer) if hasattr(answer, "__anext__") else answer)


@pytest.mark.parametrize(
    ("service", "handlers"),
    [("weft.agents.v1.TurnService", Agents), ("weft.agents.v1.AgentService", Turns)],
)
def test_a_handler_of_the_wrong_kind_is_refused_when_it_is_bound(
    service: str, handlers: type
) -> None:
    implementation = handlers()
    implementation.run_turn, implementation.get_agent = Agents().get_agent, Turns().run_turn
    with pytest.raises(TypeError, match="must be"):
        bind({service: implementation}, (), SETTINGS)


def test_a_contract_that_is_not_known_is_refused() -> None:
    with pytest.raises(LookupError):
        bind({"weft.nothing.v1.NothingService": Agents()}, (), SETTINGS)


@pytest.mark.parametrize(
    ("path", "seconds"),
    [(GET_AGENT, 5), ("/weft.agents.v1.AgentService/CreateAgent", 15), (RUN_TURN, 600)],
)
def test_the_default_deadline_follows_what_the_method_does(path: str, seconds: float) -> None:
    assert default_deadline(method_of(path), SETTINGS) == seconds


def test_a_method_is_described_by_its_contract() -> None:
    spec = method_of(RUN_TURN)
    assert (spec.service, spec.name, spec.attribute) == (
        "weft.agents.v1.TurnService",
        "RunTurn",
        "run_turn",
    )
    assert spec.request_class is turn_service_pb2.RunTurnRequest
    assert spec.response_class is turn_service_pb2.RunTurnResponse
    assert (spec.client_streaming, spec.server_streaming) == (False, True)
    assert spec.policy.permission == "agents.run"
    assert spec.policy.effect == options_pb2.EFFECT_IDEMPOTENT
    assert spec in methods_of(service_of("weft.agents.v1.TurnService"))


@pytest.mark.parametrize("path", ["/weft.agents.v1.AgentService/Nothing", "/nothing/Get", ""])
def test_a_path_of_no_method_is_a_lookup_error(path: str) -> None:
    with pytest.raises(LookupError):
        method_of(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("GetAgent", "get_agent"), ("ResolveInDoubt", "resolve_in_doubt"), ("GetJSON", "get_json")],
)
def test_method_names_become_snake_case(name: str, expected: str) -> None:
    assert snake_case(name) == expected
