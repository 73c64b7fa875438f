"""Blobs in whole processes: killed, short of disk, on a real S3 server, by the command line."""

import asyncio
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest

from mesh.rpc.status import is_send_failed
from tests.support.blobs import CHUNK_BYTES, requests, running_s3
from tests.support.eventually import eventually
from tests.support.platform import Platform, one_process
from tests.support.weft_up import weft
from weft.agents.v1 import agent_pb2
from weft.auth.v1 import audit_service_pb2
from weft.auth.v1.audit_service_pb2_grpc import AuditServiceStub
from weft.blobs.v1 import blob_service_pb2 as pb
from weft.blobs.v1.blob_service_pb2_grpc import BlobServiceStub
from weft.state.v1 import session_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

NAME = "tenants/default/blobs/report"
DATA = os.urandom(3_000_000)
LARGE_BYTES = 200 << 20
GROWTH_BYTES_MAX = 100 << 20
"""What a put and a get of 200 MiB may add to a process's memory: some windows and parts, and
what Python's allocator keeps of them."""

pytestmark = pytest.mark.timeout(300)


def stub(of: Platform) -> Any:
    return BlobServiceStub(of.open_channel)


async def put(of: Platform, data: bytes, name: str = NAME, **header: Any) -> Any:
    return (await stub(of).PutBlob(requests(name, data, **header), timeout=60)).blob


async def get(of: Platform, name: str = NAME) -> bytes:
    call = stub(of).GetBlob(pb.GetBlobRequest(name=name), timeout=60)
    return b"".join([message.data async for message in call])


async def outcome(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        # A client of grpcio's has two words for a connection that breaks under its stream.
        return grpc.StatusCode.UNAVAILABLE if is_send_failed(error) else error.code()
    return grpc.StatusCode.OK


def files(of: Platform) -> list[str]:
    root = of.data_dir / "blobs"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
async def weft_up(tmp_path: Path) -> AsyncIterator[Platform]:
    async with one_process(tmp_path / "data") as running:
        yield running


async def endless(name: str) -> AsyncIterator[pb.PutBlobRequest]:
    yield pb.PutBlobRequest(name=name, header=pb.PutBlobHeader())
    while True:
        yield pb.PutBlobRequest(name=name, data=bytes(CHUNK_BYTES))
        await asyncio.sleep(0.01)


async def test_a_put_whose_process_is_killed_leaves_nothing(weft_up: Platform) -> None:
    await put(weft_up, DATA)
    before = files(weft_up)
    putting = asyncio.ensure_future(outcome(stub(weft_up).PutBlob(endless(NAME), timeout=60)))
    # Half of it is on the disk, under a name that nobody is told.
    await eventually(lambda: len(files(weft_up)) > len(before), seconds=30)
    await weft_up.kill()
    assert await putting is grpc.StatusCode.UNAVAILABLE
    assert len(files(weft_up)) > len(before)
    await weft_up.start()
    assert await get(weft_up) == DATA
    await eventually(lambda: files(weft_up) == before, seconds=30)


@pytest.mark.parametrize(("place", "count"), [("bytes-stored", 1), ("header-stored", 2)])
async def test_a_process_that_dies_between_its_steps_leaves_one_blob(
    weft_up: Platform, place: str, count: int
) -> None:
    """Before the header is stored the old blob is there, after that the new one."""
    first = await put(weft_up, DATA)
    await weft_up.stop()
    await weft_up.start(WEFT_FAILPOINTS=f"blob:{place}@1")
    put_one = stub(weft_up).PutBlob(requests(NAME, b"new"), timeout=60)
    assert await outcome(put_one) is grpc.StatusCode.UNAVAILABLE
    await weft_up.gone()
    await weft_up.start()
    assert await get(weft_up) == (DATA if count == 1 else b"new")
    await eventually(lambda: len(files(weft_up)) == 2, seconds=30)
    found = (await stub(weft_up).StatBlob(pb.StatBlobRequest(name=NAME), timeout=10)).blob
    assert (found.etag == first.etag) == (count == 1)


async def test_memory_of_a_large_transfer_is_bounded(weft_up: Platform) -> None:
    await put(weft_up, DATA)
    await get(weft_up)
    assert weft_up.process is not None
    process = psutil.Process(weft_up.process.pid)
    started = process.memory_info().rss
    digest = hashlib.sha256()
    most = started

    async def large() -> AsyncIterator[pb.PutBlobRequest]:
        nonlocal most
        yield pb.PutBlobRequest(name=NAME, header=pb.PutBlobHeader(size_bytes=LARGE_BYTES))
        for _ in range(LARGE_BYTES // CHUNK_BYTES):
            chunk = os.urandom(CHUNK_BYTES)
            digest.update(chunk)
            most = max(most, process.memory_info().rss)
            yield pb.PutBlobRequest(name=NAME, data=chunk)
        yield pb.PutBlobRequest(name=NAME, last=True)

    blob = (await stub(weft_up).PutBlob(large(), timeout=200)).blob
    assert blob.sha256 == digest.digest()
    got, count = hashlib.sha256(), 0
    async for message in stub(weft_up).GetBlob(pb.GetBlobRequest(name=NAME), timeout=200):
        got.update(message.data)
        count += len(message.data)
        most = max(most, process.memory_info().rss)
    assert (count, got.digest()) == (LARGE_BYTES, digest.digest())
    assert most - started < GROWTH_BYTES_MAX, f"{(most - started) >> 20} MiB"


async def test_a_session_takes_its_blobs_with_it(weft_up: Platform) -> None:
    agent = await weft_up.apply("bot", agent_pb2.AgentSpec(instructions="x"))
    session = await weft_up.session(agent)
    await put(weft_up, DATA, source=session)
    await put(weft_up, b"stays", name=f"{NAME}-2")
    assert await get(weft_up) == DATA
    sessions: Any = SessionServiceStub(weft_up.open_channel)
    await sessions.EraseSession(session_service_pb2.EraseSessionRequest(name=session), timeout=30)
    assert await outcome(stub(weft_up).StatBlob(pb.StatBlobRequest(name=NAME), timeout=10)) is (
        grpc.StatusCode.NOT_FOUND
    )
    await eventually(lambda: len(files(weft_up)) == 2, seconds=30)
    assert await get(weft_up, f"{NAME}-2") == b"stays"


async def test_blobs_are_reached_through_a_gateway(tmp_path: Path) -> None:
    """Where each service runs in a process of its own."""
    running = Platform(tmp_path / "data", split=True)
    try:
        await running.start()
        agent = await running.apply("bot", agent_pb2.AgentSpec(instructions="x"))
        session = await running.session(agent)
        large = os.urandom(20_000_000)
        await put(running, large, source=session)
        assert await get(running) == large
        folder = next((tmp_path / "data").rglob("headers")).parent

        def kept() -> int:
            return sum(path.is_file() for path in folder.rglob("*"))

        putting = stub(running).PutBlob(endless(f"{NAME}-2"), timeout=60)
        await eventually(lambda: kept() > 2, seconds=30)
        putting.cancel()
        await eventually(lambda: kept() == 2, seconds=30)
        listed = await stub(running).ListBlobs(pb.ListBlobsRequest(parent="tenants/default"))
        assert [blob.name for blob in listed.blobs] == [NAME]
        with_gone = session_service_pb2.EraseSessionRequest(name=session)
        sessions: Any = SessionServiceStub(running.open_channel)
        await sessions.EraseSession(with_gone, timeout=30)
        await eventually(lambda: kept() == 0, seconds=30)
        get_one = stub(running).StatBlob(pb.StatBlobRequest(name=NAME), timeout=10)
        assert await outcome(get_one) is grpc.StatusCode.NOT_FOUND
        await put(running, b"small")
        signed = pb.SignBlobUrlRequest(name=NAME, method=pb.URL_METHOD_GET)
        url = (await stub(running).SignBlobUrl(signed, timeout=10)).url
        assert await asyncio.to_thread(fetched, url) == (200, b"small")
    finally:
        if running.process is not None:
            await running.kill()


async def test_who_put_and_deleted_is_in_the_audit(weft_up: Platform) -> None:
    await put(weft_up, b"x")
    await stub(weft_up).DeleteBlob(pb.DeleteBlobRequest(name=NAME), timeout=10)
    audit: Any = AuditServiceStub(weft_up.open_channel)
    request = audit_service_pb2.ListAuditEntriesRequest(parent="tenants/default", resource=NAME)
    entries = (await audit.ListAuditEntries(request, timeout=10)).entries
    assert [list(entry.actions) for entry in entries] == [
        ["weft.blobs.v1.BlobPut"],
        ["weft.blobs.v1.BlobDeleted"],
    ]
    assert all("/apiKeys/" in entry.actor for entry in entries)


def fetched(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


async def test_the_command_line_puts_gets_and_signs(weft_up: Platform, tmp_path: Path) -> None:
    file, back = tmp_path / "report.pdf", tmp_path / "back.pdf"
    file.write_bytes(DATA)
    about = {"WEFT_ADDRESS": weft_up.addresses["grpc"], "WEFT_API_KEY": weft_up.key}

    async def ran(*arguments: str) -> Any:
        done = await asyncio.to_thread(weft, "blob", *arguments, **about)
        assert done.code == 0, done.err
        return done

    assert "application/pdf" in (await ran("put", "report", str(file))).out
    await ran("get", "report", "--to", str(back))
    assert back.read_bytes() == DATA
    url = (await ran("sign", "report", "--for", "60")).out.strip()
    assert await asyncio.to_thread(fetched, url) == (200, DATA)
    assert (await asyncio.to_thread(fetched, url[:-4]))[0] == 403
    await ran("rm", "report")
    assert (await asyncio.to_thread(fetched, url))[0] == 404


async def test_a_bucket_that_is_out_of_reach_comes_back(tmp_path: Path) -> None:
    async with (
        running_s3(tmp_path / "s3") as s3,
        one_process(tmp_path / "data", **s3.environment()) as running,
    ):
        large = os.urandom(20_000_000)
        await put(running, large)
        assert await get(running) == large
        assert files(running) == []
        await s3.stop()
        get_one = stub(running).StatBlob(pb.StatBlobRequest(name=NAME), timeout=60)
        assert await outcome(get_one) is grpc.StatusCode.UNAVAILABLE
        put_one = stub(running).PutBlob(requests(NAME, DATA), timeout=60)
        assert await outcome(put_one) is grpc.StatusCode.UNAVAILABLE
        await s3.start()
        assert await get(running) == large
        await put(running, DATA)
        assert await get(running) == DATA
        log = running.log_file.read_text()
        assert "not-a-secret" not in log
