"""Objects in a bucket of a store that speaks S3: AWS, Alibaba Cloud OSS, SeaweedFS and others."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import obstore
import structlog
from obstore.store import S3Store

from mesh.errors import FailedPrecondition, Unavailable
from services.blobs.backends.store import CALL_SECONDS, ObstoreObjects, called
from services.blobs.objects import ABSENT, Version
from services.blobs.settings import BlobsSettings

RETRIES_MAX = 2
RETRY_SECONDS = 10
CONNECT_SECONDS = 3
_log = structlog.get_logger(__name__)


class S3Objects(ObstoreObjects):
    """Keeps objects in the bucket that the settings name. FailedPrecondition where the secret
    can't be read."""

    shared = True

    def __init__(self, settings: BlobsSettings) -> None:
        super().__init__(_store(settings))
        self._conditional = settings.s3_conditional_put

    async def open(self) -> None:
        """See ObjectStore. A store that is out of reach now may be there later."""

    async def put(self, key: str, data: bytes, version: Version) -> None:
        """See ObjectStore."""
        mode: Any = "create" if version == ABSENT else {"e_tag": version.text}
        with _within_bucket():
            async with called():
                await obstore.put_async(
                    self._root,
                    key,
                    data,
                    use_multipart=False,
                    mode=mode if self._conditional else "overwrite",
                )

    async def upload(self, key: str, pieces: AsyncIterator[bytes]) -> None:
        """See ObjectStore."""
        with _within_bucket():
            await super().upload(key, pieces)

    async def get(self, key: str) -> tuple[bytes, Version] | None:
        """See ObjectStore."""
        try:
            async with called():
                found = await obstore.get_async(self._root, key)
                data = bytes(await found.bytes_async())
                return data, Version(found.meta["e_tag"] or "")
        except FileNotFoundError:
            return None

    async def page(self, folder: str, prefix: str, after: str, count: int) -> Sequence[str]:
        """See ObjectStore. S3 lists by the bytes of keys."""
        names: list[str] = []
        # What sorts before the prefix needn't be listed; the prefix itself may be a name.
        begin = max(after, prefix[:-1]) if prefix else after
        offset = f"{folder}/{begin}" if begin else None
        stream = obstore.list(self._root, folder, offset=offset, chunk_size=count)
        while len(names) < count:
            async with called():
                listed = await anext(stream, None)
            if listed is None:
                return names
            for each in listed:
                name = each["path"].removeprefix(f"{folder}/")
                if not name.startswith(prefix):
                    if name > prefix:
                        return names[:count]
                elif name > after:
                    names.append(name)
        return names[:count]

    async def delete(self, key: str) -> None:
        """See ObjectStore."""
        with suppress(FileNotFoundError):
            async with called():
                await obstore.delete_async(self._root, key)

    async def destroy(self, key: str) -> None:
        """See ObjectStore. It is the store's to see to it."""
        await self.delete(key)


@contextmanager
def _within_bucket() -> Iterator[None]:
    """Around a put, for which nothing but the bucket can be missing."""
    try:
        yield
    except FileNotFoundError:
        _log.warning("object_store_has_no_such_bucket")
        raise Unavailable("the object store of the blobs has no such bucket") from None


def _store(settings: BlobsSettings) -> S3Store:
    config: dict[str, Any] = {
        "region": settings.s3_region,
        "virtual_hosted_style_request": settings.s3_virtual_host,
    }
    if settings.s3_endpoint:
        config["endpoint"] = settings.s3_endpoint
    if settings.s3_access_key_id:
        config["access_key_id"] = settings.s3_access_key_id
        config["secret_access_key"] = _secret(settings)
    return S3Store(
        settings.s3_bucket,
        prefix=settings.s3_prefix or None,
        config=config,  # type: ignore[arg-type] # made of settings
        client_options={
            "allow_http": settings.s3_endpoint.startswith("http:"),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "timeout": timedelta(seconds=CALL_SECONDS),
        },
        retry_config={
            "max_retries": RETRIES_MAX,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        },
    )


def _secret(settings: BlobsSettings) -> str:
    file = settings.s3_secret_access_key_file
    if file is None:
        raise FailedPrecondition("WEFT_BLOBS_S3_SECRET_ACCESS_KEY_FILE isn't set")
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"WEFT_BLOBS_S3_SECRET_ACCESS_KEY_FILE: {file}") from error
