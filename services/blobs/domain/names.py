"""Names of blobs, and of the objects that hold them.

`headers/<tenant>/<blob>` makes a blob be there; `data/<tenant>/<blob>.<object>.<expires>.<s>`
has its bytes. An object's name says when it expires and whether it came from a session, so
that one listing tells what is to be swept.
"""

import re
from dataclasses import dataclass

from mesh.events.store import StreamName

AREA = "blobs"
HEADERS = "headers"
DATA = "data"

_DATA = re.compile(
    rf"{DATA}/([a-z0-9-]{{1,63}})/([a-z0-9-]{{1,63}})\.([0-9a-z]{{26}})\.([0-9a-f]{{1,16}})\.([01])"
)


@dataclass(frozen=True, slots=True)
class BlobKey:
    """Names a blob within its tenant."""

    tenant: str
    blob: str

    @classmethod
    def parse(cls, name: str) -> "BlobKey":
        """Of `tenants/{tenant}/blobs/{blob}`."""
        _, tenant, _, blob = name.split("/")
        return cls(tenant, blob)

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/blobs/{self.blob}"

    @property
    def header(self) -> str:
        """Key of the object that makes it be there."""
        return f"{HEADERS}/{self.tenant}/{self.blob}"

    @property
    def stream(self) -> StreamName:
        """Where is noted what was done to it."""
        return StreamName(AREA, self.tenant, (self.blob,))

    @property
    def key_stream(self) -> str:
        """By which the key of the tenant's blobs is found."""
        return f"{AREA}.{self.tenant}"


@dataclass(frozen=True, slots=True)
class DataObject:
    """An object with a blob's bytes. `etag` is of 26 characters, and the blob's own;
    `expire_ns` is Unix time, 0 where it stays."""

    key: BlobKey
    etag: str
    expire_ns: int = 0
    of_session: bool = False

    @classmethod
    def parse(cls, text: str) -> "DataObject | None":
        """Of an object's key; None where it isn't that of one."""
        found = _DATA.fullmatch(text)
        if found is None:
            return None
        tenant, blob, etag, expires, of_session = found.groups()
        return cls(BlobKey(tenant, blob), etag, int(expires, 16), of_session == "1")

    def __str__(self) -> str:
        key = self.key
        return f"{DATA}/{key.tenant}/{key.blob}.{self.etag}.{self.expire_ns:x}.{self.of_session:d}"


def session_stream(session: str) -> StreamName:
    """Stream of `tenants/{tenant}/agents/{agent}/sessions/{session}`, whose key the blobs of
    that session are sealed with."""
    _, tenant, _, agent, _, session_id = session.split("/")
    return StreamName("state", tenant, (agent, session_id))
