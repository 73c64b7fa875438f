"""`weft agent`: agents and their revisions."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.agent_files import parse_agent
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import is_not_found
from mesh.cli.inputs import read_file
from mesh.cli.names import AGENT, resource_name, short_name
from mesh.cli.output import Output, moment, note, show_data, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch

if TYPE_CHECKING:
    from weft.agents.v1 import agent_pb2
    from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub

agents = typer.Typer(help="Apply, list, show and delete agents.", no_args_is_help=True)

AgentArgument = Annotated[
    str, typer.Argument(metavar="AGENT", help="The agent: an id or a full name.")
]


@command(agents, "apply", example="weft agent apply -f librarian.yaml")
def apply_agent(
    client: Client,
    file: Annotated[str, typer.Option("-f", "--file", help="YAML or JSON file; - is stdin.")],
) -> None:
    """Makes an agent what a file says: creates it, or gives it another revision.

    The file holds `agent` (its id) and the fields of its spec: display_name, model,
    instructions, tools, parameters, limits. Where nothing changed, no revision is made.
    """
    text, spec = parse_agent(read_file(file), "stdin" if file == "-" else file)
    name = resource_name(text, AGENT, client)
    current = _find(client, name)
    if current is None:
        outcome, agent = "created", _create(client, name, spec)
    elif current.spec == spec:
        outcome, agent = "unchanged", current
    else:
        outcome, agent = "updated", _update(client, current, spec)
    if client.output is Output.TABLE:
        sys.stdout.write(f"{short_name(agent.name)} {outcome}, revision {agent.revision}\n")
    else:
        data = {"outcome": outcome, "agent": agent.name, "revision": agent.revision}
        show_data(client.output, data)


@command(agents, "list", example="weft agent list -o json")
def list_agents(client: Client, limit: Limit = LIMIT) -> None:
    """Lists agents by id, each at its latest revision."""
    from weft.agents.v1 import agent_service_pb2 as pb

    request = pb.ListAgentsRequest(parent=client.parent)
    found = fetch(client, _stub(client).ListAgents, request, lambda page: page.agents, limit)
    columns = {
        "agent": lambda a: short_name(a.name),
        "revision": lambda a: a.revision,
        "model": lambda a: a.spec.model or "(default)",
        "tools": lambda a: " ".join(binding.tool for binding in a.spec.tools),
        "updated": lambda a: moment(a.update_time),
        "display name": lambda a: a.spec.display_name,
    }
    show_list(client.output, found, columns)


@command(agents, "show", example="weft agent show librarian --revision 2")
def show_agent(
    client: Client,
    agent: AgentArgument,
    revision: Annotated[int, typer.Option(help="Its revision; 0 is the latest.", min=0)] = 0,
) -> None:
    """Shows an agent, at its latest revision or one that is named."""
    from weft.agents.v1 import agent_service_pb2 as pb

    name = resource_name(agent, AGENT, client)
    request = pb.GetAgentRequest(name=name, revision=revision)
    _show(client, client.call(_stub(client).GetAgent, request).agent)


@command(agents, "revisions", example="weft agent revisions librarian")
def list_revisions(client: Client, agent: AgentArgument, limit: Limit = LIMIT) -> None:
    """Lists the revisions of an agent, newest first."""
    from weft.agents.v1 import agent_service_pb2 as pb

    request = pb.ListAgentRevisionsRequest(name=resource_name(agent, AGENT, client))
    found = fetch(
        client, _stub(client).ListAgentRevisions, request, lambda page: page.agents, limit
    )
    columns = {
        "revision": lambda a: a.revision,
        "made": lambda a: moment(a.update_time),
        "model": lambda a: a.spec.model or "(default)",
        "tools": lambda a: " ".join(binding.tool for binding in a.spec.tools),
    }
    show_list(client.output, found, columns)


@command(agents, "delete", example="weft agent delete librarian")
def delete_agent(client: Client, agent: AgentArgument) -> None:
    """Deletes an agent; its sessions and revisions can still be read."""
    from weft.agents.v1 import agent_service_pb2 as pb

    name = resource_name(agent, AGENT, client)
    client.call(_stub(client).DeleteAgent, pb.DeleteAgentRequest(name=name))
    note(f"deleted agent {short_name(name)}")


def _stub(client: Client) -> "AgentServiceStub":
    from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub

    stub: AgentServiceStub = client.stub(AgentServiceStub)
    return stub


def _find(client: Client, name: str) -> "agent_pb2.Agent | None":
    import grpc

    from weft.agents.v1 import agent_service_pb2 as pb

    try:
        return client.call(_stub(client).GetAgent, pb.GetAgentRequest(name=name)).agent
    except grpc.RpcError as error:
        if is_not_found(error):
            return None
        raise


def _create(client: Client, name: str, spec: "agent_pb2.AgentSpec") -> "agent_pb2.Agent":
    from weft.agents.v1 import agent_service_pb2 as pb

    parent, agent_id = name.split("/agents/")
    request = pb.CreateAgentRequest(parent=parent, agent_id=agent_id, spec=spec)
    return client.call(_stub(client).CreateAgent, request).agent


def _update(
    client: Client, current: "agent_pb2.Agent", spec: "agent_pb2.AgentSpec"
) -> "agent_pb2.Agent":
    from weft.agents.v1 import agent_pb2
    from weft.agents.v1 import agent_service_pb2 as pb

    agent = agent_pb2.Agent(name=current.name, etag=current.etag, spec=spec)
    request = pb.UpdateAgentRequest(agent=agent)
    return client.call(_stub(client).UpdateAgent, request).agent


def _show(client: Client, agent: "agent_pb2.Agent") -> None:
    spec = agent.spec
    fields = {
        "agent": short_name(agent.name),
        "revision": agent.revision,
        "display name": spec.display_name,
        "model": spec.model or "(default)",
        "instructions": spec.instructions,
        "tools": "\n".join(_tool(binding) for binding in spec.tools),
        "parameters": " ".join(str(spec.parameters).split()),
        "limits": " ".join(str(spec.limits).split()),
        "created": moment(agent.create_time),
        "updated": moment(agent.update_time),
        "etag": agent.etag,
    }
    show_message(client.output, agent, fields)


def _tool(binding: "agent_pb2.ToolBinding") -> str:
    approval = " (needs approval)" if binding.requires_approval else ""
    return f"{binding.tool} {binding.fixed_arguments_json}".rstrip() + approval
