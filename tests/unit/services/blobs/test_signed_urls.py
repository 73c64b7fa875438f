"""Signed URLs, used over HTTP."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from google.protobuf.duration_pb2 import Duration

from mesh.call import Call
from mesh.errors import PermissionDenied
from mesh.principal import Principal
from services.blobs.service import BlobsService
from services.blobs.settings import BlobsSettings
from tests.support.blobs import BlobParts, call, get, put
from weft.blobs.v1 import blob_service_pb2 as pb
from weft.blobs.v1 import stored_pb2

NAME = "tenants/acme/blobs/report"
DATA = os.urandom(1_000_000)


@pytest.fixture
def parts(tmp_path: Path) -> BlobParts:
    return BlobParts(tmp_path)


@pytest.fixture
async def service(parts: BlobParts) -> AsyncIterator[BlobsService]:
    settings = BlobsSettings(http_port=0, idle_seconds=0.5, blob_bytes_max=2_000_000)
    service = parts.service(settings)
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=20) as client:
        yield client


async def signed(
    service: BlobsService,
    method: "pb.UrlMethod.ValueType" = pb.URL_METHOD_GET,
    by: Call | None = None,
    **asked: str,
) -> str:
    request = pb.SignBlobUrlRequest(name=NAME, method=method, ttl=Duration(seconds=60), **asked)
    return (await service.sign_blob_url(request, by or call())).url


async def test_a_url_gets_the_blob(service: BlobsService, client: httpx2.AsyncClient) -> None:
    blob = await put(service, NAME, DATA, content_type="text/plain", file_name="a \u00fc.txt")
    answer = await client.get(await signed(service))
    assert answer.status_code == 200
    assert answer.content == DATA
    headers = answer.headers
    assert headers["content-type"].startswith("text/plain")
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''a%20%C3%BC.txt"
    assert headers["etag"] == f'"{blob.etag}"'
    assert headers["x-content-type-options"] == "nosniff"
    head = await client.head(await signed(service))
    assert (head.status_code, head.headers["content-length"]) == (200, "1000000")
    known = {"If-None-Match": headers["etag"]}
    assert (await client.get(await signed(service), headers=known)).status_code == 304


@pytest.mark.parametrize(
    ("asked", "status", "begin", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=999990-", 206, 999_990, 1_000_000),
        ("bytes=-5", 206, 999_995, 1_000_000),
        ("bytes=300000-2000000", 206, 300_000, 1_000_000),
        ("bytes=0-", 200, 0, 1_000_000),
        ("bytes=1000000-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=0-1,5-6", 200, 0, 1_000_000),
        ("lines=0-1", 200, 0, 1_000_000),
        ("bytes=x-", 200, 0, 1_000_000),
        (f"bytes={'9' * 5_000}-", 200, 0, 1_000_000),
        (f"bytes=0-{'9' * 5_000}", 200, 0, 1_000_000),
    ],
)
async def test_a_url_gets_a_range(
    service: BlobsService,
    client: httpx2.AsyncClient,
    asked: str,
    status: int,
    begin: int,
    end: int,
) -> None:
    await put(service, NAME, DATA)
    answer = await client.get(await signed(service), headers={"Range": asked})
    assert answer.status_code == status
    assert answer.content == DATA[begin:end]
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/1000000"
    if status == 416:
        assert answer.headers["content-range"] == "bytes */1000000"


async def test_a_range_of_another_blob_gets_all_of_this_one(
    service: BlobsService, client: httpx2.AsyncClient
) -> None:
    before = await put(service, NAME, b"before" * 10)
    blob = await put(service, NAME, DATA)
    url = await signed(service)
    asked = {"Range": "bytes=10-"}
    for etag, status in ((before.etag, 200), (blob.etag, 206)):
        answer = await client.get(url, headers={**asked, "If-Range": f'"{etag}"'})
        assert answer.status_code == status
        assert answer.content == (DATA if status == 200 else DATA[10:])


async def test_a_url_puts_a_blob(service: BlobsService, client: httpx2.AsyncClient) -> None:
    url = await signed(service, pb.URL_METHOD_PUT, content_type="image/png")
    answer = await client.put(url, content=DATA, headers={"Content-Type": "text/html"})
    assert answer.status_code == 201
    assert await get(service, NAME) == DATA
    found = (await service.stat_blob(pb.StatBlobRequest(name=NAME), call())).blob
    assert (found.content_type, found.etag) == ("image/png", answer.json()["etag"])
    absent = {"If-None-Match": "*"}
    assert (await client.put(url, content=b"x", headers=absent)).status_code == 412
    match = {"If-Match": answer.headers["etag"]}
    assert (await client.put(url, content=b"x", headers=match)).status_code == 201
    assert (await client.put(url, content=b"y", headers=match)).status_code == 412
    assert (await client.put(url, content=bytes(2_000_001))).status_code == 413
    assert await get(service, NAME) == b"x"


@pytest.mark.parametrize(
    ("header", "absent", "present"),
    [
        ({"If-Match": "*"}, 412, 201),
        ({"If-Match": '"other", "ETAG"'}, 412, 201),
        ({"If-Match": 'W/"ETAG"'}, 412, 412),
        ({"If-None-Match": "*"}, 201, 412),
        ({"If-None-Match": '"other", W/"ETAG"'}, 201, 412),
        ({"If-None-Match": '"other"'}, 201, 201),
        ({"If-Match": "*", "If-None-Match": "*"}, 412, 412),
    ],
)
async def test_a_put_heeds_its_conditions(
    service: BlobsService,
    client: httpx2.AsyncClient,
    header: dict[str, str],
    absent: int,
    present: int,
) -> None:
    url = await signed(service, pb.URL_METHOD_PUT)
    assert (await client.put(url, content=b"x", headers=header)).status_code == absent
    etag = (await put(service, NAME, DATA)).etag
    asked = {name: value.replace("ETAG", etag) for name, value in header.items()}
    assert (await client.put(url, content=b"y", headers=asked)).status_code == present
    assert await get(service, NAME) == (b"y" if present == 201 else DATA)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": 'W/"ETAG"'}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": '"other", "ETAG"'}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": '"other"', "If-None-Match": "*"}, 412),
    ],
)
async def test_a_get_heeds_its_conditions(
    service: BlobsService, client: httpx2.AsyncClient, header: dict[str, str], status: int
) -> None:
    etag = (await put(service, NAME, DATA)).etag
    asked = {name: value.replace("ETAG", etag) for name, value in header.items()}
    answer = await client.get(await signed(service), headers=asked)
    assert answer.status_code == status
    assert answer.content == (DATA if status == 200 else b"")


async def test_a_put_that_breaks_off_puts_nothing(service: BlobsService, parts: BlobParts) -> None:
    url = urlsplit(await signed(service, pb.URL_METHOD_PUT))
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\n".encode())
    writer.write(b"Content-Length: 1000\r\n\r\n" + bytes(500))
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 20)
    assert b" 408 " in answer.splitlines()[0]
    writer.close()
    request = pb.ListBlobsRequest(parent="tenants/acme")
    assert not (await service.list_blobs(request, call())).blobs
    assert [path for path in (parts.data_dir / "blobs").rglob("*") if path.is_file()] == []


def changed(url: str, **fields: object) -> str:
    """The URL with another grant under the old signature."""
    text = parse_qs(urlsplit(url).query)["grant"][0]
    data, mac = text.split(".")
    grant = stored_pb2.UrlGrant.FromString(base64.urlsafe_b64decode(data + "=" * (-len(data) % 4)))
    for name, value in fields.items():
        setattr(grant, name, value)
    other = base64.urlsafe_b64encode(grant.SerializeToString()).rstrip(b"=").decode()
    return url.replace(data, other) if fields else url.replace(mac, mac[::-1])


async def test_a_url_is_for_one_method_blob_and_time(
    service: BlobsService, parts: BlobParts, client: httpx2.AsyncClient
) -> None:
    await put(service, NAME, DATA)
    await put(service, NAME + "2", b"other")
    url = await signed(service)
    refused = [
        url.replace("/report?", "/report2?"),
        url.replace("/acme/", "/globex/"),
        url.split("?")[0],
        url.split("?")[0] + "?grant=",
        url.split("?")[0] + "?grant=" + "x" * 10_000,
        url.split("?")[0] + "?grant=\u00e9.\u00e9",
        url[:-2],
        url.rpartition(".")[0],
        changed(url),
        changed(url, expire_seconds=2**40),
        changed(url, name=NAME + "2").replace("/report?", "/report2?"),
        changed(url, method="PUT"),
        changed(url, principal="system"),
    ]
    for each in refused:
        answer = await client.get(each)
        assert (answer.status_code, answer.json()) == (
            403,
            {"error": "the URL isn't valid, or not any more"},
        ), each
    assert (await client.put(url, content=b"x")).status_code == 403
    assert (await client.delete(url)).status_code == 405
    assert (await client.get(url)).status_code == 200
    parts.pass_time(61)
    assert (await client.get(url)).status_code == 403


async def test_a_url_ends_with_its_makers_right(
    service: BlobsService, parts: BlobParts, client: httpx2.AsyncClient
) -> None:
    seen: list[Principal] = []

    def invalid(principal: Principal) -> bool:
        seen.append(principal)
        return False

    await put(service, NAME, DATA)
    url = await signed(service)
    assert (await client.get(url)).status_code == 200
    parts.access.valid = invalid
    assert (await client.get(url)).status_code == 403
    assert seen[0].name == "tenants/acme/apiKeys/k"
    assert seen[0].allows("blobs.get", NAME) == ("*" in seen[0].grants[0].permissions)


@pytest.mark.parametrize("permission", ["blobs.put", "agents.*", "blobs.sign"])
async def test_nobody_signs_what_they_may_not_do(service: BlobsService, permission: str) -> None:
    with pytest.raises(PermissionDenied):
        await signed(service, by=call(permission))


async def test_a_url_holds_no_longer_than_its_makers_credential(
    service: BlobsService, parts: BlobParts, client: httpx2.AsyncClient
) -> None:
    await put(service, NAME, DATA)
    by = call()
    assert by.principal is not None
    now_ns = parts.clock.clock.now_ns()
    by.principal = Principal(
        by.principal.name, "acme", by.principal.grants, expire_ns=now_ns + 5 * 10**9
    )
    url = await signed(service, by=by)
    assert (await client.get(url)).status_code == 200
    parts.pass_time(6)
    assert (await client.get(url)).status_code == 403


async def test_what_isnt_there_or_is_damaged_is_told(
    service: BlobsService, parts: BlobParts, client: httpx2.AsyncClient
) -> None:
    assert (await client.get(await signed(service))).status_code == 404
    await put(service, NAME, DATA)
    (data,) = (parts.data_dir / "blobs" / "data" / "acme").iterdir()
    stored = bytearray(data.read_bytes())
    stored[-1] ^= 1
    data.write_bytes(stored)
    # It was found out too late for another status: the answer breaks off.
    with pytest.raises(httpx2.RemoteProtocolError):
        await client.get(await signed(service))
    header = parts.data_dir / "blobs" / "headers" / "acme" / "report"
    header.write_bytes(b"")
    assert (await client.get(await signed(service))).status_code == 500
