"""The secrets of a deployment in memory, and tenants' keys that only count."""

import secrets
from collections import Counter

from mesh.errors import EventStoreUnavailable


class MemoryKeyring:
    """Shared by the processes of one deployment. While `reachable` is false it raises."""

    def __init__(self) -> None:
        self.secrets: dict[str, bytes] = {}
        self.reachable = True
        self._rotations: Counter[str] = Counter()

    async def secret(self, name: str) -> bytes:
        self._refuse_unreachable()
        return self.secrets.setdefault(name, secrets.token_bytes(32))

    async def destroy(self, name: str) -> None:
        self._refuse_unreachable()
        self.secrets.pop(name, None)

    async def rotate_tenant_key(self, tenant: str) -> tuple[str, int]:
        self._refuse_unreachable()
        self._rotations[tenant] += 1
        return f"{tenant}-{self._rotations[tenant]}", 0

    async def rotate_master_key(self) -> tuple[str, int]:
        self._refuse_unreachable()
        return "master-2", len(self.secrets)

    def _refuse_unreachable(self) -> None:
        if not self.reachable:
            raise EventStoreUnavailable("the key store is out of reach")
