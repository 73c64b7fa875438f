"""A certificate, of a process or of a client, as it lies on the disk; picked up anew when it
changes.

<folder>/cert.pem     its certificate
<folder>/key.pem      its private key (0600)
<folder>/bundle.pem   the roots that are trusted

`weft ca issue` puts a new folder in the place of the old one, by a symbolic link. Files that
are replaced one by one, as by other tools, count once they fit each other.
"""

import os
import stat
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import structlog

from mesh.clock import NANOSECONDS, SYSTEM, Clock
from mesh.errors import FailedPrecondition
from mesh.security.certificates import KeyPair, names_of, read_bundle, read_pair, signed_by
from mesh.security.spiffe import Holder, parse_holder

CERTIFICATE, KEY, BUNDLE = FILES = ("cert.pem", "key.pem", "bundle.pem")
FILE_BYTES_MAX = 64 * 1024

_log = structlog.get_logger(__name__)
_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What the files held at one moment, checked: the certificate is of a process or a client,
    signed by a root of the bundle, and the key is its own."""

    holder: Holder
    expire_time: datetime
    certificate: bytes
    key: bytes = field(repr=False)
    bundle: bytes


class CertificateFiles:
    """Reads the files of a folder. Raises FailedPrecondition where they can't be used, or the
    certificate has expired; once made, it goes on with what was good before. Safe to share
    between threads, since gRPC asks from its own.
    """

    def __init__(self, folder: Path, clock: Clock = SYSTEM) -> None:
        self.folder = folder.expanduser().absolute()
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp = self._stamp_now()
        self._held = self._read()

    @property
    def bundle_file(self) -> Path:
        """The file with the roots that are trusted: what a client needs."""
        return self.folder / BUNDLE

    def held(self) -> Held:
        """What the files hold now: the same object until they change. Costs three `stat`."""
        with self._lock:
            stamp = self._stamp_now()
            if stamp is not None and stamp != self._stamp:
                self._stamp = stamp
                self._read_again()
            return self._held

    def _read_again(self) -> None:
        try:
            self._held = self._read()
        except FailedPrecondition as error:
            _log.warning("certificate_unusable", problem=error.message)
        else:
            expires = self._held.expire_time.isoformat()
            _log.info("certificate_changed", holder=str(self._held.holder), expires=expires)

    def _stamp_now(self) -> _Stamp | None:
        """Differs whenever a file does; None while one is missing."""
        try:
            found = [os.stat(self.folder / name) for name in FILES]
        except OSError:
            return None
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in found)

    def _read(self) -> Held:
        # The link is followed once, so that all files are of one issue.
        folder = Path(os.path.realpath(self.folder))
        try:
            if stat.S_IMODE((folder / KEY).stat().st_mode) & 0o077:
                raise FailedPrecondition(
                    f"others can read {self.folder / KEY}: chmod 600 it, or issue it anew"
                )
            certificate, key, bundle = (_read_short(folder / name) for name in FILES)
            held = _checked(certificate, key, bundle)
        except OSError as error:
            raise FailedPrecondition(
                f"the certificate in {self.folder} can't be read: {error.strerror};"
                " `weft ca issue` makes one"
            ) from error
        except ValueError as error:
            raise FailedPrecondition(
                f"the certificate in {self.folder} can't be used: {error};"
                " `weft ca issue` makes one"
            ) from error
        now = datetime.fromtimestamp(self._clock.now_ns() / NANOSECONDS, UTC)
        if held.expire_time <= now:
            raise FailedPrecondition(
                f"the certificate in {self.folder} expired on"
                f" {held.expire_time:%Y-%m-%d %H:%M} UTC; `weft ca issue --all` renews it"
            )
        return held


def _checked(certificate: bytes, key: bytes, bundle: bytes) -> Held:
    pair: KeyPair = read_pair(certificate, key)
    holder = parse_holder(names_of(pair.certificate).uri)
    if holder is None:
        raise ValueError("it isn't one of a process of Weft, or of a client")
    if not any(signed_by(pair.certificate, root) for root in read_bundle(bundle)):
        raise ValueError("no root of its bundle signed it")
    return Held(holder, pair.certificate.not_valid_after_utc, certificate, key, bundle)


def _read_short(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(FILE_BYTES_MAX + 1)
    if len(text) > FILE_BYTES_MAX:
        raise ValueError(f"{path.name} has more than {FILE_BYTES_MAX} bytes")
    return text
