"""An authority of the test, and certificates by it with a SPIFFE id each."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh.control.xds.bootstrap import CertificateFiles

_LIFE = timedelta(hours=1)


class Authority:
    """Signs certificates; they lie in a folder each below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        basic = x509.BasicConstraints(ca=True, path_length=0)
        built = self._builder(self._name, self._key).add_extension(basic, critical=True)
        self._certificate = built.sign(self._key, hashes.SHA256())

    def issue(self, spiffe_id: str) -> CertificateFiles:
        """A certificate of that name, for either side of a connection."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)])
        basic = x509.BasicConstraints(ca=False, path_length=None)
        certificate = (
            self._builder(x509.Name([]), key)
            .add_extension(basic, critical=True)
            .add_extension(names, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        folder = self._folder / spiffe_id.rpartition("/")[2]
        folder.mkdir(mode=0o700, parents=True)
        files = CertificateFiles(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
        files.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        files.authorities.write_bytes(self._certificate.public_bytes(Encoding.PEM))
        files.private_key.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return files

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _LIFE)
            .not_valid_after(now + _LIFE)
        )
