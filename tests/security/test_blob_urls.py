"""Signed URLs of blobs, with the access that a deployment has: they end with the key of who
made them, and allow nobody more than that key."""

import asyncio
import urllib.error
import urllib.request
from typing import Any

import grpc.aio
import pytest

from tests.security.conftest import Deployment
from tests.support.blobs import requests
from tests.support.keyed import KeyedChannel
from weft.auth.v1 import api_key_service_pb2
from weft.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from weft.blobs.v1 import blob_service_pb2 as pb
from weft.blobs.v1.blob_service_pb2_grpc import BlobServiceStub

NAME = "tenants/acme/blobs/signed"
GET, PUT = pb.URL_METHOD_GET, pb.URL_METHOD_PUT


def keyed(weft: Deployment, key: str) -> Any:
    channel: Any = KeyedChannel(weft.channel, key)
    return BlobServiceStub(channel)


async def signed(stub: Any, method: "pb.UrlMethod.ValueType" = GET, name: str = NAME) -> str:
    request = pb.SignBlobUrlRequest(name=name, method=method)
    url: str = (await stub.SignBlobUrl(request, timeout=10)).url
    return url


async def status(url: str, data: bytes | None = None) -> int:
    def asked() -> int:
        request = urllib.request.Request(url, data, method="GET" if data is None else "PUT")
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                code: int = response.status
                return code
        except urllib.error.HTTPError as error:
            return error.code

    return await asyncio.to_thread(asked)


@pytest.mark.parametrize("role", ["admin", "developer", "worker"])
async def test_a_url_ends_with_its_makers_key(weft: Deployment, role: str) -> None:
    name, key = await weft.new_key("acme", role)
    stub = keyed(weft, key)
    await stub.PutBlob(requests(NAME, b"x"), timeout=10)
    get, put = await signed(stub), await signed(stub, PUT)
    assert (await status(get), await status(put, b"y")) == (200, 201)
    keys: Any = ApiKeyServiceStub(weft.keyed("acme"))
    await keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=name), timeout=10)
    assert (await status(get), await status(put, b"z")) == (403, 403)


async def test_nobody_signs_for_another_tenant_or_more_than_they_may(weft: Deployment) -> None:
    theirs: Any = BlobServiceStub(weft.keyed("globex"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await signed(theirs)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    _, key = await weft.new_key("acme", "viewer")
    viewer = keyed(weft, key)
    for method in (GET, PUT):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await signed(viewer, method)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
