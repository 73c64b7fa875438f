"""The ledger as tools of a platform."""

from google.protobuf.duration_pb2 import Duration

from tests.support.ledger_server import LEDGER
from tests.support.platform import TENANT, Platform
from weft.options.v1 import options_pb2
from weft.tools.v1 import tool_service_pb2, tools_pb2

CALL_SECONDS_MAX = 10.0


async def register_credit(
    platform: Platform,
    tool: str,
    address: str,
    effect: "options_pb2.Effect.ValueType",
    timeout_seconds: int = 5,
    trust: "tools_pb2.Trust.ValueType" = tools_pb2.TRUST_TRUSTED,
) -> None:
    """Makes the ledger's Credit the tool of that id."""
    request = tool_service_pb2.RegisterToolRequest(
        parent=TENANT,
        tool_id=tool,
        grpc=tools_pb2.GrpcTool(address=address, method=f"{LEDGER}/Credit"),
        effect=effect,
        timeout=Duration(seconds=timeout_seconds),
        trust=trust,
    )
    await platform.tools.RegisterTool(request, timeout=CALL_SECONDS_MAX)


def credit(tool: str, account: str = "ada", amount: int = 5) -> dict[str, object]:
    """A call of such a tool, for a plan."""
    return {"tool": tool, "arguments": {"account": account, "amount": str(amount)}}
