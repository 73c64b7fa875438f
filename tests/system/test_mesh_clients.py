"""A client of the mesh that isn't one of Weft's processes: gRPC's own, by what the command
`weft mesh bootstrap` prints, over plain text and over mutual TLS."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.examples import go_example
from tests.support.processes import line_of, running
from tests.support.weft_up import WeftUp, weft, weft_up

__all__ = ["go_example"]

pytestmark = pytest.mark.timeout(180)
OPTIONS = ("--processes", "2", "--port", "0", "--http-port", "0", "--data-dir")
SECONDS_MAX = 60.0


@asynccontextmanager
async def calling(
    bootstrap: str, up: WeftUp, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A client that calls all the time, started with the bootstrap."""
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap)
    async with running("tests.support.mesh_client") as client:
        assert client.stdin is not None
        client.stdin.write(f"{up.said['api_key']}\n".encode())
        yield client


async def lap(client: asyncio.subprocess.Process, calls_min: int) -> dict[str, int]:
    """What came of so many calls or more."""
    counted: dict[str, int] = {}
    async with asyncio.timeout(SECONDS_MAX):
        while counted.get("answered", 0) < calls_min:
            assert client.stdin is not None
            client.stdin.write(b"\n")
            for outcome, count in json.loads(await line_of(client)).items():
                counted[outcome] = counted.get(outcome, 0) + count
            await asyncio.sleep(0.05)
    return counted


async def test_it_reaches_every_service_and_notices_no_process_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with weft_up(tmp_path / "log", *OPTIONS, tmp_path / "data") as up:
        printed = up.weft("mesh", "bootstrap", "--node", "a-client")
        assert printed.code == 0, printed.err
        async with calling(printed.out, up, monkeypatch) as client:
            assert set(await lap(client, 20)) == {"answered"}
            # The first has the collections, and nobody else while it is gone.
            second: Any = up.said["processes"]
            os.kill(second[1]["pid"], signal.SIGKILL)
            assert set(await lap(client, 200)) == {"answered"}


async def test_it_needs_a_certificate_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "secrets"
    for arguments in (["init"], ["issue"], ["issue", "--client", "ci"]):
        assert weft("ca", *arguments, "--secrets-dir", secrets).code == 0
    certificates = secrets / "ca" / "certificates"
    variables = {
        "WEFT_TLS_CERTIFICATE_DIR": str(certificates / "host"),
        "WEFT_SECURITY_SECRETS_DIR": str(secrets),
    }
    with weft_up(tmp_path / "log", *OPTIONS, tmp_path / "data", **variables) as up:
        by_tls = {"WEFT_CA_FILE": str(certificates / "host" / "bundle.pem")}
        refused = up.weft("mesh", "bootstrap", **by_tls)
        assert refused.code == 2
        assert "--certificates" in refused.err
        own = ("--certificates", secrets / "ca" / "clients" / "ci")
        printed = up.weft("mesh", "bootstrap", *own, **by_tls)
        assert printed.code == 0, printed.err
        async with calling(printed.out, up, monkeypatch) as client:
            assert set(await lap(client, 20)) == {"answered"}
        bare = json.loads(printed.out)
        for server in bare["xds_servers"]:
            server["channel_creds"] = [{"type": "insecure"}]
        async with calling(json.dumps(bare), up, monkeypatch) as client:
            assert client.stdin is not None
            await asyncio.sleep(1)
            client.stdin.write(b"\n")
            assert "answered" not in json.loads(await line_of(client))
        # By the name that they dial it by, xDS clients find no other certificate.
        assert "No match found for server name" not in up.log


async def test_a_client_in_go_has_a_certificate_of_its_own_and_may_what_its_key_may(
    tmp_path: Path,
    go_example: Path,
) -> None:
    secrets = tmp_path / "secrets"
    for arguments in (["init"], ["issue", "--name", "one"], ["issue", "--client", "go"]):
        assert weft("ca", *arguments, "--secrets-dir", secrets).code == 0
    variables = {
        "WEFT_TLS_CERTIFICATE_DIR": str(secrets / "ca" / "certificates" / "one"),
        "WEFT_SECURITY_SECRETS_DIR": str(secrets),
    }
    with weft_up(tmp_path / "log", *OPTIONS, tmp_path / "data", **variables) as up:
        by_tls = {"WEFT_CA_FILE": str(secrets / "ca" / "bundle.pem")}
        own = ("--certificates", secrets / "ca" / "clients" / "go")
        printed = up.weft("mesh", "bootstrap", *own, **by_tls)
        assert (printed.code, printed.err) == (0, "")

        async def outcome(key: str) -> str:
            """What its first call comes to."""
            environment = {"GRPC_XDS_BOOTSTRAP_CONFIG": printed.out, "WEFT_API_KEY": key}
            client = await asyncio.create_subprocess_exec(
                *(go_example, "tenants/default", "20"),
                stdout=asyncio.subprocess.PIPE,
                env=os.environ | environment,
            )
            try:
                async with asyncio.timeout(SECONDS_MAX):
                    while True:
                        done = json.loads(await line_of(client))
                        if done["answered"]:
                            return "answered"
                        for failure in done["failed"]:
                            return str(failure)
            finally:
                client.kill()
                await client.wait()

        assert await outcome(str(up.said["api_key"])) == "answered"
        assert (await outcome("")).startswith("Unauthenticated: ")
