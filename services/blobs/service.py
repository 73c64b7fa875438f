"""The servicer of `weft.blobs.v1.BlobService`."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing

from mesh.call import Call
from mesh.clock import NANOSECONDS
from mesh.errors import CredentialInvalid, InvalidArgument
from mesh.rpc.pages import read_page_token, write_page_token
from mesh.runtime.service import Mesh
from mesh.sockets import dialled_host
from services.blobs.backends.files import FileObjects
from services.blobs.backends.s3 import S3Objects
from services.blobs.blobs import Blobs, By
from services.blobs.domain.conditions import read_range, refuse_other
from services.blobs.domain.names import BlobKey
from services.blobs.http import BlobHttp
from services.blobs.objects import ObjectStore
from services.blobs.settings import BlobsSettings
from services.blobs.sweeper import Sweeper
from services.blobs.transfers import Transfers
from services.blobs.urls import GET, PUT, UrlSigner
from weft.blobs.v1 import blob_service_pb2 as pb
from weft.blobs.v1 import events_pb2, stored_pb2

FOLDER_NAME = "blobs"
PAGE_SIZE = 100
SHA256_BYTES = 32
URL_SECONDS = 15 * 60
_METHODS = {pb.URL_METHOD_GET: GET, pb.URL_METHOD_PUT: PUT}


class BlobsService:
    """Keeps blobs where the settings say."""

    def __init__(self, mesh: Mesh, settings: BlobsSettings) -> None:
        self._objects: ObjectStore
        if settings.s3_bucket:
            self._objects = S3Objects(settings)
        else:
            folder = settings.folder or mesh.data_dir / FOLDER_NAME
            self._objects = FileObjects(folder, settings.free_bytes_min)
        self._blobs = Blobs(self._objects, mesh.keyring, mesh.events, settings, mesh.clock)
        self._transfers = Transfers(settings)
        self.sweeper = Sweeper(self._blobs, self._objects, settings, mesh.clock)
        mesh.keyring.on_erased(self.sweeper.session_erased)
        self._signer = UrlSigner(mesh.keyring, mesh.access, mesh.clock)
        self._http = BlobHttp(self._blobs, self._transfers, self._signer, mesh.transport, settings)
        self._mesh = mesh
        self._settings = settings
        self._url = ""

    @property
    def handlers(self) -> Mapping[str, object]:
        return {"weft.blobs.v1.BlobService": self}

    async def start(self) -> None:
        """Clears away what was left half written. Sweeps go on beside the calls."""
        await self._objects.open()
        self.sweeper.start()
        wanted, host = self._settings.http_port, self._mesh.settings.host
        port = await self._http.start(host, wanted)
        self._mesh.announce("blobs", wanted, port)
        reached = self._mesh.settings.advertised_host or dialled_host(host)
        self._url = (
            self._settings.public_url.rstrip("/") or f"{self._http.scheme}://{reached}:{port}"
        )

    async def stop(self) -> None:
        await self._http.stop()
        await self.sweeper.stop()

    async def put_blob(
        self, requests: AsyncIterator[pb.PutBlobRequest], call: Call
    ) -> pb.PutBlobResponse:
        """See Blobs.put. DeadlineExceeded where the client sends nothing for too long."""
        coming = self._transfers.coming(requests)
        first = await anext(coming, None)
        if first is None or not first.HasField("header"):
            raise InvalidArgument.of("header", "is required in the first message")
        if len(first.header.sha256) not in (0, SHA256_BYTES):
            raise InvalidArgument.of("header.sha256", f"must be {SHA256_BYTES} bytes long")
        key = BlobKey.parse(first.name)
        with self._transfers.begun(key.tenant):
            pieces = _pieces(first, coming)
            blob = await self._blobs.put(key, first.header, pieces, By.call(call))
        return pb.PutBlobResponse(blob=blob)

    async def get_blob(
        self, request: pb.GetBlobRequest, call: Call
    ) -> AsyncGenerator[pb.GetBlobResponse, None]:
        """What it is, then its bytes. DeadlineExceeded where the client takes nothing for too
        long; see Blobs.find and Blobs.read for the rest."""
        key = BlobKey.parse(request.name)
        with self._transfers.begun(key.tenant):
            header = await self._blobs.find(key)
            refuse_other(request.if_match, request.name, header.blob)
            wanted = request.length_bytes if request.HasField("length_bytes") else None
            offset, length = read_range(header.blob, request.offset, wanted)
            with self._transfers.taken(call.end):
                yield pb.GetBlobResponse(blob=header.blob, length_bytes=length)
            async with aclosing(self._blobs.read(header, offset, length)) as pieces:
                async for piece in pieces:
                    with self._transfers.taken(call.end):
                        yield pb.GetBlobResponse(data=piece)

    async def stat_blob(self, request: pb.StatBlobRequest, call: Call) -> pb.StatBlobResponse:
        """See Blobs.find."""
        header = await self._blobs.find(BlobKey.parse(request.name))
        return pb.StatBlobResponse(blob=header.blob)

    async def list_blobs(self, request: pb.ListBlobsRequest, call: Call) -> pb.ListBlobsResponse:
        """The tenant's blobs, by id."""
        parent = f"{request.parent}/blobs/{request.prefix}"
        after = read_page_token(request.page_token, parent)
        tenant = request.parent.split("/")[1]
        size = request.page_size or PAGE_SIZE
        blobs, last = await self._blobs.page(tenant, request.prefix, after, size)
        response = pb.ListBlobsResponse(blobs=blobs)
        if last:
            response.next_page_token = write_page_token(last, parent)
        return response

    async def delete_blob(self, request: pb.DeleteBlobRequest, call: Call) -> pb.DeleteBlobResponse:
        """See Blobs.delete."""
        await self._blobs.delete(BlobKey.parse(request.name), request.if_match, By.call(call))
        return pb.DeleteBlobResponse()

    async def sign_blob_url(
        self, request: pb.SignBlobUrlRequest, call: Call
    ) -> pb.SignBlobUrlResponse:
        """PermissionDenied where the caller may not do what the URL is for, or isn't who
        presents a credential."""
        if call.principal is None:
            raise CredentialInvalid("the call has no credential")
        key = BlobKey.parse(request.name)
        now_ns = self._mesh.clock.now_ns()
        seconds = request.ttl.seconds if request.HasField("ttl") else URL_SECONDS
        grant = stored_pb2.UrlGrant(
            method=_METHODS[request.method],
            name=request.name,
            expire_seconds=now_ns // NANOSECONDS + seconds,
            content_type=request.content_type,
        )
        text = await self._signer.sign(grant, call.principal)
        response = pb.SignBlobUrlResponse(url=f"{self._url}/v1/{request.name}?grant={text}")
        response.expire_time.FromSeconds(grant.expire_seconds)
        fact = events_pb2.BlobUrlSigned(
            name=request.name, method=grant.method, expire_time=response.expire_time
        )
        await self._blobs.note(key, fact, By.call(call))
        return response


async def _pieces(
    first: pb.PutBlobRequest, following: AsyncIterator[pb.PutBlobRequest]
) -> AsyncIterator[bytes]:
    """The bytes of the messages. InvalidArgument where they aren't all of one blob, or are
    broken off: where a client cancels, its stream may seem to end."""
    yield first.data
    last = first.last
    async for message in following:
        if last:
            raise InvalidArgument.of("last", "stands in the last message only")
        last = message.last
        if message.name != first.name:
            raise InvalidArgument.of("name", "must be the same in all messages")
        if message.HasField("header"):
            raise InvalidArgument.of("header", "stands in the first message only")
        yield message.data
    if not last:
        raise InvalidArgument.of("last", "is missing: the stream was broken off")
