"""Settings of the RPC runtime."""

from pathlib import Path

from pydantic import Field

from mesh.settings import Section

MEBIBYTE = 1 << 20


class RpcSettings(Section, area="rpc"):
    """Bounds of calls. The deadlines are those of calls that come without one."""

    read_deadline_seconds: float = Field(5, gt=0, le=3600)
    write_deadline_seconds: float = Field(15, gt=0, le=3600)
    stream_deadline_seconds: float = Field(600, gt=0, le=86400)
    call_seconds_max: float = Field(3600, gt=0, le=86400)
    """A later deadline of a unary call is brought forward to this."""
    stream_seconds_max: float = Field(86400, gt=0, le=7 * 86400)
    """As `call_seconds_max`, of a stream."""
    concurrent_calls_max: int = Field(1024, ge=1)
    concurrent_streams_max: int = Field(1024, ge=1)
    peer_calls_max: int = Field(768, ge=1)
    """Calls and streams under way from one address: fewer than the server takes, so that
    others have some left."""
    connection_streams_max: int = Field(1024, ge=1)
    """Calls and streams of one connection, those included whose request isn't there yet."""
    connections_max: int = Field(4096, ge=1)
    """Connections to the server."""
    connection_idle_seconds: float = Field(300, gt=0, le=86400)
    """How long a connection stays on which no call is under way."""
    connection_age_seconds: float = Field(3600, ge=0, le=7 * 86400)
    """How long a connection takes new calls, a tenth more or less; then its client makes another,
    which DNS or a balancer may bring to another gateway. 0 for as long as it is there."""
    connection_grace_seconds: float = Field(3600, gt=0, le=7 * 86400)
    """How long what was under way on it has to end after that. What then is still open ends
    with UNAVAILABLE, and its client goes on elsewhere."""
    peer_failures_max: int = Field(100, ge=1)
    """Credentials of one address that weren't valid, before it has to wait."""
    peer_failures_per_second: float = Field(10, gt=0)
    """How fast those are forgotten."""
    request_bytes_max: int = Field(4 * MEBIBYTE, ge=1024)
    # Pages of events can be larger than any request; other clients set their own bound.
    response_bytes_max: int = Field(16 * MEBIBYTE, ge=1024)
    metadata_bytes_max: int = Field(8 * 1024, ge=1024)
    """Of a request, or of an answer."""


class RateLimitSettings(Section, area="limits"):
    """Calls per second, each over a sliding second. Reads and writes count apart; which a
    method is, its contract says."""

    key_reads_per_second: int = Field(5_000, ge=1)
    key_writes_per_second: int = Field(2_500, ge=1)
    """Of one API key, with its tokens."""
    tenant_reads_per_second: int = Field(20_000, ge=1)
    tenant_writes_per_second: int = Field(10_000, ge=1)
    """Of all keys of one tenant."""


class TlsSettings(Section, area="tls"):
    """What connections between machines are encrypted with."""

    certificate_dir: Path | None = None
    """Folder with `cert.pem`, `key.pem` and `bundle.pem`, as `weft ca issue` makes it. Where
    none is named, everything is in plain text, and on loopback."""
    plain_text: bool = False
    """Plain text beyond this machine: for a network that nobody else is in, or that encrypts
    by itself."""
