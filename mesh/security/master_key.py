"""The master key, which wraps all others and lies outside the data folder: the port, and
back ends for a file and for an environment variable.

A wrapped key is the id of the generation that wrapped it (8 bytes), then nonce,
ciphertext and tag. Older generations go on unwrapping until nothing needs them.
"""

import base64
import binascii
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.errors import FailedPrecondition
from mesh.private_files import sync_folder
from mesh.security.aead import KEY_BYTES, derived, seal, unseal
from mesh.security.settings import SecuritySettings

VARIABLE = "WEFT_SECURITY_MASTER_KEY"
PRESENT_FILE = "master.key"

_ID_BYTES = 8
_FILE_BYTES_MAX = 200


class MasterKeyUnknown(FailedPrecondition):
    """What is to be unwrapped was wrapped by another master key than those at hand."""


class MasterKey(Protocol):
    """Wraps and unwraps keys, and never shows its own: a KMS fits behind it.

    `context` binds what is wrapped to its place, as associated data. Methods may raise
    Unavailable where the key lies elsewhere.
    """

    @property
    def key_id(self) -> str:
        """Names the generation that wraps; empty before there is one."""
        ...

    @property
    def origin(self) -> str:
        """Where the key comes from, for a person who has to look there."""
        ...

    async def wrap(self, plain: bytes, context: bytes) -> bytes:
        """`plain`, wrapped by the present generation."""
        ...

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """What was wrapped, by whichever generation. MasterKeyUnknown where that isn't at
        hand, DataDamaged where it was changed or belongs elsewhere."""
        ...

    async def rotate(self) -> None:
        """Makes a new generation, which wraps from here on. FailedPrecondition where
        this back end leaves that to people."""
        ...


@dataclass(frozen=True, slots=True)
class _Generation:
    key_id: str
    aead: AESGCM

    @classmethod
    def of(cls, key: bytes) -> "_Generation":
        # Not a hash of the key itself: the id is written beside what the key wraps.
        key_id = hashlib.sha256(derived(key, "weft master key id")).hexdigest()[: 2 * _ID_BYTES]
        return cls(key_id, AESGCM(derived(key, "weft master key wrap")))

    def wrap(self, plain: bytes, context: bytes) -> bytes:
        head = bytes.fromhex(self.key_id)
        return head + seal(self.aead, plain, head + context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        return unseal(self.aead, wrapped[_ID_BYTES:], wrapped[:_ID_BYTES] + context)


class FileMasterKey:
    """Keeps the master key in `master.key` of the secrets folder, in base64, made when it
    first wraps something. `master.<key id>.key` are older generations, and the present one
    too once it was rotated.

    Raises FailedPrecondition where a file can't be read, holds no key, or can be read by
    others than its owner.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self._present: _Generation | None = None
        self._known: dict[str, _Generation] = {}
        self._read()

    @property
    def key_id(self) -> str:
        """See MasterKey."""
        return self._present.key_id if self._present else ""

    @property
    def origin(self) -> str:
        """See MasterKey."""
        return str(self._folder / PRESENT_FILE)

    async def wrap(self, plain: bytes, context: bytes) -> bytes:
        """See MasterKey. It is seldom: another process may have rotated meanwhile."""
        self._read()
        if self._present is None:
            self._make(self._folder / PRESENT_FILE, secrets.token_bytes(KEY_BYTES))
            self._read()
        assert self._present is not None
        return self._present.wrap(plain, context)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See MasterKey."""
        key_id = wrapped[:_ID_BYTES].hex()
        if key_id not in self._known:
            self._read()
        return _known(self._known, key_id, self.origin).unwrap(wrapped, context)

    async def rotate(self) -> None:
        """See MasterKey. Each generation stays under its id, so that of any number of
        processes that rotate at once none loses what another one wraps with."""
        self._read()
        present = self._folder / PRESENT_FILE
        key = secrets.token_bytes(KEY_BYTES)
        if self._present is None:
            self._make(present, key)
        else:
            self._make_older(_read_key(present))
            self._make_older(key)
            new = self._folder / f"{PRESENT_FILE}.{secrets.token_hex(8)}"
            self._make(new, key)
            new.replace(present)
            sync_folder(self._folder)
        self._read()

    def _read(self) -> None:
        try:
            self._read_files()
        except OSError as error:
            raise FailedPrecondition(
                f"the secrets folder {self._folder} can't be read: {error.strerror}"
            ) from error

    def _read_files(self) -> None:
        present = self._folder / PRESENT_FILE
        if present.exists():
            self._present = _Generation.of(_read_key(present))
            self._known[self._present.key_id] = self._present
        for path in self._folder.glob("master.*.key"):
            if path.name.split(".")[1] not in self._known:
                generation = _Generation.of(_read_key(path))
                self._known[generation.key_id] = generation

    def _make_older(self, key: bytes) -> None:
        """Keeps a key under its id, which no other generation ever replaces."""
        path = self._folder / f"master.{_Generation.of(key).key_id}.key"
        if not path.exists():
            self._make(path, key)

    def _make(self, path: Path, key: bytes) -> None:
        """Writes a key under a name that nobody has; whoever lost the race to it finds it."""
        new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(new, flags, 0o600), "wb") as file:
                file.write(base64.b64encode(key) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            try:
                # Whole or not at all, and never in place of another.
                os.link(new, path)
            except FileExistsError:
                pass
            finally:
                new.unlink()
            sync_folder(self._folder)
        except OSError as error:
            raise FailedPrecondition(
                f"the master key can't be kept in {self._folder}: {error.strerror}; "
                "set WEFT_SECURITY_SECRETS_DIR to a folder that can be written"
            ) from error


class EnvironmentMasterKey:
    """The master key as a variable holds it: base64 of 32 bytes. After a comma may follow
    older generations, which only unwrap. FailedPrecondition where it isn't that."""

    def __init__(self, text: str) -> None:
        self._generations = [
            _Generation.of(_decoded(part.encode(), VARIABLE)) for part in text.split(",")
        ]
        self._known = {generation.key_id: generation for generation in self._generations}

    @property
    def key_id(self) -> str:
        """See MasterKey."""
        return self._generations[0].key_id

    @property
    def origin(self) -> str:
        """See MasterKey."""
        return f"the variable {VARIABLE}"

    async def wrap(self, plain: bytes, context: bytes) -> bytes:
        """See MasterKey."""
        return self._generations[0].wrap(plain, context)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See MasterKey."""
        return _known(self._known, wrapped[:_ID_BYTES].hex(), self.origin).unwrap(wrapped, context)

    async def rotate(self) -> None:
        """See MasterKey. A variable is set by people: the new key first, then the old one."""
        if len(self._generations) == 1:
            raise FailedPrecondition(
                f"set {VARIABLE} to `<new key>,<present key>` and start again, then rotate"
            )


def open_master_key(settings: SecuritySettings) -> MasterKey:
    """The master key of this process: the variable's where it is set, else the file's.

    The variable is taken out of the environment, so that no child inherits it.
    """
    text = os.environ.pop(VARIABLE, "")
    return EnvironmentMasterKey(text) if text else FileMasterKey(settings.secrets_dir)


def _known(generations: dict[str, _Generation], key_id: str, origin: str) -> _Generation:
    generation = generations.get(key_id)
    if generation is None:
        raise MasterKeyUnknown(
            f"the stored data belong to another master key ({key_id}) than that of {origin}",
            metadata={"key_id": key_id},
        )
    return generation


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise FailedPrecondition(f"{path} can be read by others: chmod 600 it")
            return _decoded(file.read(_FILE_BYTES_MAX), str(path))
    except OSError as error:
        raise FailedPrecondition(f"{path} can't be read: {error.strerror}") from error


def _decoded(text: bytes, origin: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise FailedPrecondition(f"{origin} doesn't hold 32 bytes in base64")
    return key
