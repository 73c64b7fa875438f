"""The certificate authority of a deployment, in a folder beside the master key.

ca.key                   the root that signs: private key and certificate in one file (0600)
bundle.pem               the roots that are trusted, the one that signs first
certificates/<role>      a link to the present issue for the processes of that role

It is used by `weft ca` and by nobody else: what serves needs its own certificate only. A root
is rotated with an overlap: the new one is trusted before anything is signed by it, and the
old one until nothing is.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from mesh.clock import NANOSECONDS, SYSTEM, Clock
from mesh.errors import AlreadyExists, DataDamaged, FailedPrecondition
from mesh.private_files import make_private_folder, write_private
from mesh.security.certificate_files import BUNDLE, CERTIFICATE, KEY
from mesh.security.certificates import (
    KeyPair,
    Names,
    bundle_of,
    names_of,
    new_leaf,
    new_root,
    read_bundle,
    read_pair,
    signed_by,
)
from mesh.security.spiffe import ProcessId, parse_process_id, server_name, services_of

ROOT_DAYS = 5 * 365.0
LEAF_DAYS = 30.0
LOCAL_DNS = ("localhost",)
MESH_DNS = ("weft",)
"""What xDS clients call whoever they dial (`xds:///weft`), and tell apart by SPIFFE IDs. gRPC's
server logs an error for each connection by a name that it hasn't."""
LOCAL_IP = ("127.0.0.1", "::1")

_KEY_FILE = "ca.key"
_ISSUED = "certificates"


@dataclass(frozen=True, slots=True)
class Root:
    """A root of the bundle; `signs` says whether it is the one that issues."""

    name: str
    expire_time: datetime
    signs: bool


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate for the processes of a role, and the folder to point them at.
    `current` says whether the root that signs now signed it."""

    process: ProcessId
    folder: Path
    names: Names
    expire_time: datetime
    current: bool


class CertificateAuthority:
    """Makes and renews what is in the folder; several processes take turns. `catalogue` are
    the names of all services.

    Raises FailedPrecondition, in words that say what to do, where there is no authority yet or
    its state doesn't allow something, DataDamaged where a file doesn't parse, ValueError for
    names that can't be, OSError where a file can't be written.
    """

    def __init__(self, folder: Path, catalogue: Collection[str], clock: Clock = SYSTEM) -> None:
        self.folder = folder.expanduser().absolute()
        self._catalogue = catalogue
        self._clock = clock

    def init(self, trust_domain: str, days: float = ROOT_DAYS) -> Root:
        """Makes the authority; AlreadyExists where there is one, which stays."""
        with self._locked():
            if (self.folder / _KEY_FILE).exists():
                raise AlreadyExists(f"there is an authority in {self.folder} already")
            root = new_root(trust_domain, self._now(), days)
            self._write(BUNDLE, root.certificate_pem)
            self._write_root(root)
            return _shown_root(root.certificate, root)

    def issue(
        self,
        role: str,
        dns: Sequence[str] = (),
        ip: Sequence[str] = (),
        days: float = LEAF_DAYS,
    ) -> Issued:
        """A new key and certificate for the processes of a role. They are dialled by clients
        at this machine's own addresses, and by `dns` and `ip`."""
        with self._locked():
            root, roots = self._opened()
            domain = _trust_domain(root.certificate)
            for name in dns:
                if name == domain or name.endswith(f".{domain}"):
                    raise ValueError(f"{name} is a name that only Weft's own services have")
            own = tuple(server_name(each, domain) for each in services_of(role, self._catalogue))
            process = ProcessId(domain, role)
            called = tuple(dict.fromkeys((*own, *MESH_DNS, *LOCAL_DNS, *dns)))
            names = Names(str(process), called, tuple(dict.fromkeys((*LOCAL_IP, *ip))))
            return self._issue(root, roots, process, names, days)

    def issue_all(self, days: float = LEAF_DAYS) -> list[Issued]:
        """New keys and certificates, with the same names, for all roles that have one."""
        with self._locked():
            root, roots = self._opened()
            renewed = []
            for old in self._issued(root):
                domain = old.process.trust_domain
                services = services_of(old.process.role, self._catalogue)
                own = tuple(server_name(each, domain) for each in services)
                kept = tuple(name for name in old.names.dns if not name.endswith(f".{domain}"))
                called = tuple(dict.fromkeys((*own, *MESH_DNS, *kept)))
                names = Names(old.names.uri, called, old.names.ip)
                renewed.append(self._issue(root, roots, old.process, names, days))
            return renewed

    def rotate(self, days: float = ROOT_DAYS) -> Root:
        """Makes another root, which signs from here on, and has both trusted wherever there is
        a certificate. FailedPrecondition while an earlier rotation isn't finished."""
        with self._locked():
            root, roots = self._opened()
            if len(roots) > 1:
                raise FailedPrecondition(
                    "a rotation is under way: `weft ca issue --all`, then"
                    " `weft ca rotate --finish` ends it"
                )
            made = new_root(_trust_domain(root.certificate), self._now(), days)
            # Trusted first: whatever is cut short after this, nothing is signed by a stranger.
            self._write(BUNDLE, bundle_of([made.certificate, root.certificate]))
            self._publish_bundle(root)
            self._write_root(made)
            return _shown_root(made.certificate, made)

    def finish(self) -> list[Root]:
        """Has the roots trusted no more that don't sign; returns those. FailedPrecondition
        while a certificate that was issued here is signed by one of them."""
        with self._locked():
            root, roots = self._opened()
            old = sorted(each.process.role for each in self._issued(root) if not each.current)
            if old:
                raise FailedPrecondition(
                    f"the old root signed the certificates of {', '.join(old)}:"
                    " `weft ca issue --all` renews them"
                )
            self._write(BUNDLE, root.certificate_pem)
            self._publish_bundle(root)
            return [_shown_root(each, root) for each in roots if each != root.certificate]

    def roots(self) -> list[Root]:
        """The roots that are trusted."""
        root, roots = self._opened()
        return [_shown_root(each, root) for each in roots]

    def issued(self) -> list[Issued]:
        """The present certificates, by role."""
        return self._issued(self._opened()[0])

    @property
    def trust_domain(self) -> str:
        """The one that all IDs are in."""
        return _trust_domain(self._opened()[0].certificate)

    def _issue(
        self,
        root: KeyPair,
        roots: Sequence[x509.Certificate],
        process: ProcessId,
        names: Names,
        days: float,
    ) -> Issued:
        if root.certificate.not_valid_after_utc <= self._now():
            raise FailedPrecondition("the root has expired: `weft ca rotate` makes another")
        leaf = new_leaf(root, names, self._now(), days)
        link = self._publish(process.role, leaf.certificate_pem, leaf.key_pem, bundle_of(roots))
        expires = leaf.certificate.not_valid_after_utc
        return Issued(process, link, names, expires, current=True)

    def _publish_bundle(self, root: KeyPair) -> None:
        bundle = (self.folder / BUNDLE).read_text()
        for each in self._issued(root):
            texts = [(each.folder / name).read_text() for name in (CERTIFICATE, KEY)]
            self._publish(each.process.role, texts[0], texts[1], bundle)

    def _publish(self, role: str, certificate: str, key: str, bundle: str) -> Path:
        """Puts a new folder with these files behind the link of the role, so that a reader
        sees all of one issue or all of another; the one before stays for who is reading."""
        link = self.folder / _ISSUED / role
        before = link.readlink().name if link.is_symlink() else ""
        made = link.with_name(f".{role}.{secrets.token_hex(8)}")
        for name, text in ((CERTIFICATE, certificate), (KEY, key), (BUNDLE, bundle)):
            write_private(made / name, text)
        new = link.with_name(f".{role}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(made.name)
        new.replace(link)
        for old in link.parent.glob(f".{role}.*"):
            # The role `agents` isn't to touch what is of `agents.state`.
            hexadecimal = old.name.removeprefix(f".{role}.")
            if len(hexadecimal) == 16 and old.name not in (made.name, before):
                shutil.rmtree(old)
        return link

    def _opened(self) -> tuple[KeyPair, list[x509.Certificate]]:
        """The root that signs, and all that are trusted."""
        try:
            text = (self.folder / _KEY_FILE).read_bytes()
        except FileNotFoundError:
            raise FailedPrecondition(
                f"there is no authority in {self.folder}: `weft ca init` makes one"
            ) from None
        try:
            root = read_pair(text, text)
            roots = read_bundle((self.folder / BUNDLE).read_bytes())
            if root.certificate not in roots:
                raise ValueError("the bundle lacks the root that signs")
        except (OSError, ValueError) as error:
            raise DataDamaged(f"the authority in {self.folder} is damaged: {error}") from error
        return root, roots

    def _issued(self, root: KeyPair) -> list[Issued]:
        found = []
        for link in sorted((self.folder / _ISSUED).glob("[!.]*")):
            try:
                certificate = x509.load_pem_x509_certificate((link / CERTIFICATE).read_bytes())
                names = names_of(certificate)
                process = parse_process_id(names.uri)
                if process is None or process.role != link.name:
                    raise ValueError("it is of another process")
            except (OSError, ValueError) as error:
                raise DataDamaged(f"the certificate in {link} is damaged: {error}") from error
            current = signed_by(certificate, root.certificate)
            expires = certificate.not_valid_after_utc
            found.append(Issued(process, link, names, expires, current))
        return found

    def _write_root(self, root: KeyPair) -> None:
        self._write(_KEY_FILE, root.key_pem + root.certificate_pem)

    def _write(self, name: str, text: str) -> None:
        write_private(self.folder / name, text)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_ns() / NANOSECONDS, UTC)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_private_folder(self.folder)
        make_private_folder(self.folder / _ISSUED)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _trust_domain(root: x509.Certificate) -> str:
    return names_of(root).uri.removeprefix("spiffe://")


def _shown_root(certificate: x509.Certificate, root: KeyPair) -> Root:
    name = certificate.subject.rfc4514_string().split(",")[0].removeprefix("CN=")
    return Root(name, certificate.not_valid_after_utc, certificate == root.certificate)
