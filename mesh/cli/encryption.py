"""Whether a server speaks TLS, asked of it by a handshake: to gRPC one that is called in plain
text, or the other way round, is like one that isn't there."""

import contextlib
import socket
import ssl
from pathlib import Path

from mesh.cli.failures import CommandFailed, ExitCode

PROBE_SECONDS = 1.0
"""Bound of connecting, and of each step of the handshake."""
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
"""What OpenSSL makes of bytes that are no TLS."""


def misunderstood(target: str, ca_file: Path | None) -> CommandFailed | None:
    """Why the server at `host:port` couldn't be reached, called with those roots or, without
    any, in plain text, where it is there and speaks the other; None where it isn't that."""
    speaks = speaks_tls(target)
    if speaks and ca_file is None:
        return CommandFailed(
            f"{target} speaks TLS, and was called in plain text",
            exit_code=ExitCode.UNAVAILABLE,
            notes=["Give --ca-file or WEFT_CA_FILE with the bundle.pem of its certificate."],
        )
    if speaks and ca_file is not None:
        return CommandFailed(
            f"can't reach Weft at {target} over TLS",
            exit_code=ExitCode.UNAVAILABLE,
            notes=[f"It speaks TLS, perhaps with a certificate of others than {ca_file} has."],
        )
    if speaks is False and ca_file is not None:
        return CommandFailed(
            f"{target} speaks plain text, and was called with TLS",
            exit_code=ExitCode.UNAVAILABLE,
            notes=[f"Leave --ca-file and WEFT_CA_FILE away ({ca_file}), if that is meant to be."],
        )
    return None


def speaks_tls(target: str) -> bool | None:
    """Whether what listens at `host:port` answers a TLS handshake; None where that can't be
    told, as where nobody listens. Nothing is sent beyond the handshake."""
    host, _, port = target.rpartition(":")
    if not port.isdecimal():
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Whose certificate it is doesn't matter here: nothing is told to it.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(OSError, ValueError):
        address = (host.strip("[]"), int(port))
        with socket.create_connection(address, timeout=PROBE_SECONDS) as connection:
            return _answers(context, connection)
    return None


def _answers(context: ssl.SSLContext, connection: socket.socket) -> bool | None:
    try:
        with context.wrap_socket(connection):
            return True
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason in _NO_TLS:
            return False
        # An alert is TLS, too.
        return True if "ALERT" in reason else None
