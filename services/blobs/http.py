"""What a signed URL allows, over HTTP: `/v1/tenants/{tenant}/blobs/{blob}?grant=...`.

On a port of its own, since it is for whoever has a URL, and over TLS where the process has a
certificate.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from urllib.parse import quote

import grpc
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mesh.errors import Conflict, LimitExceeded, RateLimited, WeftError
from mesh.http_server import HttpServer
from mesh.ids import new_request_id
from mesh.rpc.status import code_of
from mesh.rpc.transport import Transport
from mesh.security.certificate_files import CERTIFICATE, KEY
from services.blobs.blobs import Blobs, By
from services.blobs.domain.conditions import ANY, is_named, read_range
from services.blobs.domain.names import BlobKey
from services.blobs.settings import BlobsSettings
from services.blobs.transfers import Transfers
from services.blobs.urls import GET, PUT, UrlSigner
from weft.blobs.v1 import blob_service_pb2 as pb
from weft.blobs.v1 import blobs_pb2

TRANSFER_SECONDS_MAX = 3600.0
RANGE_LENGTH_MAX = 100
CERTIFICATE_SECONDS = 10.0
"""How often is looked whether the certificate was replaced."""
_Code = grpc.StatusCode
_STATUS = {
    _Code.INVALID_ARGUMENT: 400,
    _Code.PERMISSION_DENIED: 403,
    _Code.NOT_FOUND: 404,
    _Code.DEADLINE_EXCEEDED: 408,
    _Code.ALREADY_EXISTS: 412,
    _Code.ABORTED: 412,
    _Code.RESOURCE_EXHAUSTED: 429,
    _Code.UNAVAILABLE: 503,
}
_HEADERS = {
    # Whatever the bytes are, a browser is to save them, and not to run them here.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cache-Control": "private, no-store",
    "Accept-Ranges": "bytes",
}
Endpoint = Callable[[Request], Awaitable[Response]]


class BlobHttp:
    """Serves signed URLs in the running loop."""

    def __init__(
        self,
        blobs: Blobs,
        transfers: Transfers,
        signer: UrlSigner,
        transport: Transport,
        settings: BlobsSettings,
    ) -> None:
        self._blobs = blobs
        self._transfers = transfers
        self._signer = signer
        self._transport = transport
        self._settings = settings
        path = "/v1/tenants/{tenant}/blobs/{blob}"
        application = Starlette(
            routes=[
                Route(path, _told(self._get), methods=["GET"]),
                Route(path, _told(self._put), methods=["PUT"]),
            ]
        )
        self._encryption = _encryption(transport)
        # Some more than transfers, for what is refused.
        self._server = HttpServer(application, self._encryption, 2 * settings.transfers_max)
        self._renewing: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens on `port`, or the next one that is free; returns which it became.
        FailedPrecondition where there is none."""
        number = await self._server.start(host, port)
        if self._encryption is not None:
            self._renewing = asyncio.create_task(self._renew(), name="blob certificate")
        return number

    async def stop(self) -> None:
        """Closes the port; transfers under way have 2 s to end."""
        if self._renewing is not None:
            self._renewing.cancel()
        await self._server.stop()

    @property
    def scheme(self) -> str:
        """`https` or `http`."""
        return "http" if self._encryption is None else "https"

    async def _get(self, request: Request) -> Response:
        name = _name(request)
        await self._signer.check(request.query_params.get("grant", ""), GET, name)
        key = BlobKey.parse(name)
        header = await self._blobs.find(key)
        blob = header.blob
        headers = _headers_of(blob)
        if_match, if_none_match = _field(request, "if-match"), _field(request, "if-none-match")
        if if_match and not is_named(if_match, blob.etag):
            return Response(status_code=412, headers=headers)
        if if_none_match and is_named(if_none_match, blob.etag, weakly=True):
            return Response(status_code=304, headers=headers)
        ranges = request.headers.get("range", "")
        if request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
            # What the client has is of another blob, or of one that it can't tell from this one.
            ranges = ""
        wanted = _range_of(ranges, blob.size_bytes)
        if wanted is None:
            headers["Content-Range"] = f"bytes */{blob.size_bytes}"
            return Response(status_code=416, headers=headers)
        offset, length = read_range(blob, *wanted)
        whole = length == blob.size_bytes
        headers["Content-Length"] = str(length)
        if not whole:
            headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{blob.size_bytes}"

        async def pieces() -> AsyncIterator[bytes]:
            with self._transfers.begun(key.tenant):
                # Before the answer begins, so that it can still be another one.
                yield b""
                async with aclosing(self._blobs.read(header, offset, length)) as read:
                    async for piece in read:
                        yield piece

        body = pieces() if request.method == GET else _nothing()
        await anext(body, None)
        return _Download(body, 200 if whole else 206, headers, self._settings.idle_seconds)

    async def _put(self, request: Request) -> Response:
        name = _name(request)
        grant = await self._signer.check(request.query_params.get("grant", ""), PUT, name)
        header = pb.PutBlobHeader(content_type=grant.content_type)
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit():
            header.size_bytes = int(length)
            if header.size_bytes > self._settings.blob_bytes_max:
                raise LimitExceeded(f"a blob has at most {self._settings.blob_bytes_max} bytes")
        key = BlobKey.parse(name)
        await self._condition(request, key, header)
        by = By(grant.principal, new_request_id())
        with self._transfers.begun(key.tenant):
            async with asyncio.timeout(TRANSFER_SECONDS_MAX):
                pieces = self._transfers.coming(request.stream())
                blob = await self._blobs.put(key, header, pieces, by)
        body = {"name": blob.name, "etag": blob.etag, "sha256": blob.sha256.hex()}
        return JSONResponse(body, 201, {"ETag": f'"{blob.etag}"'})

    async def _condition(self, request: Request, key: BlobKey, header: pb.PutBlobHeader) -> None:
        """Looks whether the request's conditions hold, and has the put look again at its end.
        Conflict where they don't."""
        if_match, if_none_match = _field(request, "if-match"), _field(request, "if-none-match")
        if not if_match and not if_none_match:
            return
        etag = await self._blobs.etag(key)
        if (if_match and not is_named(if_match, etag)) or (
            if_none_match and is_named(if_none_match, etag, weakly=True)
        ):
            raise Conflict(f"blob {key} isn't as the request demands")
        if if_match:
            header.if_match = ANY if if_match == ANY else etag
        elif if_none_match == ANY:
            header.if_absent = True

    async def _renew(self) -> None:
        """Has new connections use the certificate that there is by then."""
        held, folder = self._transport.held(), self._transport.folder
        assert self._encryption is not None
        assert folder is not None
        while True:
            await asyncio.sleep(CERTIFICATE_SECONDS)
            present = self._transport.held()
            if present is not held:
                held = present
                with suppress(OSError, ssl.SSLError):
                    self._encryption.load_cert_chain(folder / CERTIFICATE, folder / KEY)


class _Download(StreamingResponse):
    """A stream whose client may not stand still."""

    def __init__(
        self, body: AsyncIterator[bytes], status: int, headers: dict[str, str], idle_seconds: float
    ) -> None:
        super().__init__(body, status, headers)
        self._pieces = body
        self._idle_seconds = idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def timely(message: object) -> None:
            async with asyncio.timeout(self._idle_seconds):
                await send(message)  # type: ignore[arg-type] # as it came

        async with aclosing(self._pieces), asyncio.timeout(TRANSFER_SECONDS_MAX):  # type: ignore[type-var]
            await super().__call__(scope, receive, timely)


def _told(endpoint: Endpoint) -> Endpoint:
    """The endpoint, with its errors as answers."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            # Nobody hears it.
            return Response(status_code=400)
        except TimeoutError:
            return JSONResponse({"error": "it took too long"}, 408)
        except WeftError as error:
            status = _STATUS.get(code_of(error), 500)
            if isinstance(error, LimitExceeded) and not isinstance(error, RateLimited):
                status = 413
            return JSONResponse({"error": error.message}, status)

    return answered


def _name(request: Request) -> str:
    return f"tenants/{request.path_params['tenant']}/blobs/{request.path_params['blob']}"


def _field(request: Request, name: str) -> str:
    """A field of the request, empty where it has none. Lists may come in several lines."""
    return ",".join(request.headers.getlist(name)).strip()


def _headers_of(blob: blobs_pb2.Blob) -> dict[str, str]:
    named = f"; filename*=UTF-8''{quote(blob.file_name, safe='')}" if blob.file_name else ""
    return {
        **_HEADERS,
        "Content-Type": blob.content_type,
        "Content-Disposition": f"attachment{named}",
        "ETag": f'"{blob.etag}"',
    }


def _range_of(text: str, size: int) -> tuple[int, int | None] | None:
    """Offset and length of a Range header (RFC 9110, 14); all where it has none, or one that
    may be passed over: of another unit, of several ranges, or longer than any that is meant.
    None where it can't be met."""
    if len(text) > RANGE_LENGTH_MAX:
        return 0, None
    unit, _, ranges = text.partition("=")
    first, dash, last = ranges.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or "," in ranges:
        return 0, None
    if not all(part == "" or (part.isascii() and part.isdigit()) for part in (first, last)):
        return 0, None
    if not first:
        count = min(int(last), size) if last else 0
        return (size - count, count) if count else None
    offset = int(first)
    if last and int(last) < offset:
        return 0, None
    if offset >= size:
        return None
    return offset, int(last) - offset + 1 if last else None


async def _nothing() -> AsyncIterator[bytes]:
    """The body of an answer to HEAD."""
    yield b""


def _encryption(transport: Transport) -> ssl.SSLContext | None:
    folder = transport.folder
    if folder is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    return context
