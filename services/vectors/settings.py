"""Settings of the vectors service: the table `[vectors]`, variables `WEFT_VECTORS_*`."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from mesh.settings import Section


class VectorsSettings(Section):
    """Bounds of what collections may hold and of the work that may wait."""

    area: ClassVar[str] = "vectors"

    folder: Path | None = None
    """Where the collections lie; in the process's data folder where it isn't set."""
    collections_max: int = Field(default=1_000, ge=1)
    """Most collections of a tenant."""
    document_passages_max: int = Field(default=10_000, ge=1, le=1_000_000)
    """Most passages that a document may be split into."""
    waiting_calls_max: int = Field(default=256, ge=1)
    """Most calls that wait for the index; further ones are refused."""
