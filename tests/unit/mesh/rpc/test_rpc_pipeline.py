"""How handlers are bound, and what stands around them in which order."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar
from time import monotonic
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import mesh.rpc.pipeline as pipeline_module
from mesh.call import Call
from mesh.errors import Internal
from mesh.rpc.local import LocalChannel
from mesh.rpc.methods import MethodSpec, method_of, methods_of, service_of, snake_case
from mesh.rpc.pipeline import Edge, Pipeline, bind, default_deadline
from mesh.rpc.rate_limiter import RateLimiter
from mesh.rpc.settings import RateLimitSettings, RpcSettings
from mesh.rpc.stages.authorize import Authorize
from mesh.rpc.stages.deadline import Deadlines
from mesh.rpc.stages.limits import Peers
from mesh.security.identity import Identity, ShownKey
from mesh.telemetry import traces
from tests.support.edge import TESTER, Doorkeeper, NoIdentities, pipeline
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
        return self.answer()

    def answer(self) -> Any:
        return agent_service_pb2.GetAgentResponse()


class Turns:
    async def run_turn(self, request: Any, call: Any) -> AsyncGenerator[Any, None]:
        yield self.answer()

    def answer(self) -> Any:
        return turn_service_pb2.RunTurnResponse()


class WrongAnswers:
    async def get_agent(self, request: Any, call: Any) -> Any:
        return agent_service_pb2.ListAgentsResponse()

    async def run_turn(self, request: Any, call: Any) -> AsyncGenerator[Any, None]:
        yield None


ORDER = [
    *("trace", "metrics", "limits", "peer identity", "authenticate", "rate limit"),
    *("decode", "authorize", "deadline", "validate", "handler"),
]


own: ContextVar[bool] = ContextVar("own", default=False)
"""Whether a call is of the test that looks."""


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the test's own calls meet on their way, in order."""
    steps: list[str] = []

    def noting(owner: Any, name: str, step: str) -> None:
        original = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            # Others may be answering calls in this process.
            if own.get() and step not in steps:
                steps.append(step)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    check_of = Authorize.check_of

    def checked(self: Authorize, spec: MethodSpec) -> Any:
        check = check_of(self, spec)

        def noted(request: Any, call: Call) -> None:
            if own.get():
                steps.append("authorize")
            check(request, call)

        return noted

    noting(traces, "active", "trace")
    noting(pipeline_module, "perf_counter", "metrics")
    noting(Peers, "admitted", "limits")
    noting(HandedOn, "verify", "peer identity")
    noting(Doorkeeper, "authenticate", "authenticate")
    noting(Doorkeeper, "recall", "authenticate")
    noting(RateLimiter, "take", "rate limit")
    noting(MethodSpec, "decode", "decode")
    monkeypatch.setattr(Authorize, "check_of", checked)
    noting(Deadlines, "alarm", "deadline")
    noting(pipeline_module, "validate", "validate")
    noting(Agents, "answer", "handler")
    noting(Turns, "answer", "handler")
    return steps


class HandedOn(NoIdentities):
    """Takes every identity for a gateway's that hands a call on."""

    def verify(self, text: str, method: str) -> Identity:
        return Identity(None, "gateway", ShownKey("tenants/default/apiKeys/tester", "s1"))


@pytest.mark.parametrize(
    ("key", "not_met"), [("authorization", "peer identity"), ("x-weft-identity", "rate limit")]
)
@pytest.mark.parametrize(
    ("service", "handlers", "path", "request_message"),
    [
        ("weft.agents.v1.AgentService", Agents(), GET_AGENT, REQUEST),
        ("weft.agents.v1.TurnService", Turns(), RUN_TURN, TURN),
    ],
)
async def test_a_call_meets_what_is_around_its_handler_in_the_projects_order(
    met: list[str],
    service: str,
    handlers: object,
    path: str,
    request_message: Any,
    key: str,
    not_met: str,
) -> None:
    limiter, callers = RateLimiter(RateLimitSettings()), {service: frozenset({"gateway"})}
    edge = Edge(Doorkeeper(TESTER), HandedOn(), limiter, callers)
    endpoints = bind({service: handlers}, Pipeline(CollectorRegistry(), SETTINGS, edge), SETTINGS)
    call = Call(path, monotonic() + 5, "r", peer="ipv4:127.0.0.1:1", metadata={key: "Bearer one"})
    own.set(True)
    answer = endpoints[path].invoke(request_message.SerializeToString(), call)
    if hasattr(answer, "__anext__"):
        async with aclosing(answer):
            await anext(answer)
    else:
        await answer
    assert met == [step for step in ORDER if step != not_met]


class Failing:
    async def get_agent(self, request: Any, call: Any) -> Any:
        raise ValueError("a secret")

    async def run_turn(self, request: Any, call: Any) -> AsyncGenerator[Any, None]:
        raise ValueError("a secret")
        yield


@pytest.mark.parametrize(
    ("service", "path", "request_message"),
    [
        ("weft.agents.v1.AgentService", GET_AGENT, REQUEST),
        ("weft.agents.v1.TurnService", RUN_TURN, TURN),
    ],
)
async def test_metrics_count_a_call_by_the_error_that_its_caller_gets(
    service: str, path: str, request_message: Any
) -> None:
    registry = CollectorRegistry()
    endpoints = bind({service: Failing()}, pipeline(SETTINGS, registry=registry), SETTINGS)
    answer = LocalChannel(endpoints).callable_of(path)(request_message)
    with pytest.raises(Internal) as raised:
        await (anext(answer) if hasattr(answer, "__anext__") else answer)
    assert "a secret" not in str(raised.value)
    labels = {"service": service, "method": path.rpartition("/")[2], "code": "INTERNAL"}
    assert registry.get_sample_value("weft_rpc_calls_total", labels) == 1


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
    endpoints = bind({service: WrongAnswers()}, pipeline(SETTINGS), SETTINGS)
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
        bind({service: implementation}, pipeline(SETTINGS), SETTINGS)


def test_a_contract_that_is_not_known_is_refused() -> None:
    with pytest.raises(LookupError):
        bind({"weft.nothing.v1.NothingService": Agents()}, pipeline(SETTINGS), SETTINGS)


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
