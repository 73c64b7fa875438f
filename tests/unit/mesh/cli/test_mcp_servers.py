"""`weft tool ...-mcp`, and what `add-grpc` takes of credentials."""

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from tests.support.command_line import Weft
from tests.support.mcp_tools import FAULTY_COMMAND

CANARY = "canary-3b2f"


def test_a_server_is_added_shown_listed_refreshed_and_deleted(weft: Weft, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{CANARY}\n")
    added = weft(
        "tool", "add-mcp", "s", "--secret-env", f"TOKEN=@{secret}", "--env", "PLACE=north",
        "--rule", "echo=read", "--rule", "echo=approval", "--rule", "crash=exclude",
        "--scope", "pay.send", "-o", "json",
        "--", *FAULTY_COMMAND,
    )  # fmt: skip
    assert added.code == 0, added.err
    server = added.data
    assert server["name"] == "tenants/default/mcpServers/s"
    assert server["effect"] == "EFFECT_IRREVERSIBLE"
    assert server["trust"] == "TRUST_UNTRUSTED"
    assert "tenants/default/tools/s-echo" in server["tools"]
    assert "tenants/default/tools/s-crash" not in server["tools"]
    assert server["required_scopes"] == ["pay.send"]
    rule = server["rules"][0]
    assert (rule["tool"], rule["effect"]) == ("echo", "EFFECT_READ")
    assert rule["requires_approval"] is True
    shown = weft("tool", "show-mcp", "s").out
    assert "PLACE=north" in shown
    assert "TOKEN (sealed)" in shown
    assert CANARY not in str(server) + shown
    header, row = weft("tool", "list-mcp").out.splitlines()
    assert header.split() == ["SERVER", "REACHED", "BY", "STATE", "REASON"]
    assert row.split()[0] == "s"
    assert "CONNECTED" in weft("tool", "refresh-mcp", "s").out
    assert "MCP servers" in weft("doctor").out
    assert weft("tool", "delete-mcp", "s").code == 0
    assert weft("tool", "show-mcp", "s").code == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["s"],
        ["s", "--url", "https://a.example/mcp", "--", "/bin/true"],
        ["s", "--url", "https://a.example/mcp", "--env", "A=b"],
        ["s", "--header", "A=b", "--", "/bin/true"],
        ["s", "--rule", "echo=sometimes", "--", "/bin/true"],
        ["s", "--env", "A", "--", "/bin/true"],
        ["No-Id", "--", "/bin/true"],
    ],
)
def test_what_it_cant_mean_is_a_usage_error(weft: Weft, arguments: list[str]) -> None:
    assert weft("tool", "add-mcp", *arguments).code == 2


def test_a_secret_isnt_taken_from_the_command_line(weft: Weft) -> None:
    ran = weft(
        *("tool", "add-mcp", "s", "--url", "https://a.example/mcp"),
        *("--secret-header", f"authorization={CANARY}"),
    )
    assert ran.code == 2
    assert "Write authorization=@FILE" in ran.err
    assert CANARY not in ran.err


def test_a_command_that_the_operator_doesnt_allow_is_told_so(weft: Weft) -> None:
    ran = weft("tool", "add-mcp", "s", "--", "/bin/true")
    assert ran.code == 1
    assert "WEFT_TOOLS_MCP_COMMANDS" in ran.err


def test_a_grpc_method_with_tls_metadata_and_descriptors(weft: Weft, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("files.binpb", "ca.pem", "key.pem", "token")}
    described = descriptor_pb2.FileDescriptorSet(
        file=[descriptor_pb2.FileDescriptorProto(name="a.proto", package="a")]
    )
    files["files.binpb"].write_bytes(described.SerializeToString())
    for name in ("ca.pem", "key.pem", "token"):
        files[name].write_text(f"text of {name}")
    tool = weft(
        "tool", "add-grpc", "localhost:9", "a.B/C", "--effect", "read",
        "--descriptors", str(files["files.binpb"]), "--tls-ca", str(files["ca.pem"]),
        "--metadata", "x-region=north", "--secret-metadata", f"authorization=@{files['token']}",
        "--tls-name", "weather.example", "-o", "json",
    ).data["grpc"]  # fmt: skip
    assert tool["descriptors"]["file"][0]["name"] == "a.proto"
    assert tool["tls"]["authority_certificates"] == "text of ca.pem"
    assert tool["tls"]["server_name"] == "weather.example"
    assert tool["metadata"][0]["value"] == "north"
    nonsense = weft(
        *("tool", "add-grpc", "localhost:9", "a.B/C", "--effect", "read"),
        *("--descriptors", str(files["token"])),
    )
    assert nonsense.code == 2
