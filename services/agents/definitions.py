"""The RPCs of agents: their definitions and revisions."""

from collections import OrderedDict
from typing import TYPE_CHECKING

import orjson
from google.protobuf.field_mask_pb2 import FieldMask

from mesh.call import Call
from mesh.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from mesh.events.aggregate import Aggregate, Repository
from mesh.ids import new_id
from mesh.rpc.pages import read_page_number, read_page_token, write_page_token
from mesh.runtime.requests import request_hash
from services.agents import domain
from services.agents.read_model import AgentsReadModel
from weft.agents.v1 import agent_pb2, agent_service_pb2
from weft.state.v1 import session_pb2
from weft.tools.v1 import tool_service_pb2

if TYPE_CHECKING:
    from weft.tools.v1.tool_service_pb2_grpc import ToolServiceAsyncStub

PAGE_SIZE = 100
PINNED_MAX = 4_096
Definition = Aggregate[agent_pb2.AgentState]


class AgentDefinitions:
    """`weft.agents.v1.AgentService`."""

    def __init__(
        self,
        agents: Repository[agent_pb2.AgentState],
        read_model: AgentsReadModel,
        tools: "ToolServiceAsyncStub",
    ) -> None:
        self._agents = agents
        self._read_model = read_model
        self._tools = tools
        self._pinned: OrderedDict[tuple[str, int], agent_pb2.Agent] = OrderedDict()

    async def get_agent(
        self, request: agent_service_pb2.GetAgentRequest, call: Call
    ) -> agent_service_pb2.GetAgentResponse:
        """The agent, at a revision or its latest."""
        state = await self._open(request.name).load()
        agent = domain.revision(state, request.name, request.revision)
        return agent_service_pb2.GetAgentResponse(agent=agent)

    async def list_agents(
        self, request: agent_service_pb2.ListAgentsRequest, call: Call
    ) -> agent_service_pb2.ListAgentsResponse:
        """A page of the tenant's agents, by id."""
        size = request.page_size or PAGE_SIZE
        after = read_page_token(request.page_token, request.parent)
        agents = await self._read_model.agents(request.parent, after, size + 1)
        response = agent_service_pb2.ListAgentsResponse(agents=agents[:size])
        if len(agents) > size:
            response.next_page_token = write_page_token(agents[size - 1].name, request.parent)
        return response

    async def create_agent(
        self, request: agent_service_pb2.CreateAgentRequest, call: Call
    ) -> agent_service_pb2.CreateAgentResponse:
        """Makes the agent."""
        _check(request.spec, "spec")
        name = f"{request.parent}/agents/{request.agent_id}"
        command = domain.CreateAgent(
            agent=name,
            spec=request.spec,
            request_id=request.request_id or new_id(),
            request_hash=request_hash(request),
        )
        await self._check_tools(command, request.spec, "spec", call)
        return agent_service_pb2.CreateAgentResponse(agent=await self._change(name, command))

    async def update_agent(
        self, request: agent_service_pb2.UpdateAgentRequest, call: Call
    ) -> agent_service_pb2.UpdateAgentResponse:
        """Makes another revision."""
        _check(request.agent.spec, "agent.spec")
        mask = _spec_mask(request.update_mask)

        def change(spec: agent_pb2.AgentSpec) -> agent_pb2.AgentSpec:
            if not mask.paths:
                return request.agent.spec
            changed = agent_pb2.AgentSpec()
            changed.CopyFrom(spec)
            mask.MergeMessage(request.agent.spec, changed, True, True)
            return changed

        name = request.agent.name
        command = domain.UpdateAgent(
            agent=name,
            etag=request.agent.etag,
            change=change,
            request_id=request.request_id or new_id(),
            request_hash=request_hash(request),
        )
        await self._check_tools(command, request.agent.spec, "agent.spec", call)
        return agent_service_pb2.UpdateAgentResponse(agent=await self._change(name, command))

    async def delete_agent(
        self, request: agent_service_pb2.DeleteAgentRequest, call: Call
    ) -> agent_service_pb2.DeleteAgentResponse:
        """Deletes the agent; its sessions stay readable."""
        command = domain.DeleteAgent(
            agent=request.name,
            etag=request.etag,
            request_id=request.request_id or new_id(),
            request_hash=request_hash(request),
        )
        await self._change(request.name, command)
        return agent_service_pb2.DeleteAgentResponse()

    async def list_agent_revisions(
        self, request: agent_service_pb2.ListAgentRevisionsRequest, call: Call
    ) -> agent_service_pb2.ListAgentRevisionsResponse:
        """A page of the agent's revisions, newest first."""
        state = await self._open(request.name).load()
        domain.revision(state, request.name, min(1, len(state.revisions)))
        latest = len(state.revisions)
        below = read_page_number(request.page_token, request.name, latest) or latest + 1
        size = request.page_size or PAGE_SIZE
        first = max(0, below - 1 - size)
        page = state.revisions[first : below - 1]
        response = agent_service_pb2.ListAgentRevisionsResponse(agents=reversed(page))
        if first:
            response.next_page_token = write_page_token(str(first + 1), request.name)
        return response

    async def pinned(self, session: session_pb2.SessionState) -> agent_pb2.Agent:
        """The agent's revision that a session is pinned to."""
        name = session.name.rsplit("/sessions/", 1)[0]
        key = (name, session.agent_revision)
        agent = self._pinned.get(key)
        if agent is None:
            definition = self._open(name)
            state = await definition.ready()
            if len(state.revisions) < session.agent_revision:
                state = await definition.load()
            agent = self._pinned[key] = agent_pb2.Agent()
            agent.CopyFrom(domain.revision(state, name, session.agent_revision))
            if len(self._pinned) > PINNED_MAX:
                self._pinned.popitem(last=False)
        return agent

    async def runnable(self, session: session_pb2.SessionState) -> agent_pb2.Agent:
        """As `pinned`. Raises FailedPrecondition where the agent was deleted."""
        agent = await self.pinned(session)
        if (await self._open(agent.name).ready()).deleted:
            raise FailedPrecondition(
                f"agent {agent.name} was deleted", metadata={"resource": agent.name}
            )
        return agent

    async def _check_tools(
        self,
        command: domain.CreateAgent | domain.UpdateAgent,
        spec: agent_pb2.AgentSpec,
        path: str,
        call: Call,
    ) -> None:
        """Raises InvalidArgument where a bound tool isn't registered, or has no such
        argument as is fixed; PermissionDenied where the caller may not invoke it, since the
        agent does it for them. A request that was answered before isn't checked again."""
        state = await self._open(command.agent).load()
        if domain.find_request(state, command.request_id) is not None:
            return
        tenant = command.agent.rsplit("/agents/", 1)[0]
        for index, binding in enumerate(spec.tools):
            field = f"{path}.tools[{index}]"
            name = f"{tenant}/tools/{binding.tool}"
            _check_invoker(call, name)
            request = tool_service_pb2.GetToolRequest(name=name)
            try:
                tool = (await self._tools.GetTool(request)).tool
            except NotFound:
                raise InvalidArgument.of(
                    f"{field}.tool",
                    f"no tool {binding.tool} is registered; `weft tool list` shows what there is",
                ) from None
            known = orjson.loads(tool.parameters_json_schema or b"{}").get("properties", {})
            for argument in orjson.loads(binding.fixed_arguments_json or b"{}"):
                if argument not in known:
                    raise InvalidArgument.of(
                        f"{field}.fixed_arguments_json", f"{binding.tool} takes no {argument}"
                    )

    def _open(self, name: str) -> Definition:
        return self._agents.open(domain.agent_stream(name))

    async def _change(
        self, name: str, command: domain.CreateAgent | domain.UpdateAgent | domain.DeleteAgent
    ) -> agent_pb2.Agent:
        aggregate = self._open(name)
        await aggregate.execute(
            lambda state: domain.decide(state, command), request_id=command.request_id
        )
        answered = domain.find_request(aggregate.state, command.request_id)
        number = answered.agent_revision if answered else 0
        return domain.revision(aggregate.state, name, number)


def _check_invoker(call: Call, tool: str) -> None:
    # What another of Weft's services asks for was decided where the call came in.
    if call.principal is None or call.caller or call.principal.allows("tools.invoke", tool):
        return
    raise PermissionDenied(
        f"needs the permission tools.invoke for {tool}, which the agent would invoke",
        metadata={"permission": "tools.invoke", "resource": tool},
    )


def _spec_mask(mask: FieldMask) -> FieldMask:
    """The mask's paths within the spec. Raises InvalidArgument for any other path."""
    paths = []
    for path in mask.paths:
        head, _, rest = path.partition(".")
        known = rest.split(".")[0] in agent_pb2.AgentSpec.DESCRIPTOR.fields_by_name
        if head != "spec" or (rest and not known):
            raise InvalidArgument.of("update_mask", f"{path!r} isn't a field that can be changed")
        if not rest:
            return FieldMask()
        paths.append(rest)
    return FieldMask(paths=paths)


def _check(spec: agent_pb2.AgentSpec, path: str) -> None:
    """What the field options can't say. Raises InvalidArgument."""
    seen = set()
    for index, binding in enumerate(spec.tools):
        field = f"{path}.tools[{index}]"
        if binding.tool in seen:
            raise InvalidArgument.of(f"{field}.tool", f"{binding.tool} is bound twice")
        seen.add(binding.tool)
        if binding.fixed_arguments_json and not _is_object(binding.fixed_arguments_json):
            raise InvalidArgument.of(f"{field}.fixed_arguments_json", "isn't a JSON object")
    parameters = spec.parameters
    if not 0 <= parameters.temperature <= 2:
        raise InvalidArgument.of(f"{path}.parameters.temperature", "must be from 0 to 2")
    if parameters.HasField("top_p") and not 0 < parameters.top_p <= 1:
        raise InvalidArgument.of(f"{path}.parameters.top_p", "must be above 0, up to 1")


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
