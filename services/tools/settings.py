"""Settings of the tools service: the table `[tools]`, variables `WEFT_TOOLS_*`."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from mesh.settings import Section


class SqlDatabase(BaseModel):
    """A SQLite file that agents may query."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    """The file."""
    tenants: frozenset[str] = Field(min_length=1)
    """Ids of the tenants that may query it; `*` is all."""
    trusted: bool = False
    """Nobody but the tenant has a say in what is in it: what is read doesn't taint a session."""
    immutable: bool = False
    """Nobody writes it while this runs; needed where its folder can't be written."""

    def is_for(self, tenant: str) -> bool:
        """Whether the tenant of that id may query it."""
        return tenant in self.tenants or "*" in self.tenants


class ToolsSettings(Section):
    """Bounds of tools and of what is remembered about them."""

    area: ClassVar[str] = "tools"

    tools_max: int = Field(default=1_000, ge=1)
    """Most registered tools of a tenant."""
    timeout_seconds: float = Field(default=30, gt=0, le=3600)
    """How long a call of a tool may take that doesn't say so itself."""
    content_length_max: int = Field(default=65_536, ge=256, le=1_048_576)
    """Longest result, in code points; of longer ones a part is shown, and a blob has the whole."""
    preview_length_max: int = Field(default=4_096, ge=256, le=65_536)
    """How many code points of such a result are shown."""
    result_seconds: int = Field(default=30 * 86_400, ge=0, le=315_360_000)
    """How long the blob of such a result stays; with 0 none is made, and the result is cut."""
    batch_running_max: int = Field(default=32, ge=1, le=1_000)
    """Most calls of a batch that run at once."""
    trusted_collections: frozenset[str] = frozenset()
    """Collections, as `tenants/{tenant}/collections/{collection}`, whose documents nobody but the
    tenant has a say in: what is found there doesn't taint a session."""
    sql_databases: Mapping[str, SqlDatabase] = Field(default_factory=dict)
    """SQLite databases that agents may query, by the name that models see."""
    sql_seconds: float = Field(default=5, gt=0, le=60)
    """How long a query may take."""
    sql_rows_max: int = Field(default=1_000, ge=1)
    """Most rows of a query that are returned."""
    sql_bytes_max: int = Field(default=262_144, ge=1_024)
    """Most bytes of them."""
    sql_running_max: int = Field(default=4, ge=1, le=32)
    """Most queries that run at once."""
    response_bytes_max: int = Field(default=1_048_576, ge=1_024)
    """Largest message that is accepted from a tool's server."""
    reflection_seconds: float = Field(default=5, gt=0)
    """How long a server may take to describe a method."""
    reflection_files_max: int = Field(default=256, ge=1)
    """Most files that may describe a method."""
    reflection_bytes_max: int = Field(default=524_288, ge=1_024)
    """Most bytes of all files that describe a method."""
    channels_max: int = Field(default=64, ge=1)
    """Most servers to which connections are kept."""
    compiled_max: int = Field(default=256, ge=1)
    """Most compiled schemas and methods that are kept."""
    egress_allowed_hosts: frozenset[str] = frozenset()
    """Where they are given, tools connect to these hosts only; `*.example.com` is all below it."""
    egress_blocked_hosts: frozenset[str] = frozenset()
    """Hosts to which tools never connect."""
    egress_private_hosts: frozenset[str] = frozenset()
    """Hosts, as `host` or `host:port`, that may have addresses which aren't public."""
    fetch_seconds: float = Field(default=15, gt=0)
    """How long it may take to fetch a URL, with all its redirects."""
    fetch_bytes_max: int = Field(default=2_097_152, ge=1_024)
    """Most bytes that are fetched, as they are once decompressed."""
    fetch_redirects_max: int = Field(default=5, ge=0, le=20)
    """Most redirects that are followed."""
    catch_up_seconds: float = Field(default=30, gt=0)
    """How long the start may take to read what was registered."""
