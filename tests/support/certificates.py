"""Certificates of authorities that are made for a test, and channels that present them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from mesh.rpc.transport import Transport
from mesh.security.ca import CertificateAuthority
from mesh.security.certificate_files import CertificateFiles
from mesh.security.certificates import KeyPair, Names, new_leaf, pem_of, read_pair
from mesh.security.spiffe import TRUST_DOMAIN, server_name
from services.catalog import CATALOGUE

SERVICES = tuple(entry.name for entry in CATALOGUE)


def authority(folder: Path) -> CertificateAuthority:
    """An authority in a new folder."""
    made = CertificateAuthority(folder, SERVICES)
    made.init(TRUST_DOMAIN)
    return made


def transport(ca: CertificateAuthority, role: str) -> Transport:
    """What a process of that role listens and dials with."""
    return Transport(CertificateFiles(ca.issue(role).folder))


def root_of(ca: CertificateAuthority) -> KeyPair:
    """The root that signs."""
    text = (ca.folder / "ca.key").read_bytes()
    return read_pair(text, text)


def leaf(root: KeyPair, uri: str, *, days: float = 1, ago_days: float = 0) -> KeyPair:
    """A certificate for `uri`, which may be anything, issued that many days ago."""
    names = Names(uri, ("localhost",), ("127.0.0.1",))
    return new_leaf(root, names, datetime.now(UTC) - timedelta(days=ago_days), days)


def with_uris(root: KeyPair, uris: Sequence[str]) -> KeyPair:
    """A certificate as no authority of ours makes it, with several URIs."""
    model = leaf(root, uris[0])
    builder = x509.CertificateBuilder(
        issuer_name=model.certificate.issuer,
        subject_name=model.certificate.subject,
        public_key=model.key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=model.certificate.not_valid_before_utc,
        not_valid_after=model.certificate.not_valid_after_utc,
    ).add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]),
        critical=False,
    )
    return KeyPair(builder.sign(root.key, SHA256()), model.key)


def dial(
    target: str, service: str, bundle: bytes, pair: KeyPair | None = None, *behind: x509.Certificate
) -> grpc.aio.Channel:
    """A channel as anybody could make it, on a connection of its own; `behind` are sent with
    the certificate."""
    key = pair.key_pem.encode() if pair else None
    chain = pem_of(pair.certificate, *behind).encode() if pair else None
    options = [
        ("grpc.ssl_target_name_override", server_name(service, TRUST_DOMAIN)),
        ("grpc.use_local_subchannel_pool", 1),
        # It is refused at once, or not at all.
        ("grpc.enable_retries", 0),
    ]
    credentials = grpc.ssl_channel_credentials(bundle, key, chain)
    return grpc.aio.secure_channel(target, credentials, options=options)
