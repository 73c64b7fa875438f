"""Where this process's xDS clients ask, and who they say that they are.

gRPC reads it from the environment when a process makes its first xDS channel.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.control.xds.names import CERTIFICATES

VARIABLE = "GRPC_XDS_BOOTSTRAP_CONFIG"
FILE_VARIABLE = "GRPC_XDS_BOOTSTRAP"
_REFRESH = "1s"


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """A client's certificate, its key, and the authorities that it trusts, in PEM. They are
    read again every second, so that they can be rotated in place."""

    certificate: Path
    private_key: Path
    authorities: Path


def bootstrap(
    servers: Sequence[str],
    *,
    node: str,
    zone: str,
    certificates: CertificateFiles | None = None,
    encrypted: bool = False,
) -> str:
    """The bootstrap of a client that asks the first of `servers` that answers.

    A server is named as gRPC dials it, such as `unix:/run/weft/ads.sock`. It is dialled in
    plain text, or with `encrypted` by mutual TLS with the `certificates`. With those
    clusters may ask for TLS.
    """
    creds: dict[str, Any] = {"type": "insecure"}
    if encrypted:
        if certificates is None:
            raise ValueError("mutual TLS takes certificates")
        creds = {"type": "tls", "config": _watched(certificates)["config"]}
    # A control plane that lost its memory takes nothing from running clients.
    features = ["xds_v3", "ignore_resource_deletion"]
    content: dict[str, Any] = {
        "xds_servers": [
            {
                "server_uri": server,
                "channel_creds": [creds],
                "server_features": features,
            }
            for server in servers
        ],
        "node": {"id": node, "cluster": "weft", "locality": {"zone": zone}},
    }
    if certificates is not None:
        content["certificate_providers"] = {CERTIFICATES: _watched(certificates)}
    return json.dumps(content)


def install(text: str) -> None:
    """Makes it this process's; called before its first xDS channel. A file that the
    environment names would win over it, so it is named no more."""
    os.environ.pop(FILE_VARIABLE, None)
    os.environ[VARIABLE] = text


def _watched(files: CertificateFiles) -> dict[str, Any]:
    return {
        "plugin_name": "file_watcher",
        "config": {
            "certificate_file": str(files.certificate),
            "private_key_file": str(files.private_key),
            "ca_certificate_file": str(files.authorities),
            "refresh_interval": _REFRESH,
        },
    }
