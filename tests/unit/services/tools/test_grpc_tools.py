"""Methods of gRPC servers that aren't Weft's as tools: gRPC's own health and reflection services,
with streams, TLS, credentials and descriptors from a file."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf import descriptor_pb2
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mesh.errors import FailedPrecondition, InvalidArgument, LimitExceeded, ToolUnavailable
from mesh.events.store import EVERYTHING
from mesh.security.certificates import KeyPair, pem_of
from services.tools.schema import ArgumentsRefused
from tests.support.certificates import authority, leaf, root_of
from tests.support.mcp_tools import PARENT, McpTools, a_call, mcp_tools
from weft.options.v1 import options_pb2
from weft.tools.v1 import secrets_pb2, tools_pb2
from weft.tools.v1 import tool_service_pb2 as pb

CHECK = "grpc.health.v1.Health/Check"
WATCH = "grpc.health.v1.Health/Watch"
REFLECT = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
CANARY = "canary-77aa01"


class Seen(grpc.aio.ServerInterceptor):
    """Keeps the metadata of calls; refuses those without `token`, where one is wanted."""

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.metadata: list[Mapping[str, Any]] = []

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        found = dict(details.invocation_metadata)
        self.metadata.append(found)
        if self.token and found.get("authorization") != f"Bearer {self.token}":
            return grpc.unary_unary_rpc_method_handler(_refuse)
        return await continuation(details)


async def _refuse(request: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")


@asynccontextmanager
async def healthy(
    seen: Seen | None = None,
    credentials: grpc.ServerCredentials | None = None,
    reflects: bool = True,
) -> AsyncIterator[str]:
    """A server of gRPC's own services; gives its address."""
    server = grpc.aio.server(interceptors=[seen] if seen else [])
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if reflects:
        names = ("grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


@pytest.fixture(scope="module")
async def tools(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[McpTools]:
    async with mcp_tools(tmp_path_factory.mktemp("grpc"), stream_items_max=3) as made:
        yield made


@pytest.fixture(scope="module")
async def address() -> AsyncIterator[str]:
    async with healthy() as found:
        yield found


async def register(
    tools: McpTools, tool_id: str, grpc_tool: tools_pb2.GrpcTool, **fields: Any
) -> tools_pb2.Tool:
    fields.setdefault("effect", options_pb2.EFFECT_READ)
    request = pb.RegisterToolRequest(parent=PARENT, tool_id=tool_id, grpc=grpc_tool, **fields)
    return (await tools.service.register_tool(request, a_call())).tool


class TestStreams:
    async def test_a_unary_method(self, tools: McpTools, address: str) -> None:
        await register(tools, "check", tools_pb2.GrpcTool(address=address, method=CHECK))
        assert await tools.said("check", {"service": ""}) == {"status": "SERVING"}
        unknown = await tools.invoke("check", {"service": "nobody"})
        assert unknown.is_error
        assert unknown.content.startswith("NOT_FOUND")

    async def test_what_a_server_streams_is_collected_until_the_time_is_over(
        self, tools: McpTools, address: str
    ) -> None:
        timeout = Duration(nanos=500_000_000)
        method = tools_pb2.GrpcTool(address=address, method=WATCH)
        await register(tools, "watch", method, timeout=timeout)
        response = await tools.invoke("watch", {"service": ""})
        first, note = response.content.splitlines()
        assert json.loads(first) == [{"status": "SERVING"}]
        assert note == "[cut: the stream went on behind 1 messages]"

    async def test_what_a_client_streams_is_an_array(self, tools: McpTools, address: str) -> None:
        tool = await register(tools, "reflect", tools_pb2.GrpcTool(address=address, method=REFLECT))
        schema = json.loads(tool.parameters_json_schema)
        assert schema["required"] == ["requests"]
        assert schema["properties"]["requests"]["maxItems"] == 3
        answers = await tools.said("reflect", {"requests": [{"list_services": "x"}] * 2})
        names = [each["name"] for each in answers[0]["list_services_response"]["service"]]
        assert len(answers) == 2
        assert "grpc.health.v1.Health" in names
        assert await tools.said("reflect", {"requests": []}) == []
        wrongs: list[Any] = [{}, {"requests": [{"no_such_field": 1}]}, {"requests": [{}] * 4}]
        for wrong in wrongs:
            with pytest.raises(ArgumentsRefused):
                await tools.invoke("reflect", wrong)


class TestDescriptors:
    async def test_a_server_without_reflection_is_described_by_a_file(
        self, tools: McpTools
    ) -> None:
        file = descriptor_pb2.FileDescriptorProto()
        described_by: Any = health_pb2.DESCRIPTOR
        described_by.CopyToProto(file)
        files = descriptor_pb2.FileDescriptorSet(file=[file])
        async with healthy(reflects=False) as address:
            bare = tools_pb2.GrpcTool(address=address, method=CHECK)
            with pytest.raises(FailedPrecondition, match="reflection"):
                await register(tools, "bare", bare)
            described = tools_pb2.GrpcTool(address=address, method=CHECK, descriptors=files)
            await register(tools, "described", described)
            assert await tools.said("described") == {"status": "SERVING"}

    async def test_descriptors_are_bounded_and_must_hold_together(self, tools: McpTools) -> None:
        file = descriptor_pb2.FileDescriptorProto
        many = [file(name=f"{index}.proto") for index in range(300)]
        lacking = [file(name="a.proto", dependency=["nowhere.proto"])]
        for files, error in ((many, LimitExceeded), (lacking, FailedPrecondition)):
            described = descriptor_pb2.FileDescriptorSet(file=files)
            wanted = tools_pb2.GrpcTool(address="h:1", method="a.B/C", descriptors=described)
            with pytest.raises(error):
                await register(tools, "x", wanted)

    async def test_messages_that_lead_ever_deeper_are_refused(self, tools: McpTools) -> None:
        file = descriptor_pb2.FileDescriptorProto(name="a.proto", package="a", syntax="proto3")
        for index in range(2_000):
            field = file.message_type.add(name=f"M{index}").field.add(name="f", number=1, label=1)
            field.type, field.type_name = field.TYPE_MESSAGE, f".a.M{min(index + 1, 1_999)}"
        method = file.service.add(name="S").method.add(name="C")
        method.input_type = method.output_type = ".a.M0"
        described = descriptor_pb2.FileDescriptorSet(file=[file])
        wanted = tools_pb2.GrpcTool(address="h:1", method="a.S/C", descriptors=described)
        with pytest.raises(LimitExceeded, match="too deep"):
            await register(tools, "x", wanted)


class TestCredentials:
    async def test_metadata_goes_with_each_call_and_its_secrets_are_nowhere_else(
        self, tools: McpTools
    ) -> None:
        seen = Seen(CANARY)
        async with healthy(seen) as address:
            method = tools_pb2.GrpcTool(address=address, method=CHECK)
            with pytest.raises(FailedPrecondition):
                await register(tools, "keyed", method)
            method.metadata.add(name="authorization", secret=f"Bearer {CANARY}")
            method.metadata.add(name="x-region", value="north")
            shown = [await register(tools, "keyed", method)]
            await tools.said("keyed", {}, idempotency_key="k1")
        got = seen.metadata[-1]
        assert (got["x-region"], got["idempotency-key"]) == ("north", "k1")
        request = pb.GetToolRequest(name=f"{PARENT}/tools/keyed")
        shown.append((await tools.service.get_tool(request, a_call())).tool)
        listing = pb.ListToolsRequest(parent=PARENT)
        shown += (await tools.service.list_tools(listing, a_call())).tools
        assert CANARY not in str(shown)
        assert not any(each.grpc.HasField("secrets") for each in shown)
        assert [each.is_secret for each in shown[0].grpc.metadata] == [True, False]
        store: Any = tools.events
        end = await store.last_position()
        commits = [await store.open(each) async for each in store.scan(EVERYTHING, 0, end)]
        stored = b"".join(each.commit.SerializeToString() for each in commits)
        assert b"keyed" in stored
        assert CANARY.encode() not in stored

    @pytest.mark.parametrize(
        "named",
        [
            {"name": "Authorization", "value": "x"},
            {"name": "idempotency-key", "value": "x"},
            {"name": "grpc-timeout", "value": "1S"},
            {"name": "key-bin", "value": "x"},
            {"name": "a", "value": "two\nlines"},
            {"name": "a", "value": "x", "secret": "y"},
        ],
    )
    async def test_metadata_that_isnt_the_callers_to_set_is_refused(
        self, tools: McpTools, named: Any
    ) -> None:
        method = tools_pb2.GrpcTool(
            address="h:1", method=CHECK, metadata=[secrets_pb2.NamedValue(**named)]
        )
        with pytest.raises(InvalidArgument):
            await register(tools, "x", method)

    async def test_tls_with_the_servers_authority_and_a_certificate_of_wefts(
        self, tools: McpTools, tmp_path: Path
    ) -> None:
        root = root_of(authority(tmp_path / "ca"))
        others = root_of(authority(tmp_path / "others"))
        theirs, ours = leaf(root, "spiffe://a.example/s"), leaf(root, "spiffe://a.example/c")
        key, chain = _pem(theirs)
        authorities = pem_of(root.certificate)
        pairs = [(key.encode(), chain.encode())]
        credentials = grpc.ssl_server_credentials(pairs, authorities.encode(), True)
        own_key, own_chain = _pem(ours)
        tls = tools_pb2.GrpcTls(
            authority_certificates=authorities,
            certificate=own_chain,
            private_key=own_key,
        )
        async with healthy(credentials=credentials) as address:
            method = tools_pb2.GrpcTool(address=address, method=CHECK, tls=tls)
            shown = await register(tools, "secure", method)
            assert await tools.said("secure") == {"status": "SERVING"}
            assert not shown.grpc.tls.private_key
            assert shown.grpc.tls.certificate
            unknown, bare = tools_pb2.GrpcTls(), tools_pb2.GrpcTls()
            unknown.CopyFrom(tls)
            unknown.authority_certificates = pem_of(others.certificate)
            bare.authority_certificates = authorities
            named = tools_pb2.GrpcTls(server_name="elsewhere.example")
            named.MergeFrom(tls)
            for wrong, told in (
                (unknown, "isn't trusted"),
                (named, "another name"),
                (bare, "no gRPC server answers"),
                (None, "no gRPC server answers"),
            ):
                method = tools_pb2.GrpcTool(address=address, method=CHECK, tls=wrong)
                with pytest.raises(ToolUnavailable, match=told):
                    await register(tools, "x", method)
            described = tools_pb2.GrpcTool(
                address=address, method=CHECK, tls=unknown, descriptors=shown.grpc.descriptors
            )
            await register(tools, "described", described)
            with pytest.raises(ToolUnavailable, match="isn't trusted"):
                await tools.invoke("described")

    @pytest.mark.parametrize("field", ["authority_certificates", "certificate", "private_key"])
    async def test_certificates_that_are_none_are_refused(
        self, tools: McpTools, field: str
    ) -> None:
        tls = tools_pb2.GrpcTls(**{field: "nonsense"})
        method = tools_pb2.GrpcTool(address="h:1", method=CHECK, tls=tls)
        with pytest.raises(InvalidArgument):
            await register(tools, "x", method)


def _pem(pair: KeyPair) -> tuple[str, str]:
    """Key and certificate."""
    key = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return key.decode(), pem_of(pair.certificate)
