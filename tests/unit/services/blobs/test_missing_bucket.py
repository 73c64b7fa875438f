"""A bucket that isn't there, as AWS answers for one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.errors import Unavailable
from services.blobs.backends.s3 import S3Objects
from services.blobs.objects import ABSENT
from services.blobs.settings import PART_BYTES, BlobsSettings

BODY = b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code></Error>"
ANSWER = (
    b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Type: application/xml\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[S3Objects]:
    """Objects of a store that has no bucket."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    secret = tmp_path / "secret"
    secret.write_text("x")
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield S3Objects(
            BlobsSettings(
                s3_bucket="away",
                s3_endpoint=f"http://127.0.0.1:{port}",
                s3_access_key_id="test",
                s3_secret_access_key_file=secret,
            )
        )


async def test_a_put_into_no_bucket_is_told(objects: S3Objects) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(2):
            yield bytes(PART_BYTES)

    with pytest.raises(Unavailable, match="has no such bucket"):
        await objects.put("h/a/x", b"one", ABSENT)
    with pytest.raises(Unavailable, match="has no such bucket"):
        await objects.upload("d/a/x", pieces())
