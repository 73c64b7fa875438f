"""Certificates of a deployment's own authority: made, and read (RFC 5280).

Keys are of the curve P-256. A root signs leaves only, never another authority (path length
0); leaves serve as a server's and as a client's certificate, as SPIFFE's X.509-SVID has it,
and those of clients as that only.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATED = timedelta(minutes=5)
"""How much the clock of who checks a certificate may be behind."""
BUNDLE_ROOTS_MAX = 8
DNS_LENGTH_MAX = 253
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and the key that belongs to it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate_pem(self) -> str:
        """The certificate as PEM."""
        return pem_of(self.certificate)

    @property
    def key_pem(self) -> str:
        """The private key as PEM, not encrypted: for a file of mode 0600."""
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self.key.private_bytes(*form).decode()


@dataclass(frozen=True, slots=True)
class Names:
    """What a leaf is called: one URI, and the names and addresses by which it is dialled."""

    uri: str
    dns: tuple[str, ...] = ()
    ip: tuple[str, ...] = ()


def new_root(trust_domain: str, now: datetime, days: float) -> KeyPair:
    """A self-signed authority of the trust domain that is valid for that many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Each root has a name of its own, so that whoever checks a leaf tries the right one.
    serial = x509.random_serial_number()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Weft"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Weft CA {serial & 0xFFFFFFFF:08x}"),
        ]
    )
    builder = (
        _begun(name, name, key, now, days, serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]
            ),
            critical=False,
        )
        .add_extension(_key_identifier(key), critical=False)
    )
    return KeyPair(builder.sign(key, SHA256()), key)


def dns_name(text: str) -> str:
    """`text` in small letters, where it is a host's name (RFC 1123, section 2.1); ValueError
    where not."""
    if _is_address(text):
        raise ValueError(f"{text} is an address, not a name: --ip takes those")
    labels = text.split(".")
    if (
        len(text) > DNS_LENGTH_MAX
        or not all(map(_LABEL.fullmatch, labels))
        # What looks like an address is none of a host's (RFC 1123, section 2.1).
        or labels[-1].isdigit()
    ):
        raise ValueError(
            f"{text!r} is no DNS name: letters, digits, - and ., as in weft-1.example.org"
        )
    return text.lower()


def ip_text(text: str) -> str:
    """`text` as an IP address is written, where it is one that can be dialled; ValueError
    where not."""
    if not _is_address(text):
        raise ValueError(f"{text!r} is no IP address, as 10.0.0.7 or fd00::7; --dns takes names")
    address = ipaddress.ip_address(text)
    if address.is_unspecified or address.is_multicast or "%" in text:
        raise ValueError(f"{text} is no address at which one machine is reached")
    return str(address)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def new_leaf(
    root: KeyPair, names: Names, now: datetime, days: float, *, serves: bool = True
) -> KeyPair:
    """A certificate that the root signs, valid for that many days, and no longer than the
    root is; as a client's only, unless it `serves`. ValueError for what isn't an IP address."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = root.certificate
    days = min(days, (issuer.not_valid_after_utc - now) / timedelta(days=1))
    called = [
        x509.UniformResourceIdentifier(names.uri),
        *map(x509.DNSName, names.dns),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in names.ip),
    ]
    usage = [ExtendedKeyUsageOID.SERVER_AUTH] if serves else []
    usage.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    from_issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Weft")])
    builder = (
        _begun(subject, issuer.subject, key, now, days, x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(x509.SubjectAlternativeName(called), critical=False)
        .add_extension(_key_identifier(key), critical=False)
        .add_extension(from_issuer, critical=False)
    )
    return KeyPair(builder.sign(root.key, SHA256()), key)


def read_pair(certificate_pem: bytes, key_pem: bytes) -> KeyPair:
    """A certificate with its key. ValueError where one doesn't parse, or they don't belong
    together; its text shows neither."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError):
        raise ValueError("the private key doesn't parse") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the private key isn't of an elliptic curve")
    if key.public_key() != certificate.public_key():
        raise ValueError("the private key isn't that of the certificate")
    return KeyPair(certificate, key)


def read_bundle(text: bytes) -> list[x509.Certificate]:
    """The roots of a bundle. ValueError where it doesn't parse, holds none, or more than
    BUNDLE_ROOTS_MAX."""
    roots = x509.load_pem_x509_certificates(text)
    if len(roots) > BUNDLE_ROOTS_MAX:
        raise ValueError(f"a bundle holds at most {BUNDLE_ROOTS_MAX} roots")
    return roots


def names_of(certificate: x509.Certificate) -> Names:
    """What it is called. ValueError unless it has exactly one URI: X.509-SVID, section 2."""
    try:
        called = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ValueError("the certificate has no SPIFFE ID") from None
    uris = called.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError("the certificate must have exactly one URI, its SPIFFE ID")
    addresses = called.get_values_for_type(x509.IPAddress)
    dns = called.get_values_for_type(x509.DNSName)
    return Names(uris[0], tuple(dns), tuple(map(str, addresses)))


def signed_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    """Whether the root issued the certificate."""
    try:
        certificate.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def pem_of(*certificates: x509.Certificate) -> str:
    """Certificates as PEM, one behind the other."""
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)


def bundle_of(roots: Sequence[x509.Certificate]) -> str:
    """A bundle of those roots; ValueError past BUNDLE_ROOTS_MAX."""
    if len(roots) > BUNDLE_ROOTS_MAX:
        raise ValueError(f"a bundle holds at most {BUNDLE_ROOTS_MAX} roots")
    return pem_of(*roots)


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    days: float,
    serial: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_identifier(key: ec.EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
