"""The nkeys of NATS in a data folder: made, rotated, and handed to subscribers.

nats/<user>.nkey        the user's seed
nats/subscribers.json   public keys of those who hear a tenant's events
nats/access.conf        what nats-server reads of it; made of the rest

A command may change them while Weft runs: the server reads `access.conf` anew at a signal.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import nkeys

from mesh.errors import AlreadyExists, DataDamaged, LimitExceeded, NotFound, Unavailable
from mesh.ids import RESOURCE_ID
from mesh.private_files import write_private
from mesh.runtime.child_process import holder
from mesh.runtime.nats_access import Subscriber, access_configuration
from mesh.runtime.nats_users import BusUser

SUBSCRIBERS_MAX = 1000
_ID = re.compile(RESOURCE_ID)
_RELOAD_SECONDS_MAX = 10.0
_PAUSE_SECONDS = 0.05
_LOG_BYTES_MAX = 1_000_000


class NatsCredentials:
    """The credentials of the embedded server whose folder is `folder`. Changes by several
    processes take turns; none leaves a half-written file."""

    def __init__(self, folder: Path, users: Sequence[BusUser]) -> None:
        self._folder = folder
        self._users = users
        self._subscribers_file = folder / "subscribers.json"

    def seed_file(self, user: str) -> Path:
        """The file with that user's seed."""
        return self._folder / f"{user}.nkey"

    def renew(self) -> None:
        """As `rotate`, before the server starts: so what was copied of an earlier run lets
        nobody in. DataDamaged where the list of subscribers is damaged."""
        # Of versions that knew one user: it could do everything.
        self.seed_file("user").unlink(missing_ok=True)
        self.rotate()

    def rotate(self) -> None:
        """New nkeys for all users; subscribers' stay as they are."""
        with self._locked():
            for user in self._users:
                _make_seed(self.seed_file(user.name))
            self._write_access()

    def subscribers(self) -> list[Subscriber]:
        """All of them. DataDamaged where their file doesn't parse."""
        try:
            kept = json.loads(self._subscribers_file.read_bytes())
            return [Subscriber(row["tenant"], row["name"], row["nkey"]) for row in kept]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise DataDamaged(f"{self._subscribers_file} is damaged: it lists no nkeys") from error

    def admit(self, tenant: str, name: str, seed_file: Path) -> Subscriber:
        """Makes a subscriber of a tenant's events and writes its seed to a new file (0600).

        Raises AlreadyExists where there is one of that name, or the file; LimitExceeded
        where there are SUBSCRIBERS_MAX.
        """
        with self._locked():
            kept = self.subscribers()
            if any((each.tenant, each.name) == (tenant, name) for each in kept):
                raise AlreadyExists(f"{tenant} has a subscriber {name} already")
            if len(kept) >= SUBSCRIBERS_MAX:
                raise LimitExceeded(f"there are {SUBSCRIBERS_MAX} subscribers already")
            made = new_subscriber(tenant, name, seed_file)
            try:
                self._write_subscribers([*kept, made])
            except BaseException:
                seed_file.unlink()
                raise
            return made

    def revoke(self, tenant: str, name: str) -> Subscriber:
        """Ends a subscriber's access. NotFound where there is none of that name."""
        with self._locked():
            kept = self.subscribers()
            for subscriber in kept:
                if (subscriber.tenant, subscriber.name) == (tenant, name):
                    self._write_subscribers([each for each in kept if each is not subscriber])
                    return subscriber
            raise NotFound(f"{tenant} has no subscriber {name}")

    def _write_subscribers(self, subscribers: Sequence[Subscriber]) -> None:
        rows = [asdict(subscriber) for subscriber in subscribers]
        write_private(self._subscribers_file, json.dumps(rows, indent=1) + "\n")
        self._write_access()

    def _write_access(self) -> None:
        public = {user.name: ensure_seed(self.seed_file(user.name)) for user in self._users}
        text = access_configuration(self._users, public, self.subscribers())
        write_private(self._folder / "access.conf", text)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        lock = os.open(self._folder / "access.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


async def reload_server(folder: Path) -> bool:
    """Lets the server that runs on the folder read its credentials anew, and returns once
    it did; False where none runs. Unavailable where it doesn't within 10 s."""
    pid = holder(folder / "server.lock", folder / "nats.conf")
    if pid is None:
        return False
    log = folder / "server.log"
    offset = log.stat().st_size
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGHUP)
    for _ in range(int(_RELOAD_SECONDS_MAX / _PAUSE_SECONDS)):
        await asyncio.sleep(_PAUSE_SECONDS)
        said = _said(log, offset)
        if b"Reloaded server configuration" in said:
            return True
        if b"Failed to reload" in said:
            break
    raise Unavailable(f"nats-server doesn't take its new credentials; see {log}")


def _said(log: Path, offset: int) -> bytes:
    """What the log says behind `offset`; all of it where a new one was begun."""
    with log.open("rb") as file:
        file.seek(offset if file.seek(0, os.SEEK_END) >= offset else 0)
        return file.read(_LOG_BYTES_MAX)


def new_subscriber(tenant: str, name: str, seed_file: Path) -> Subscriber:
    """A subscriber with a new seed in a new file (0600); AlreadyExists where it is there."""
    if not _ID.fullmatch(tenant) or not _ID.fullmatch(name):
        raise ValueError("a tenant's id and a subscriber's name are of a-z, 0-9 and -")
    try:
        descriptor = os.open(seed_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise AlreadyExists(f"{seed_file} is there already") from None
    seed = _new_seed()
    with open(descriptor, "wb") as file:
        file.write(seed + b"\n")
    return Subscriber(tenant, name, _public_key(seed))


def ensure_seed(path: Path) -> str:
    """Makes a user's nkey seed in `path` (0600) unless it is there, and returns the
    public key. A seed that others could read is replaced. Raises DataDamaged where the
    file holds no seed."""
    try:
        with path.open("rb") as file:
            exposed = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077
            seed = file.read(200).strip()
    except FileNotFoundError:
        exposed, seed = 0, b""
    if exposed or not seed:
        return _make_seed(path)
    try:
        return _public_key(seed)
    except (nkeys.NkeysError, ValueError) as error:
        raise DataDamaged(f"{path} holds no nkey seed: remove it to have a new one made") from error


def _make_seed(path: Path) -> str:
    seed = _new_seed()
    write_private(path, seed.decode() + "\n")
    return _public_key(seed)


def _new_seed() -> bytes:
    return bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))


def _public_key(seed: bytes) -> str:
    return str(nkeys.from_seed(seed).public_key, "ascii")
