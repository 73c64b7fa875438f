"""Keyrings for tests, in memory."""

import base64
import secrets

from mesh.clock import SYSTEM, Clock
from mesh.events.codec import Codecs
from mesh.security.key_store import KeyStore, MemoryKeyStore
from mesh.security.keyring import Keyring
from mesh.security.master_key import EnvironmentMasterKey, MasterKey
from mesh.security.sealing import SealedCodec


def new_master_text() -> str:
    """A random master key, as the variable would hold it."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def memory_master() -> MasterKey:
    """A master key of its own."""
    return EnvironmentMasterKey(new_master_text())


def memory_keyring(
    store: KeyStore | None = None, master: MasterKey | None = None, clock: Clock = SYSTEM
) -> Keyring:
    """A keyring that isn't started; on a key store and a master key of its own where none
    is given."""
    return Keyring(store or MemoryKeyStore(), master or memory_master(), clock)


def sealing(keyring: Keyring, sealed_after: int = 0) -> Codecs:
    """Codecs that seal, and read what is in the clear up to a position."""
    return Codecs(SealedCodec(keyring), sealed_after=sealed_after)
