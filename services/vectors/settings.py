"""Settings of the vectors service: the table `[vectors]`, variables `WEFT_VECTORS_*`."""

from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, field_validator

from mesh.errors import FailedPrecondition
from mesh.settings import Section


class VectorsSettings(Section):
    """Where collections lie, and bounds of what they may hold and of the work that may wait."""

    area: ClassVar[str] = "vectors"

    folder: Path | None = None
    """Where the collections lie; in the process's data folder where it isn't set."""
    collections_max: int = Field(default=1_000, ge=1)
    """Most collections of a tenant."""
    document_passages_max: int = Field(default=10_000, ge=1, le=1_000_000)
    """Most passages that a document may be split into."""
    collection_passages_max: int = Field(default=1_000_000, ge=1)
    """Most passages of a collection."""
    document_pages_max: int = Field(default=2_000, ge=1)
    """Most pages of a PDF file."""
    document_length_max: int = Field(default=8_000_000, ge=1)
    """Most code points of the text of a PDF file."""
    reading_seconds_max: float = Field(default=30.0, gt=0)
    """How long it may take to read one HTML text, PDF file or long text."""
    readings_max: int = Field(default=2, ge=1, le=64)
    """HTML texts, PDF files and long texts that are read at once, each in a process of its own;
    of one tenant half of them, at least one."""
    waiting_calls_max: int = Field(default=256, ge=1)
    """Most calls that wait for the index; further ones are refused."""
    postgres_url: str = Field("", max_length=1024, pattern=r"^(postgres(ql)?://.+)?$")
    """A PostgreSQL with pgvector that collections are kept in, such as
    `postgresql://weft@db.internal/weft?sslmode=verify-full`; in a file where it is empty. Without
    a password: that comes from `postgres_password_file`, or as libpq finds it. The database is
    of one deployment: another one's tenants of the same names would be these."""
    postgres_password_file: Path | None = None
    """File with the password."""
    postgres_connections_max: int = Field(default=8, ge=1, le=256)
    postgres_connect_seconds: float = Field(default=5.0, gt=0, le=60)
    """How long a call waits for a connection."""

    @field_validator("postgres_url")
    @classmethod
    def _has_no_password(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.password is not None or "password" in parse_qs(parts.query):
            raise ValueError("must hold no password; postgres_password_file names its file")
        return value

    def postgres_password(self) -> str:
        """What the file of the password holds, empty without one. FailedPrecondition where it
        can't be read."""
        if self.postgres_password_file is None:
            return ""
        try:
            return self.postgres_password_file.read_text().strip()
        except (OSError, ValueError) as error:
            raise FailedPrecondition("the file of PostgreSQL's password can't be read") from error
