"""Agents, tools, collections and models in memory: just what a client sees of them."""

import json
import math
from collections.abc import AsyncGenerator
from typing import TypeVar

from mesh.call import Call
from mesh.errors import AlreadyExists, Conflict, FailedPrecondition, NotFound, ToolUnavailable
from services.models.batches import generate_each
from weft.agents.v1 import agent_pb2
from weft.agents.v1 import agent_service_pb2 as agents
from weft.models.v1 import model_service_pb2 as models
from weft.models.v1 import models_pb2
from weft.options.v1 import options_pb2
from weft.tools.v1 import tool_service_pb2 as tools
from weft.tools.v1 import tools_pb2
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as vectors

T = TypeVar("T")


def page_of(entries: list[T], page_size: int, page_token: str) -> tuple[list[T], str]:
    """A page of the entries and the token of the next one (AIP-158)."""
    begin = int(page_token or 0)
    end = begin + (page_size or 100)
    return entries[begin:end], str(end) if end < len(entries) else ""


class MemoryAgents:
    """`weft.agents.v1.AgentService`: each agent is the list of its revisions."""

    def __init__(self) -> None:
        self._revisions: dict[str, list[agent_pb2.Agent]] = {}

    async def get_agent(self, request: agents.GetAgentRequest, _: Call) -> agents.GetAgentResponse:
        revisions = self._of(request.name)
        if request.revision > len(revisions):
            raise NotFound.of("agent revision", f"{request.name}@{request.revision}")
        return agents.GetAgentResponse(agent=revisions[request.revision - 1])

    async def list_agents(
        self, request: agents.ListAgentsRequest, _: Call
    ) -> agents.ListAgentsResponse:
        latest = [self._revisions[name][-1] for name in sorted(self._revisions)]
        page, token = page_of(latest, request.page_size, request.page_token)
        return agents.ListAgentsResponse(agents=page, next_page_token=token)

    async def create_agent(
        self, request: agents.CreateAgentRequest, _: Call
    ) -> agents.CreateAgentResponse:
        name = f"{request.parent}/agents/{request.agent_id}"
        if name in self._revisions:
            raise AlreadyExists(f"agent {name} is there already")
        return agents.CreateAgentResponse(agent=self._add(name, request.spec))

    async def update_agent(
        self, request: agents.UpdateAgentRequest, _: Call
    ) -> agents.UpdateAgentResponse:
        current = self._of(request.agent.name)[-1]
        if request.agent.etag and request.agent.etag != current.etag:
            raise Conflict("the agent changed since")
        return agents.UpdateAgentResponse(agent=self._add(current.name, request.agent.spec))

    async def delete_agent(
        self, request: agents.DeleteAgentRequest, _: Call
    ) -> agents.DeleteAgentResponse:
        self._of(request.name)
        del self._revisions[request.name]
        return agents.DeleteAgentResponse()

    async def list_agent_revisions(
        self, request: agents.ListAgentRevisionsRequest, _: Call
    ) -> agents.ListAgentRevisionsResponse:
        newest_first = self._of(request.name)[::-1]
        page, token = page_of(newest_first, request.page_size, request.page_token)
        return agents.ListAgentRevisionsResponse(agents=page, next_page_token=token)

    def _of(self, name: str) -> list[agent_pb2.Agent]:
        if name not in self._revisions:
            raise NotFound.of("agent", name)
        return self._revisions[name]

    def _add(self, name: str, spec: agent_pb2.AgentSpec) -> agent_pb2.Agent:
        revisions = self._revisions.setdefault(name, [])
        revision = len(revisions) + 1
        agent = agent_pb2.Agent(name=name, revision=revision, spec=spec, etag=f"etag-{revision}")
        agent.update_time.FromSeconds(1_700_000_000 + revision)
        revisions.append(agent)
        return agent


class MemoryTools:
    """`weft.tools.v1.ToolService`: a built-in tool `sum`, and what is registered."""

    def __init__(self) -> None:
        self._tools = {
            "tenants/default/tools/sum": tools_pb2.Tool(
                name="tenants/default/tools/sum",
                description="Adds numbers.",
                parameters_json_schema='{"type": "object"}',
                effect=options_pb2.EFFECT_READ,
                builtin=tools_pb2.BuiltinTool(),
            )
        }

    async def get_tool(self, request: tools.GetToolRequest, _: Call) -> tools.GetToolResponse:
        return tools.GetToolResponse(tool=self._of(request.name))

    async def list_tools(self, request: tools.ListToolsRequest, _: Call) -> tools.ListToolsResponse:
        return tools.ListToolsResponse(tools=self._tools.values())

    async def register_tool(
        self, request: tools.RegisterToolRequest, _: Call
    ) -> tools.RegisterToolResponse:
        if request.grpc.address.endswith(":1"):
            raise ToolUnavailable(f"{request.grpc.address} can't be reached", retry_seconds=2)
        tool = tools_pb2.Tool(
            name=f"{request.parent}/tools/{request.tool_id}",
            description=request.description,
            effect=request.effect,
            requires_approval=request.requires_approval,
            timeout=request.timeout,
            cache_ttl=request.cache_ttl if request.HasField("cache_ttl") else None,
            grpc=request.grpc if request.HasField("grpc") else None,
            function=request.function if request.HasField("function") else None,
            parameters_json_schema=request.parameters_json_schema,
            trust=request.trust,
            required_scopes=request.required_scopes,
        )
        self._tools[tool.name] = tool
        return tools.RegisterToolResponse(tool=tool)

    async def delete_tool(
        self, request: tools.DeleteToolRequest, _: Call
    ) -> tools.DeleteToolResponse:
        self._of(request.name)
        del self._tools[request.name]
        return tools.DeleteToolResponse()

    async def invoke_tool(
        self, request: tools.InvokeToolRequest, _: Call
    ) -> tools.InvokeToolResponse:
        self._of(request.name)
        numbers = json.loads(request.arguments_json).get("numbers")
        if numbers is None:
            return tools.InvokeToolResponse(content="numbers is missing", is_error=True)
        return tools.InvokeToolResponse(content=str(math.fsum(numbers)))

    def _of(self, name: str) -> tools_pb2.Tool:
        if name not in self._tools:
            raise NotFound.of("tool", name)
        return self._tools[name]


class MemoryCollections:
    """`weft.vectors.v1.VectorService`: every document is one passage."""

    def __init__(self) -> None:
        self._collections: dict[str, dict[str, collections_pb2.Document]] = {}
        self.upserts: list[vectors.UpsertDocumentsRequest] = []

    async def create_collection(
        self, request: vectors.CreateCollectionRequest, _: Call
    ) -> vectors.CreateCollectionResponse:
        name = f"{request.parent}/collections/{request.collection_id}"
        if name in self._collections:
            raise AlreadyExists(f"collection {name} is there already")
        self._collections[name] = {}
        return vectors.CreateCollectionResponse(collection=self._resource(name))

    async def get_collection(
        self, request: vectors.GetCollectionRequest, _: Call
    ) -> vectors.GetCollectionResponse:
        return vectors.GetCollectionResponse(collection=self._resource(request.name))

    async def list_collections(
        self, request: vectors.ListCollectionsRequest, _: Call
    ) -> vectors.ListCollectionsResponse:
        found = [self._resource(name) for name in sorted(self._collections)]
        page, token = page_of(found, request.page_size, request.page_token)
        return vectors.ListCollectionsResponse(collections=page, next_page_token=token)

    async def delete_collection(
        self, request: vectors.DeleteCollectionRequest, _: Call
    ) -> vectors.DeleteCollectionResponse:
        self._resource(request.name)
        del self._collections[request.name]
        return vectors.DeleteCollectionResponse()

    async def upsert_documents(
        self, request: vectors.UpsertDocumentsRequest, _: Call
    ) -> vectors.UpsertDocumentsResponse:
        self._resource(request.name)
        self.upserts.append(request)
        self._collections[request.name].update({d.uri: d for d in request.documents})
        count = len(request.documents)
        return vectors.UpsertDocumentsResponse(document_count=count, passage_count=count)

    async def search(self, request: vectors.SearchRequest, _: Call) -> vectors.SearchResponse:
        self._resource(request.name)
        hits = [
            collections_pb2.Passage(uri=d.uri, line=1, text=d.text, score=1.0)
            for d in self._collections[request.name].values()
            if request.query in d.text
        ]
        return vectors.SearchResponse(passages=hits[: request.passages_max or 8])

    def _resource(self, name: str) -> collections_pb2.Collection:
        if name not in self._collections:
            raise NotFound.of("collection", name)
        count = len(self._collections[name])
        return collections_pb2.Collection(name=name, document_count=count, passage_count=count)


class MemoryModels:
    """`weft.models.v1.ModelService`: lists the offline model, and answers with an echo; what
    is asked to fail does."""

    async def batch_generate(
        self, request: models.BatchGenerateRequest, _: Call
    ) -> AsyncGenerator[models.BatchGenerateResponse, None]:
        async for outcome in generate_each(request.requests, _echo, 2):
            yield outcome

    async def list_models(
        self, request: models.ListModelsRequest, _: Call
    ) -> models.ListModelsResponse:
        model = models_pb2.Model(
            id="builtin/extractive",
            description="Offline: quotes passages.",
            context_tokens_max=8192,
            is_default=True,
        )
        return models.ListModelsResponse(models=[model])


async def _echo(request: models.GenerateRequest) -> models.GenerateResponse:
    text = request.conversation.messages[-1].text
    if text == "fail":
        raise FailedPrecondition("no")
    message = models_pb2.Message(role=models_pb2.ROLE_ASSISTANT, text=text)
    return models.GenerateResponse(message=message, model=request.model)
