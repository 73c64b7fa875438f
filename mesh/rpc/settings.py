"""Settings of the RPC runtime."""

from pydantic import Field

from mesh.settings import Section

MEBIBYTE = 1 << 20


class RpcSettings(Section, area="rpc"):
    """Bounds of calls. The deadlines are those of calls that come without one."""

    read_deadline_seconds: float = Field(5, gt=0, le=3600)
    write_deadline_seconds: float = Field(15, gt=0, le=3600)
    stream_deadline_seconds: float = Field(600, gt=0, le=86400)
    concurrent_calls_max: int = Field(1024, ge=1)
    request_bytes_max: int = Field(4 * MEBIBYTE, ge=1024)
    # Pages of events can be larger than any request; other clients set their own bound.
    response_bytes_max: int = Field(16 * MEBIBYTE, ge=1024)
    metadata_bytes_max: int = Field(16 * 1024, ge=1024)
