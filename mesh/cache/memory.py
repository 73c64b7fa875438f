"""The first level: memory, bounded in bytes."""

from collections import OrderedDict, defaultdict

from mesh.cache.entries import Entry

OVERHEAD_BYTES = 400
"""About what an entry takes beside its value."""
TAG_OVERHEAD_BYTES = 430
"""About what each of its tags takes, where no other entry has it."""


class Memory:
    """Keeps what was used last. Where room is needed the tenant that has the most loses what
    it hasn't used for longest: so nobody is pushed out below an equal share."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._tenants: dict[bytes, OrderedDict[bytes, Entry]] = {}
        self._used: dict[bytes, int] = {}
        self._tagged: defaultdict[bytes, set[tuple[bytes, bytes]]] = defaultdict(set)
        self.size_bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return sum(map(len, self._tenants.values()))

    def get(self, tenant: bytes, entry_id: bytes) -> Entry | None:
        """The entry, used now."""
        entries = self._tenants.get(tenant)
        entry = entries.get(entry_id) if entries is not None else None
        if entries is not None and entry is not None:
            entries.move_to_end(entry_id)
        return entry

    def put(self, tenant: bytes, entry_id: bytes, entry: Entry) -> None:
        """Keeps the entry, where it isn't larger than all there may be."""
        self.drop(tenant, entry_id)
        size = _size(entry)
        if size > self._bytes_max:
            return
        self._tenants.setdefault(tenant, OrderedDict())[entry_id] = entry
        self._used[tenant] = self._used.get(tenant, 0) + size
        self.size_bytes += size
        for tag in entry.tags:
            self._tagged[tag].add((tenant, entry_id))
        while self.size_bytes > self._bytes_max:
            self._evict()

    def drop(self, tenant: bytes, entry_id: bytes) -> None:
        """Forgets the entry; harmless where there is none."""
        entries = self._tenants.get(tenant)
        entry = entries.pop(entry_id, None) if entries is not None else None
        if entry is None:
            return
        size = _size(entry)
        self.size_bytes -= size
        self._used[tenant] -= size
        if not entries:
            del self._tenants[tenant], self._used[tenant]
        for tag in entry.tags:
            self._tagged[tag].discard((tenant, entry_id))
            if not self._tagged[tag]:
                del self._tagged[tag]

    def drop_tagged(self, tag: bytes) -> None:
        """Forgets all entries with that tag."""
        for tenant, entry_id in list(self._tagged.get(tag, ())):
            self.drop(tenant, entry_id)

    def _evict(self) -> None:
        tenant = max(self._used, key=self._used.__getitem__)
        self.drop(tenant, next(iter(self._tenants[tenant])))
        self.evicted += 1


def _size(entry: Entry) -> int:
    return OVERHEAD_BYTES + TAG_OVERHEAD_BYTES * len(entry.tags) + len(entry.value)
