"""The host as one service has it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from grpc import aio

if TYPE_CHECKING:
    from mesh.runtime.host import Host
    from mesh.runtime.service import ServiceEntry

T = TypeVar("T")


class Seat:
    """A host whose stubs reach only what the catalogue lets the service call."""

    def __init__(self, host: "Host", entry: "ServiceEntry") -> None:
        self._host = host
        self._entry = entry
        self._channels = {
            validated: host.channel_of(entry, validated) for validated in (False, True)
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def elsewhere(self) -> Mapping[str, object]:
        """See Mesh."""
        return self._host.forwards(self._entry)

    def stub(self, stub_class: Callable[[aio.Channel], T], *, validated: bool = False) -> T:
        """See Mesh."""
        return stub_class(cast(aio.Channel, self._channels[validated]))
