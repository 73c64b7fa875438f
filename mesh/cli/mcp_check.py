"""What `weft doctor` says of MCP servers."""

from collections.abc import Iterator

from mesh.cli.check import Check, Verdict
from mesh.cli.connection import Client
from mesh.cli.names import short_name

SECONDS = 5.0


def mcp_servers(client: Client) -> Iterator[Check]:
    """A check for each MCP server of the tenant that failed last, or one for all. Nothing where
    there are none, or where this client may not ask."""
    import grpc

    from weft.tools.v1 import mcp_server_service_pb2 as pb
    from weft.tools.v1 import mcp_servers_pb2
    from weft.tools.v1.mcp_server_service_pb2_grpc import McpServerServiceStub

    stub: McpServerServiceStub = client.stub(McpServerServiceStub)
    request = pb.ListMcpServersRequest(parent=client.parent, page_size=1_000)
    try:
        servers = client.call(stub.ListMcpServers, request, SECONDS).servers
    except grpc.RpcError:
        return
    failed = [
        each for each in servers if each.status.state == mcp_servers_pb2.MCP_SERVER_STATE_FAILED
    ]
    for server in failed:
        name = f"MCP server {short_name(server.name)}"
        yield Check(name, Verdict.WARN, f"failed: {server.status.reason}")
    if servers and not failed:
        yield Check("MCP servers", Verdict.OK, f"{len(servers)}, none has failed")
