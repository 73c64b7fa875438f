"""The RPCs of agents, on a log in memory."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from mesh.call import Call
from mesh.clock import SYSTEM
from mesh.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RequestIdReused,
)
from mesh.events.aggregate import Repository
from mesh.events.memory import MemoryEventStore
from mesh.principal import Grant, Principal
from mesh.rpc.local import LocalChannel
from mesh.rpc.pages import write_page_token
from mesh.rpc.pipeline import Endpoint, bind
from mesh.rpc.settings import RpcSettings
from services.agents.definitions import AgentDefinitions
from services.agents.domain import AGENT_FOLD
from services.agents.read_model import AgentsReadModel
from services.tools.service import ToolsService
from services.tools.settings import ToolsSettings
from tests.support.cached import memory_cache
from tests.support.edge import pipeline
from tests.support.keys import memory_keyring
from weft.agents.v1 import agent_pb2, agent_service_pb2
from weft.functions.v1.function_service_pb2_grpc import FunctionServiceStub
from weft.models.v1 import models_pb2
from weft.state.v1 import session_pb2
from weft.tools.v1.tool_service_pb2_grpc import ToolServiceStub
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

NO_FOLDER = Path("/nonexistent")

PARENT = "tenants/default"
BOT = f"{PARENT}/agents/bot"
Spec = agent_pb2.AgentSpec
Binding = agent_pb2.ToolBinding


def a_call() -> Call:
    return Call("/weft.agents.v1.AgentService/Any", time.monotonic() + 10, "r1")


@pytest.fixture
async def definitions(tmp_path: Path) -> AsyncIterator[AgentDefinitions]:
    store = MemoryEventStore()
    read_model = AgentsReadModel(
        store, tmp_path / "agents.sqlite", lambda commits: None, memory_keyring()
    )
    await read_model.start()
    yield AgentDefinitions(Repository(store, AGENT_FOLD), read_model, tools_of(store))
    await read_model.stop()


def tools_of(store: MemoryEventStore) -> Any:
    """A stub of the real tools service, which has the built-in ones."""
    endpoints: dict[str, Endpoint] = {}
    channel: Any = LocalChannel(endpoints)
    vectors: Any = VectorServiceStub(channel)
    functions: Any = FunctionServiceStub(channel)
    service = ToolsService(
        *(ToolsSettings(), store, SYSTEM, vectors, memory_cache(), memory_keyring(), NO_FOLDER),
        functions=functions,
    )
    endpoints.update(bind(service.handlers, pipeline(RpcSettings()), RpcSettings()))
    return ToolServiceStub(channel)


async def create(
    definitions: AgentDefinitions,
    spec: agent_pb2.AgentSpec | None = None,
    *,
    agent_id: str = "bot",
    request_id: str = "",
) -> agent_pb2.Agent:
    request = agent_service_pb2.CreateAgentRequest(
        parent=PARENT, agent_id=agent_id, spec=spec or Spec(), request_id=request_id
    )
    return (await definitions.create_agent(request, a_call())).agent


async def update(
    definitions: AgentDefinitions, spec: Spec, *paths: str, etag: str = ""
) -> agent_pb2.Agent:
    request = agent_service_pb2.UpdateAgentRequest(
        agent=agent_pb2.Agent(name=BOT, spec=spec, etag=etag), update_mask=FieldMask(paths=paths)
    )
    return (await definitions.update_agent(request, a_call())).agent


async def get(definitions: AgentDefinitions, revision: int = 0) -> agent_pb2.Agent:
    request = agent_service_pb2.GetAgentRequest(name=BOT, revision=revision)
    return (await definitions.get_agent(request, a_call())).agent


class TestChanges:
    async def test_a_repeated_request_answers_what_it_answered_before(
        self, definitions: AgentDefinitions
    ) -> None:
        first = await create(definitions, Spec(instructions="one"), request_id="once")
        await update(definitions, Spec(instructions="two"))
        assert await create(definitions, Spec(instructions="one"), request_id="once") == first
        with pytest.raises(RequestIdReused):
            await create(definitions, Spec(instructions="other"), request_id="once")

    async def test_who_binds_a_tool_must_be_one_who_may_invoke_it(
        self, definitions: AgentDefinitions
    ) -> None:
        given = frozenset({"agents.create", "agents.update"})
        grants = (
            Grant("r", given, PARENT),
            Grant("i", frozenset({"tools.invoke"}), f"{PARENT}/tools/calculator"),
        )
        call = a_call()
        call.principal = Principal(f"{PARENT}/apiKeys/k", "default", grants)
        request = agent_service_pb2.CreateAgentRequest(
            parent=PARENT, agent_id="bot", spec=Spec(tools=[Binding(tool="calculator")])
        )
        await definitions.create_agent(request, call)
        changed = agent_pb2.Agent(name=BOT, spec=Spec(tools=[Binding(tool="search")]))
        with pytest.raises(PermissionDenied) as raised:
            await definitions.update_agent(
                agent_service_pb2.UpdateAgentRequest(agent=changed), call
            )
        assert raised.value.metadata["resource"] == f"{PARENT}/tools/search"

    async def test_a_tool_that_is_not_there_is_told_with_how_to_see_those_that_are(
        self, definitions: AgentDefinitions
    ) -> None:
        with pytest.raises(InvalidArgument) as raised:
            await create(definitions, Spec(tools=[Binding(tool="current-time")]))
        (violation,) = raised.value.violations
        assert violation.field == "spec.tools[0].tool"
        assert violation.description == (
            "no tool current-time is registered; `weft tool list` shows what there is"
        )

    async def test_an_update_without_a_mask_replaces_all(
        self, definitions: AgentDefinitions
    ) -> None:
        await create(definitions, Spec(instructions="one", display_name="Bot"))
        updated = await update(definitions, Spec(instructions="two"))
        assert updated.spec == Spec(instructions="two")
        assert updated.revision == 2

    async def test_an_update_with_a_mask_changes_what_it_names(
        self, definitions: AgentDefinitions
    ) -> None:
        tools = [Binding(tool="calculator")]
        await create(definitions, Spec(instructions="one", display_name="Bot", tools=tools))
        change = Spec(instructions="two", tools=[Binding(tool="search")])
        updated = await update(definitions, change, "spec.instructions", "spec.tools")
        assert updated.spec.instructions == "two"
        assert updated.spec.display_name == "Bot"
        assert [binding.tool for binding in updated.spec.tools] == ["search"]

    @pytest.mark.parametrize("paths", [("spec",), ("spec.display_name", "spec")])
    async def test_a_mask_with_the_whole_spec_replaces_all(
        self, definitions: AgentDefinitions, paths: tuple[str, ...]
    ) -> None:
        await create(definitions, Spec(instructions="one"))
        assert (await update(definitions, Spec(display_name="Bot"), *paths)).spec == Spec(
            display_name="Bot"
        )

    @pytest.mark.parametrize("path", ["name", "spec.nonsense", "revision", ""])
    async def test_a_mask_with_anything_else_is_refused(
        self, definitions: AgentDefinitions, path: str
    ) -> None:
        await create(definitions)
        with pytest.raises(InvalidArgument) as raised:
            await update(definitions, Spec(), path)
        assert raised.value.violations[0].field == "update_mask"

    @pytest.mark.parametrize(
        ("spec", "field"),
        [
            (Spec(tools=[Binding(tool="a"), Binding(tool="a")]), "spec.tools[1].tool"),
            (
                Spec(tools=[Binding(tool="a", fixed_arguments_json="[]")]),
                "spec.tools[0].fixed_arguments_json",
            ),
            (
                Spec(tools=[Binding(tool="a", fixed_arguments_json="{")]),
                "spec.tools[0].fixed_arguments_json",
            ),
            (
                Spec(parameters=models_pb2.Parameters(temperature=2.5)),
                "spec.parameters.temperature",
            ),
            (Spec(parameters=models_pb2.Parameters(top_p=1.5)), "spec.parameters.top_p"),
            (Spec(parameters=models_pb2.Parameters(top_p=0.0)), "spec.parameters.top_p"),
        ],
    )
    async def test_what_no_field_option_can_say_is_checked_with_its_path(
        self, definitions: AgentDefinitions, spec: agent_pb2.AgentSpec, field: str
    ) -> None:
        with pytest.raises(InvalidArgument) as raised:
            await create(definitions, spec)
        assert raised.value.violations[0].field == field
        with pytest.raises(InvalidArgument) as raised:
            await update(definitions, spec)
        assert raised.value.violations[0].field == f"agent.{field}"


class TestReading:
    async def test_revisions_are_listed_newest_first_in_pages(
        self, definitions: AgentDefinitions
    ) -> None:
        await create(definitions, Spec(instructions="1"))
        for number in range(2, 6):
            await update(definitions, Spec(instructions=f"{number}"))
        seen: list[int] = []
        token = ""
        while True:
            request = agent_service_pb2.ListAgentRevisionsRequest(
                name=BOT, page_size=2, page_token=token
            )
            page = await definitions.list_agent_revisions(request, a_call())
            seen += [agent.revision for agent in page.agents]
            token = page.next_page_token
            if not token:
                break
        assert seen == [5, 4, 3, 2, 1]

    @pytest.mark.parametrize("last", ["²", "0", "2", str(2**64), "x"])
    async def test_a_forged_token_of_revisions_is_refused(
        self, definitions: AgentDefinitions, last: str
    ) -> None:
        await create(definitions)
        request = agent_service_pb2.ListAgentRevisionsRequest(
            name=BOT, page_token=write_page_token(last, BOT)
        )
        with pytest.raises(InvalidArgument, match="page_token"):
            await definitions.list_agent_revisions(request, a_call())

    async def test_agents_are_listed_by_name_in_pages(self, definitions: AgentDefinitions) -> None:
        for agent_id in ("c", "a", "b"):
            await create(definitions, agent_id=agent_id)
        request = agent_service_pb2.ListAgentsRequest(parent=PARENT, page_size=2)
        first = await definitions.list_agents(request, a_call())
        request.page_token = first.next_page_token
        second = await definitions.list_agents(request, a_call())
        names = [agent.name[-1] for page in (first, second) for agent in page.agents]
        assert names == ["a", "b", "c"]
        assert not second.next_page_token

    async def test_a_deleted_agent_is_gone_but_for_its_revisions(
        self, definitions: AgentDefinitions
    ) -> None:
        await create(definitions, Spec(instructions="one"))
        request = agent_service_pb2.DeleteAgentRequest(name=BOT)
        await definitions.delete_agent(request, a_call())
        with pytest.raises(NotFound):
            await get(definitions)
        assert (await get(definitions, 1)).spec.instructions == "one"
        listed = await definitions.list_agents(
            agent_service_pb2.ListAgentsRequest(parent=PARENT), a_call()
        )
        assert not listed.agents


class TestPinning:
    SESSION = session_pb2.SessionState(name=f"{BOT}/sessions/s1", agent_revision=1)

    async def test_a_session_keeps_the_revision_that_it_began_with(
        self, definitions: AgentDefinitions
    ) -> None:
        await create(definitions, Spec(instructions="one"))
        await update(definitions, Spec(instructions="two"))
        assert (await definitions.runnable(self.SESSION)).spec.instructions == "one"

    async def test_a_deleted_agent_runs_no_more_turns(self, definitions: AgentDefinitions) -> None:
        await create(definitions)
        await definitions.delete_agent(agent_service_pb2.DeleteAgentRequest(name=BOT), a_call())
        with pytest.raises(FailedPrecondition):
            await definitions.runnable(self.SESSION)
        assert (await definitions.pinned(self.SESSION)).name == BOT
