"""The certificate authority of a deployment, in a folder beside the master key.

ca.key                   the root that signs: private key and certificate in one file (0600)
bundle.pem               the roots that are trusted, the one that signs first
certificates/<name>      a link to the present issue for processes of one role, of whose name it
                         is unless it was given another
clients/<name>           as well, for a client that isn't one of Weft's processes

It is used by `weft ca` and by nobody else: what serves needs its own certificate only. A root
is rotated with an overlap: the new one is trusted before anything is signed by it, and the
old one until nothing is.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from mesh.clock import NANOSECONDS, SYSTEM, Clock
from mesh.errors import AlreadyExists, DataDamaged, FailedPrecondition
from mesh.ids import RESOURCE_ID
from mesh.private_files import make_private_folder, write_private
from mesh.security.certificate_files import BUNDLE, CERTIFICATE, KEY
from mesh.security.certificates import (
    KeyPair,
    Names,
    bundle_of,
    dns_name,
    ip_text,
    names_of,
    new_leaf,
    new_root,
    read_bundle,
    read_pair,
    signed_by,
)
from mesh.security.spiffe import (
    ClientId,
    Holder,
    ProcessId,
    parse_holder,
    server_name,
    services_of,
)

ROOT_DAYS = 5 * 365.0
LEAF_DAYS = 30.0
LOCAL_DNS = ("localhost",)
MESH_DNS = ("weft",)
"""What xDS clients call whoever they dial (`xds:///weft`), and tell apart by SPIFFE IDs. gRPC's
server logs an error for each connection by a name that it hasn't."""
LOCAL_IP = ("127.0.0.1", "::1")

_KEY_FILE = "ca.key"
_ISSUED = "certificates"
_CLIENTS = "clients"
_NAME = re.compile(RESOURCE_ID)


@dataclass(frozen=True, slots=True)
class Root:
    """A root of the bundle; `signs` says whether it is the one that issues."""

    name: str
    expire_time: datetime
    signs: bool


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate for the processes of a role, or for a client, and the folder to point them
    at. `current` says whether the root that signs now signed it, `lost` which names and addresses
    the one had that was in that folder before, and this one hasn't."""

    holder: Holder
    folder: Path
    names: Names
    expire_time: datetime
    current: bool
    lost: tuple[str, ...] = ()


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
        *,
        name: str | None = None,
    ) -> Issued:
        """A new key and certificate for the processes of a role. They are dialled by clients
        at this machine's own addresses, and by `dns` and `ip`. Its folder is called `name`, so
        that several machines may have one each; else as the role. FailedPrecondition where the
        folder of that name is for another role."""
        dns, ip = tuple(map(dns_name, dns)), tuple(map(ip_text, ip))
        link = self.folder / _ISSUED / (role if name is None else _checked_name(name))
        with self._locked():
            root, roots = self._opened()
            domain = _trust_domain(root.certificate)
            for each in dns:
                if each == domain or each.endswith(f".{domain}"):
                    raise ValueError(f"{each} is a name that only Weft's own services have")
            process = ProcessId(domain, role)
            before = _found_before(link, root)
            if before is not None and before.holder != process:
                raise FailedPrecondition(
                    f"{link} is that of {before.holder}: --name gives this one another folder"
                )
            own = tuple(server_name(each, domain) for each in services_of(role, self._catalogue))
            called = tuple(dict.fromkeys((*own, *MESH_DNS, *LOCAL_DNS, *dns)))
            names = Names(str(process), called, tuple(dict.fromkeys((*LOCAL_IP, *ip))))
            made = self._issue(root, roots, process, names, days, link)
            had = (*before.names.dns, *before.names.ip) if before is not None else ()
            has = (*names.dns, *names.ip)
            return replace(made, lost=tuple(each for each in had if each not in has))

    def issue_client(self, name: str, days: float = LEAF_DAYS) -> Issued:
        """A new key and certificate for a client of that name that isn't one of Weft's
        processes. It is a client's only: nobody dials it, and it is no service."""
        link = self.folder / _CLIENTS / _checked_name(name)
        with self._locked():
            root, roots = self._opened()
            client = ClientId(_trust_domain(root.certificate), name)
            return self._issue(root, roots, client, Names(str(client)), days, link)

    def issue_all(self, days: float = LEAF_DAYS) -> list[Issued]:
        """New keys and certificates, with the same names, for all that were issued."""
        with self._locked():
            root, roots = self._opened()
            renewed = []
            for old in self._issued(root):
                names = self._renewed(old.holder, old.names)
                renewed.append(self._issue(root, roots, old.holder, names, days, old.folder))
            return renewed

    def _renewed(self, holder: Holder, names: Names) -> Names:
        """What it is called by now: the catalogue may have other services."""
        if isinstance(holder, ClientId):
            return names
        domain = holder.trust_domain
        services = services_of(holder.role, self._catalogue)
        own = tuple(server_name(each, domain) for each in services)
        kept = tuple(name for name in names.dns if not name.endswith(f".{domain}"))
        return Names(names.uri, tuple(dict.fromkeys((*own, *MESH_DNS, *kept))), names.ip)

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
            old = sorted(_place(each.folder) for each in self._issued(root) if not each.current)
            if old:
                raise FailedPrecondition(
                    f"the old root signed {', '.join(old)}: `weft ca issue --all` renews them"
                )
            # Also where nothing is to be ended: one that was cut short is done to its end.
            if len(roots) > 1:
                self._write(BUNDLE, root.certificate_pem)
            self._publish_bundle(root)
            return [_shown_root(each, root) for each in roots if each != root.certificate]

    def roots(self) -> list[Root]:
        """The roots that are trusted."""
        root, roots = self._opened()
        return [_shown_root(each, root) for each in roots]

    def issued(self) -> list[Issued]:
        """The present certificates, by name: of processes, then of clients."""
        return self._issued(self._opened()[0])

    @property
    def trust_domain(self) -> str:
        """The one that all IDs are in."""
        return _trust_domain(self._opened()[0].certificate)

    def _issue(
        self,
        root: KeyPair,
        roots: Sequence[x509.Certificate],
        holder: Holder,
        names: Names,
        days: float,
        link: Path,
    ) -> Issued:
        if root.certificate.not_valid_after_utc <= self._now():
            raise FailedPrecondition("the root has expired: `weft ca rotate` makes another")
        serves = isinstance(holder, ProcessId)
        leaf = new_leaf(root, names, self._now(), days, serves=serves)
        _publish(link, leaf.certificate_pem, leaf.key_pem, bundle_of(roots))
        expires = leaf.certificate.not_valid_after_utc
        return Issued(holder, link, names, expires, current=True)

    def _publish_bundle(self, root: KeyPair) -> None:
        """Has it beside all certificates. What has it stays as it is: whoever serves with that
        would read it again."""
        bundle = (self.folder / BUNDLE).read_text()
        for each in self._issued(root):
            beside = each.folder / BUNDLE
            if beside.exists() and beside.read_text() == bundle:
                continue
            texts = [(each.folder / name).read_text() for name in (CERTIFICATE, KEY)]
            _publish(each.folder, texts[0], texts[1], bundle)

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
        return [
            _read_issued(link, root)
            for folder in (_ISSUED, _CLIENTS)
            for link in sorted((self.folder / folder).glob("[!.]*"))
        ]

    def _write_root(self, root: KeyPair) -> None:
        self._write(_KEY_FILE, root.key_pem + root.certificate_pem)

    def _write(self, name: str, text: str) -> None:
        write_private(self.folder / name, text)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_ns() / NANOSECONDS, UTC)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_private_folder(self.folder)
        for folder in (_ISSUED, _CLIENTS):
            make_private_folder(self.folder / folder)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} can't name a certificate: small letters, digits and -")
    return name


def _place(link: Path) -> str:
    """Which it is, for people."""
    return f"{link.parent.name}/{link.name}"


def _publish(link: Path, certificate: str, key: str, bundle: str) -> None:
    """Puts a new folder with these files behind the link, so that a reader sees all of one
    issue or all of another; the one before stays for who is reading."""
    before = link.readlink().name if link.is_symlink() else ""
    made = link.with_name(f".{link.name}.{secrets.token_hex(8)}")
    for name, text in ((CERTIFICATE, certificate), (KEY, key), (BUNDLE, bundle)):
        write_private(made / name, text)
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(made.name)
    new.replace(link)
    for old in link.parent.glob(f".{link.name}.*"):
        # The role `agents` isn't to touch what is of `agents.state`.
        hexadecimal = old.name.removeprefix(f".{link.name}.")
        if len(hexadecimal) == 16 and old.name not in (made.name, before):
            shutil.rmtree(old)


def _found_before(link: Path, root: KeyPair) -> Issued | None:
    """What is there by now; None where nothing is, or what is damaged, which another one mends."""
    try:
        return _read_issued(link, root) if link.is_symlink() else None
    except DataDamaged:
        return None


def _read_issued(link: Path, root: KeyPair) -> Issued:
    try:
        certificate = x509.load_pem_x509_certificate((link / CERTIFICATE).read_bytes())
        names = names_of(certificate)
        holder = parse_holder(names.uri)
        if holder is None or isinstance(holder, ClientId) != (link.parent.name == _CLIENTS):
            raise ValueError("it is of somebody else")
    except (OSError, ValueError) as error:
        raise DataDamaged(f"the certificate in {link} is damaged: {error}") from error
    current = signed_by(certificate, root.certificate)
    return Issued(holder, link, names, certificate.not_valid_after_utc, current)


def _trust_domain(root: x509.Certificate) -> str:
    return names_of(root).uri.removeprefix("spiffe://")


def _shown_root(certificate: x509.Certificate, root: KeyPair) -> Root:
    name = certificate.subject.rfc4514_string().split(",")[0].removeprefix("CN=")
    return Root(name, certificate.not_valid_after_utc, certificate == root.certificate)
