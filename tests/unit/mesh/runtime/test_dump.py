"""What a process tells of itself: nothing that could be a secret."""

import json

import grpc.aio
import pytest
from google.protobuf import json_format

from mesh.runtime import dump
from mesh.runtime.settings import RuntimeSettings


def test_settings_are_told_without_what_could_be_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.models.settings import ModelsSettings

    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    in_use = RuntimeSettings(
        zone="north", nats_url="nats://user:hidden@127.0.0.1", redis_url="redis://u:hidden@h"
    )
    told = json_format.MessageToDict(dump.settings_told((in_use, ModelsSettings())))
    assert told["runtime"]["zone"] == "north"
    assert told["runtime"]["grpc_port"] == 50051
    assert told["runtime"]["nats_url"] == "(set)"
    assert {"rpc", "tls", "security"} <= told.keys()
    assert "hidden" not in json.dumps(told)


async def test_grpcs_own_view_of_its_channels_and_servers_is_there() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        told = json_format.MessageToDict(dump.channelz())
    await server.stop(None)
    assert any(f":{port}" in each["data"]["target"] for each in told["channels"])
    assert told["servers"]
    assert told["subchannels"]


def test_versions_are_those_that_run() -> None:
    assert dump.versions()["grpcio"] == grpc.__version__
