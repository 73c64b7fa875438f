"""The blobs service, called as the pipeline calls it, on files."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import StringValue

from mesh.errors import (
    AlreadyExists,
    Conflict,
    DataDamaged,
    DataErased,
    DeadlineExceeded,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    RateLimited,
    RequestIdReused,
)
from mesh.events.store import START, CommitDraft, NewEvent, StreamName
from services.blobs import sweeper
from services.blobs.segments import SEGMENT_BYTES
from services.blobs.service import BlobsService
from services.blobs.settings import PART_BYTES, BlobsSettings
from tests.support.blobs import BlobParts, call, get, put, requests
from tests.support.eventually import eventually
from tests.support.small_disk import DISK_BYTES, fill, small_disk
from weft.blobs.v1 import blob_service_pb2 as pb
from weft.blobs.v1 import blobs_pb2

__all__ = ["small_disk"]
NAME = "tenants/acme/blobs/report"
SESSION = "tenants/acme/agents/bot/sessions/s1"


@pytest.fixture
def parts(tmp_path: Path) -> BlobParts:
    return BlobParts(tmp_path)


@pytest.fixture
async def service(parts: BlobParts) -> AsyncIterator[BlobsService]:
    service = parts.service()
    await service.start()
    yield service
    await service.stop()


def files(parts: BlobParts) -> dict[str, Path]:
    root = parts.data_dir / "blobs"
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}


async def stat(service: BlobsService, name: str = NAME) -> blobs_pb2.Blob:
    return (await service.stat_blob(pb.StatBlobRequest(name=name), call())).blob


async def delete(service: BlobsService, name: str = NAME, **asked: Any) -> None:
    await service.delete_blob(pb.DeleteBlobRequest(name=name, **asked), call())


async def ids(service: BlobsService, **asked: Any) -> list[str]:
    request = pb.ListBlobsRequest(parent="tenants/acme", **asked)
    response = await service.list_blobs(request, call())
    return [blob.name.rpartition("/")[2] for blob in response.blobs]


async def make_session(parts: BlobParts) -> StreamName:
    stream = StreamName("state", "acme", ("bot", "s1"))
    draft = CommitDraft([NewEvent(StringValue(value="made"))], parts.clock.clock.now_ns())
    await parts.events.append(stream, draft, START)
    await parts.keyring.data_key_to_seal(str(stream))
    return stream


@pytest.mark.parametrize(
    "size",
    [
        *(0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 4 * SEGMENT_BYTES),
        *(4 * SEGMENT_BYTES + 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 7),
    ],
)
async def test_what_was_put_is_got(service: BlobsService, size: int) -> None:
    data = os.urandom(size)
    blob = await put(service, NAME, data, content_type="text/plain", file_name="a.txt")
    assert (blob.size_bytes, blob.sha256) == (size, hashlib.sha256(data).digest())
    assert (blob.name, blob.content_type, blob.file_name) == (NAME, "text/plain", "a.txt")
    assert await stat(service) == blob
    assert await get(service, NAME) == data


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (SEGMENT_BYTES - 1, 2), (5_000_000, 5), (0, 0), (1, None), (5_999_990, 100)],
)
async def test_a_range_is_got(service: BlobsService, offset: int, length: int | None) -> None:
    data = os.urandom(6_000_000)
    await put(service, NAME, data)
    end = None if length is None else offset + length
    assert await get(service, NAME, offset=offset, length_bytes=length) == data[offset:end]


async def test_a_range_behind_the_end_is_refused(service: BlobsService) -> None:
    await put(service, NAME, b"abc")
    assert await get(service, NAME, offset=3) == b""
    with pytest.raises(InvalidArgument):
        await get(service, NAME, offset=4)


async def test_a_put_takes_the_place_of_what_is_there(
    service: BlobsService, parts: BlobParts
) -> None:
    first = await put(service, NAME, b"one")
    second = await put(service, NAME, b"two")
    assert first.etag != second.etag
    assert await get(service, NAME) == b"two"
    assert len(files(parts)) == 2


async def test_a_condition_that_doesnt_hold_changes_nothing(
    service: BlobsService, parts: BlobParts
) -> None:
    with pytest.raises(Conflict):
        await put(service, NAME, b"zero", if_match="x")
    first = await put(service, NAME, b"one", if_absent=True)
    with pytest.raises(AlreadyExists):
        await put(service, NAME, b"two", if_absent=True)
    second = await put(service, NAME, b"two", if_match=first.etag)
    for stale in (put(service, NAME, b"3", if_match=first.etag), delete(service, if_match="x")):
        with pytest.raises(Conflict):
            await stale
    with pytest.raises(Conflict):
        await get(service, NAME, if_match=first.etag)
    assert await get(service, NAME, if_match=second.etag) == b"two"
    assert len(files(parts)) == 2


async def test_of_racing_puts_on_one_etag_one_wins(service: BlobsService) -> None:
    first = await put(service, NAME, b"one")
    ends = await asyncio.gather(
        *(put(service, NAME, b"%d" % number, if_match=first.etag) for number in range(8)),
        return_exceptions=True,
    )
    won = [end for end in ends if isinstance(end, blobs_pb2.Blob)]
    assert len(won) == 1
    assert sum(isinstance(end, Conflict) for end in ends) == 7
    assert (await stat(service)).etag == won[0].etag


@pytest.mark.parametrize(
    "said", [{"size_bytes": 4}, {"sha256": bytes(32)}, {"sha256": b"x"}, {"size_bytes": 0}]
)
async def test_other_bytes_than_were_said_are_refused(
    service: BlobsService, parts: BlobParts, said: dict[str, Any]
) -> None:
    await put(service, NAME, b"one")
    before = files(parts)
    with pytest.raises(InvalidArgument) as caught:
        await put(service, NAME, b"abc", **said)
    assert [each.field for each in caught.value.violations] == [f"header.{next(iter(said))}"]
    assert await get(service, NAME) == b"one"
    assert files(parts) == before


async def test_a_request_that_comes_again_gets_its_answer(service: BlobsService) -> None:
    first = await put(service, NAME, b"one", request_id="q1", if_absent=True)
    assert await put(service, NAME, b"one", request_id="q1", if_absent=True) == first
    for other in (
        put(service, NAME, b"two", request_id="q1", if_absent=True),
        put(service, NAME, b"one", request_id="q1"),
    ):
        with pytest.raises(RequestIdReused):
            await other
    assert (await put(service, NAME, b"two", request_id="q2")).etag != first.etag


@pytest.mark.parametrize("data", [b"x" * 100, bytes(3 * PART_BYTES)])
async def test_a_put_that_breaks_off_leaves_nothing(
    service: BlobsService, parts: BlobParts, data: bytes
) -> None:
    async def broken() -> AsyncIterator[pb.PutBlobRequest]:
        async for request in requests(NAME, data):
            yield request
        await asyncio.sleep(60)

    putting = asyncio.create_task(service.put_blob(broken(), call()))
    await asyncio.sleep(0.3)
    assert list(files(parts)) == [] or all("#" in name for name in files(parts))
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    await asyncio.sleep(0.1)
    assert files(parts) == {}
    with pytest.raises(NotFound):
        await stat(service)


async def test_nothing_but_one_blob_comes_in_a_put(service: BlobsService) -> None:
    async def messages(*each: pb.PutBlobRequest) -> AsyncIterator[pb.PutBlobRequest]:
        for message in each:
            yield message

    header = pb.PutBlobRequest(name=NAME, header=pb.PutBlobHeader())
    data = pb.PutBlobRequest(name=NAME, data=b"x")
    last = pb.PutBlobRequest(name=NAME, data=b"x", last=True)
    other = pb.PutBlobRequest(name=NAME + "2", data=b"x", last=True)
    broken_off = ((header,), (header, data))
    for wrong in (
        *((), (last,), (header, other), (header, header), (header, last, data)),
        *broken_off,
    ):
        with pytest.raises(InvalidArgument):
            await service.put_blob(messages(*wrong), call())
    assert await ids(service) == []


async def test_a_client_that_sends_nothing_is_ended(parts: BlobParts) -> None:
    service = parts.service(BlobsSettings(idle_seconds=0.05, http_port=0))

    async def silent() -> AsyncIterator[pb.PutBlobRequest]:
        yield pb.PutBlobRequest(name=NAME, header=pb.PutBlobHeader())
        await asyncio.sleep(60)

    with pytest.raises(DeadlineExceeded, match="nothing was sent"):
        await service.put_blob(silent(), call())


async def test_a_client_that_takes_nothing_is_ended(parts: BlobParts) -> None:
    service = parts.service(BlobsSettings(idle_seconds=0.05, http_port=0))
    await put(service, NAME, b"x")
    ended: list[Exception] = []
    asking = call()
    asking.end = ended.append
    messages = service.get_blob(pb.GetBlobRequest(name=NAME), asking)
    await anext(messages)
    await asyncio.sleep(0.2)
    assert [type(error) for error in ended] == [DeadlineExceeded]
    await messages.aclose()


async def test_bounds_of_size_and_of_transfers(parts: BlobParts) -> None:
    settings = BlobsSettings(blob_bytes_max=10, transfers_max=2, tenant_transfers_max=1)
    service = parts.service(settings)
    await put(service, NAME, bytes(10))
    with pytest.raises(LimitExceeded):
        await put(service, NAME, bytes(11))
    assert (await stat(service)).size_bytes == 10
    mine = service.get_blob(pb.GetBlobRequest(name=NAME), call())
    await anext(mine)
    with pytest.raises(RateLimited):
        await put(service, NAME, b"x")
    await put(service, "tenants/globex/blobs/x", b"x")
    await mine.aclose()
    await put(service, NAME, b"x")


async def test_a_disk_without_room_is_told(parts: BlobParts) -> None:
    service = parts.service(BlobsSettings(free_bytes_min=2**62, http_port=0))
    with pytest.raises(LimitExceeded, match="no room"):
        await put(service, NAME, b"x")
    assert files(parts) == {}


async def test_a_full_disk_is_told_and_passes(small_disk: Path) -> None:
    parts = BlobParts(small_disk)
    service = parts.service(BlobsSettings(free_bytes_min=0, http_port=0))
    await put(service, NAME, b"there")
    with pytest.raises(LimitExceeded, match="no room"):
        await put(service, NAME, bytes(DISK_BYTES + (8 << 20)))
    assert await get(service, NAME) == b"there"
    assert len(files(parts)) == 2
    fill(small_disk / "filler")
    with pytest.raises(LimitExceeded, match="no room"):
        await put(service, NAME, bytes(100_000))
    assert await get(service, NAME) == b"there"
    await delete(service)
    (small_disk / "filler").unlink()
    await put(service, NAME, b"again")
    assert await get(service, NAME) == b"again"


async def test_a_deleted_blob_is_gone(service: BlobsService, parts: BlobParts) -> None:
    await put(service, NAME, b"x")
    await delete(service)
    assert files(parts) == {}
    for ended in (delete(service), stat(service), get(service, NAME)):
        with pytest.raises(NotFound):
            await ended


async def test_lists_are_by_id_in_pages(service: BlobsService) -> None:
    names = ["a", "b", "b-1", "b-2", "c"]
    for name in reversed(names):
        await put(service, f"tenants/acme/blobs/{name}", name.encode())
    await put(service, "tenants/globex/blobs/d", b"theirs")
    assert await ids(service) == names
    assert await ids(service, prefix="b") == ["b", "b-1", "b-2"]
    seen: list[str] = []
    request = pb.ListBlobsRequest(parent="tenants/acme", page_size=2)
    for _ in range(3):
        response = await service.list_blobs(request, call())
        seen += [blob.name.rpartition("/")[2] for blob in response.blobs]
        request.page_token = response.next_page_token
    assert seen == names
    assert not request.page_token
    request.page_token = "x"
    with pytest.raises(InvalidArgument):
        await service.list_blobs(request, call())


async def test_a_blob_whose_time_has_passed_isnt_there(
    service: BlobsService, parts: BlobParts
) -> None:
    await put(service, NAME, b"x", ttl=Duration(seconds=60))
    await put(service, NAME + "2", b"stays")
    assert await ids(service) == ["report", "report2"]
    parts.pass_time(61)
    assert await ids(service) == ["report2"]
    for ended in (stat(service), get(service, NAME), delete(service)):
        with pytest.raises(NotFound):
            await ended
    assert await service.sweeper.sweep() == 1
    assert len(files(parts)) == 2
    await put(service, NAME, b"again", if_absent=True)
    assert await get(service, NAME) == b"again"


async def test_an_expired_blob_that_was_put_anew_isnt_swept(
    service: BlobsService, parts: BlobParts
) -> None:
    await put(service, NAME, b"x", ttl=Duration(seconds=60))
    await put(service, NAME, b"y", ttl=Duration(seconds=600))
    parts.pass_time(61)
    assert await service.sweeper.sweep() == 0
    assert await get(service, NAME) == b"y"


async def test_bytes_without_a_blob_are_swept(service: BlobsService, parts: BlobParts) -> None:
    await put(service, NAME, b"x")
    (data,) = (path for name, path in files(parts).items() if name.startswith("data/"))
    left = data.with_name("report." + "0" * 26 + ".0.0")
    left.write_bytes(b"left")
    alone = data.with_name("other." + "0" * 26 + ".0.0")
    alone.write_bytes(b"left")
    assert await service.sweeper.sweep() == 2
    assert not left.exists()
    assert not alone.exists()
    assert await get(service, NAME) == b"x"


async def test_a_blob_is_erased_with_its_session(service: BlobsService, parts: BlobParts) -> None:
    with pytest.raises(NotFound, match="no session"):
        await put(service, NAME, b"x", source=SESSION)
    stream = await make_session(parts)
    blob = await put(service, NAME, b"x", source=SESSION)
    assert blob.source == SESSION
    await put(service, NAME + "2", b"stays")
    await parts.keyring.erase(str(stream))
    for ended in (stat(service), get(service, NAME)):
        with pytest.raises(DataErased):
            await ended
    assert await ids(service) == ["report2"]
    # By itself, soon after.
    await eventually(lambda: len(files(parts)) == 2)
    with pytest.raises(DataErased, match=f"session {SESSION} was erased"):
        await put(service, NAME, b"x", source=SESSION)
    assert len(files(parts)) == 2, "bytes were left behind"
    await put(service, NAME, b"x")


async def test_a_sweep_that_failed_is_tried_again(
    service: BlobsService, parts: BlobParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "RETRY_SECONDS", 0.05)
    stream = await make_session(parts)
    await put(service, NAME, b"x", source=SESSION)
    headers = parts.data_dir / "blobs" / "headers"
    folder = parts.data_dir / "blobs" / "data"
    headers.rename(headers.with_name("elsewhere"))
    # A file in the place of a folder can't be listed.
    headers.write_bytes(b"")
    await parts.keyring.erase(str(stream))
    await asyncio.sleep(0.2)
    assert len(list(folder.rglob("report*"))) == 1
    headers.unlink()
    headers.with_name("elsewhere").rename(headers)
    await eventually(lambda: files(parts) == {})


@pytest.mark.parametrize("kind", ["headers", "data"])
@pytest.mark.parametrize("harm", ["flip", "cut", "garbage", "empty", "gone"])
async def test_what_was_damaged_is_never_given(
    service: BlobsService, parts: BlobParts, kind: str, harm: str
) -> None:
    data = os.urandom(SEGMENT_BYTES * 3)
    await put(service, NAME, data)
    (path,) = (path for name, path in files(parts).items() if name.startswith(kind))
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 2] ^= 1
    changed = {
        "flip": bytes(stored),
        "cut": path.read_bytes()[:-1],
        "garbage": os.urandom(len(stored)),
        "empty": b"",
    }
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(changed[harm])
    gone = (kind, harm) == ("headers", "gone")
    with pytest.raises(NotFound if gone else DataDamaged):
        await get(service, NAME)
    if not gone:
        response = await service.list_blobs(pb.ListBlobsRequest(parent="tenants/acme"), call())
        assert [blob.damaged for blob in response.blobs] == [kind == "headers"]
        await delete(service)
    await service.sweeper.sweep()
    assert files(parts) == {}
    await put(service, NAME, b"anew", if_absent=True)
    assert await get(service, NAME) == b"anew"


async def test_a_header_in_anothers_place_isnt_taken(
    service: BlobsService, parts: BlobParts
) -> None:
    await put(service, NAME, b"mine")
    await put(service, "tenants/globex/blobs/report", b"theirs")
    found = files(parts)
    found["headers/acme/report"].write_bytes(found["headers/globex/report"].read_bytes())
    with pytest.raises(DataDamaged):
        await get(service, NAME)


async def test_nothing_on_the_disk_tells_of_the_bytes(
    service: BlobsService, parts: BlobParts
) -> None:
    mark = b"zebrafish in the attic"
    await put(service, NAME, mark * 50_000, content_type="text/x-zebra", file_name="zebra.txt")
    for path in files(parts).values():
        stored = path.read_bytes()
        for word in (mark, b"zebra", mark[:8]):
            assert word not in stored


async def test_rotated_keys_open_what_was_put_before(
    service: BlobsService, parts: BlobParts
) -> None:
    await put(service, NAME, b"x")
    await parts.keyring.rotate_data_key("blobs.acme")
    await parts.keyring.rotate_tenant_key("acme")
    assert await get(service, NAME) == b"x"
    await put(service, NAME, b"y")
    assert await get(service, NAME) == b"y"


async def test_puts_and_deletes_are_noted(service: BlobsService, parts: BlobParts) -> None:
    blob = await put(service, NAME, b"x")
    await delete(service)
    noted = []
    async for page in parts.events.read(StreamName("blobs", "acme", ("report",))):
        noted += [(stored.commit.actor, stored.commit.events[0].type) for stored in page]
    actor = "tenants/acme/apiKeys/k"
    assert noted == [(actor, "weft.blobs.v1.BlobPut"), (actor, "weft.blobs.v1.BlobDeleted")]
    assert blob.etag
