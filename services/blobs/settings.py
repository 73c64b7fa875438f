"""Settings of the blobs service: the table `[blobs]`, variables `WEFT_BLOBS_*`."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from mesh.settings import Section

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
PART_BYTES = 8 * MEBIBYTE
"""What goes to the object store at once. S3 takes 10,000 parts of an object."""


class BlobsSettings(Section):
    """Where blobs lie, and bounds of what may be put and of the work under way.

    They lie in files unless `s3_bucket` is set. Any store that speaks S3 will do; for
    Alibaba Cloud OSS:

        [blobs]
        s3_bucket = "BUCKET"
        s3_endpoint = "https://BUCKET.oss-REGION.aliyuncs.com"
        s3_region = "oss-REGION"
        s3_virtual_host = true         # OSS takes no bucket in the path
        s3_conditional_put = false     # nor If-Match with a put

    The bucket must not keep versions, or what was deleted stays there, and should end
    multipart uploads that were left after a day: those of a killed process.
    """

    area: ClassVar[str] = "blobs"

    folder: Path | None = None
    """Where the files lie; `blobs` in the process's data folder where it isn't set."""
    free_bytes_min: int = Field(default=256 * MEBIBYTE, ge=0)
    """What is to stay free of the disk that the files lie on, since the event log may be there
    too; puts are refused before."""
    s3_bucket: str = Field("", max_length=255)
    s3_endpoint: str = Field("", max_length=1024, pattern=r"^(https?://.+)?$")
    """Where the store is; AWS's by region where it is empty. With `http:` anybody on the way
    sees names and sealed bytes."""
    s3_region: str = Field("us-east-1", max_length=64)
    s3_prefix: str = Field("", max_length=255, pattern=r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$")
    """What keys in the bucket begin with, so that it can be shared."""
    s3_access_key_id: str = Field("", max_length=255)
    """Who Weft is to the store. Where it is empty the standard variables and roles of the
    machine count: `AWS_ACCESS_KEY_ID`, `AWS_WEB_IDENTITY_TOKEN_FILE` and so on."""
    s3_secret_access_key_file: Path | None = None
    """File with the secret of that key."""
    s3_virtual_host: bool = False
    """The bucket is part of the endpoint's host, not of the path."""
    s3_conditional_put: bool = True
    """The store heeds If-Match and If-None-Match with a put. Without, conditions are
    settled by this process alone."""
    blob_bytes_max: int = Field(default=5 * GIBIBYTE, ge=1, le=10_000 * PART_BYTES)
    """Largest blob that may be put."""
    transfers_max: int = Field(default=32, ge=1, le=1_024)
    """Puts and gets under way at once; each may take 32 MiB of memory."""
    tenant_transfers_max: int = Field(default=16, ge=1, le=1_024)
    """Of those, how many of one tenant."""
    idle_seconds: float = Field(default=30.0, gt=0, le=3600)
    """How long a client may send nothing, or take nothing, before its transfer is ended."""
    sweep_seconds: float = Field(default=600.0, gt=0, le=86400)
    """How often is looked for what has expired, or was left behind."""
    orphan_seconds: float = Field(default=3600.0, ge=0, le=7 * 86400)
    """How old bytes must be that belong to no blob before they are deleted, where another
    process may be about to put them."""
    http_port: int = Field(default=8442, ge=0, le=65535)
    """Port for signed URLs. TLS where the process has a certificate."""
    public_url: str = Field("", max_length=1024, pattern=r"^(https?://[^?#]+)?$")
    """What signed URLs begin with, where clients reach that port by another address."""
