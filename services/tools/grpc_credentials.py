"""What the servers of gRPC tools are shown: metadata and certificates, secrets among them."""

import hashlib
import re
from collections.abc import Mapping

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mesh.errors import InvalidArgument
from services.tools.secrets import Values, put_in, taken_out
from weft.tools.v1 import tools_pb2

NOT_TRUSTED = "has a certificate of an authority that isn't trusted, or of another name"
_NOT_TRUSTED = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")
"""What is in the texts of grpcio 1.78.2 where a server's certificate isn't accepted."""

METADATA = "metadata"
PRIVATE_KEY = "tls/private_key"
# Metadata that Weft sets itself, or gRPC does; those ending in -bin hold bytes.
_REFUSED = re.compile(
    r"grpc-.*|x-weft-.*|idempotency-key|traceparent|tracestate|te|host|content-type|user-agent"
    r"|connection|.*-bin"
)
_KEY = re.compile(r"[a-z0-9_.-]+")


def check_secrets(tool: tools_pb2.GrpcTool) -> None:
    """InvalidArgument where metadata or certificates are none."""
    if tool.HasField("secrets"):
        raise InvalidArgument.of("grpc.secrets", "isn't accepted; secrets go where they belong")
    seen = set()
    for index, each in enumerate(tool.metadata):
        place = f"grpc.metadata[{index}]"
        if not _KEY.fullmatch(each.name) or _REFUSED.fullmatch(each.name) or each.name in seen:
            raise InvalidArgument.of(
                f"{place}.name", "must be in lower case, there once, and none that Weft sets"
            )
        seen.add(each.name)
        if each.value and each.secret:
            raise InvalidArgument.of(place, "has a value and a secret; one is enough")
        for text, part in ((each.value, "value"), (each.secret, "secret")):
            if not (text.isascii() and text.isprintable()):
                raise InvalidArgument.of(f"{place}.{part}", "must be printable ASCII")
    if tool.HasField("tls"):
        _check_tls(tool.tls)


def has_secrets(tool: tools_pb2.GrpcTool) -> bool:
    """Whether a request brings secrets."""
    return bool(tool.tls.private_key) or any(each.secret for each in tool.metadata)


def take_secrets(tool: tools_pb2.GrpcTool) -> Values:
    """Moves the secrets out of the tool."""
    values: Values = {}
    for each in tool.metadata:
        taken_out(each, METADATA, values)
    if tool.tls.private_key:
        values[PRIVATE_KEY] = tool.tls.private_key
        tool.tls.ClearField("private_key")
    return values


def metadata_of(tool: tools_pb2.GrpcTool, secrets: Values) -> list[tuple[str, str]]:
    """The metadata of each call."""
    return [(each.name, put_in(each, METADATA, secrets)) for each in tool.metadata]


class ServerAccess:
    """How a tool's server is connected to. `key` is the same for all that are connected to in
    the same way, and says nothing of their secrets."""

    def __init__(self, tool: tools_pb2.GrpcTool, secrets: Mapping[str, str]) -> None:
        self.address = tool.address
        self.options: list[tuple[str, str]] = []
        self.credentials: grpc.ChannelCredentials | None = None
        self.key = tool.address
        if not tool.HasField("tls"):
            return
        tls = tool.tls
        private_key = secrets.get(PRIVATE_KEY, "")
        parts = (tls.authority_certificates, tls.certificate, private_key, tls.server_name)
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        self.key = f"{tool.address} {digest}"
        if tls.server_name:
            self.options = [("grpc.ssl_target_name_override", tls.server_name)]
        self.credentials = grpc.ssl_channel_credentials(
            tls.authority_certificates.encode() or None,
            private_key.encode() or None,
            tls.certificate.encode() or None,
        )


def _check_tls(tls: tools_pb2.GrpcTls) -> None:
    for text, field in (
        (tls.authority_certificates, "authority_certificates"),
        (tls.certificate, "certificate"),
    ):
        try:
            if text:
                x509.load_pem_x509_certificates(text.encode())
        except ValueError:
            raise InvalidArgument.of(f"grpc.tls.{field}", "is no certificate in PEM") from None
    if bool(tls.certificate) != bool(tls.private_key):
        raise InvalidArgument.of("grpc.tls", "needs a certificate and its key, or none of both")
    if not tls.private_key:
        return
    try:
        key = load_pem_private_key(tls.private_key.encode(), password=None)
    except (ValueError, TypeError):
        raise InvalidArgument.of("grpc.tls.private_key", "is no key in PEM") from None
    certificate = x509.load_pem_x509_certificate(tls.certificate.encode())
    if certificate.public_key() != key.public_key():
        raise InvalidArgument.of("grpc.tls.private_key", "isn't the key of the certificate")


def is_not_trusted(error: grpc.aio.AioRpcError) -> bool:
    """Whether the call wasn't made for want of a certificate that the credentials accept."""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return False
    return any(said in (error.details() or "") for said in _NOT_TRUSTED)
