"""Which calls should go to the same instance: those of one session, those of one queue."""

import re
from collections.abc import Callable
from typing import Any

from mesh.control.xds.names import AFFINITY_KEYS, QUEUE_KEY, SESSION_KEY
from mesh.control.xds.placement import Placement
from mesh.ids import RESOURCE_ID
from mesh.rpc.methods import MethodSpec
from mesh.rpc.propagation import Metadata
from mesh.rpc.tenancy import resource_reader

_PATTERNS = {
    SESSION_KEY: re.compile(
        rf"tenants/{RESOURCE_ID}/agents/{RESOURCE_ID}/sessions/{RESOURCE_ID}(?=/|\Z)"
    ),
    QUEUE_KEY: re.compile(rf"tenants/{RESOURCE_ID}/queues/{RESOURCE_ID}(?=/|\Z)"),
}


def affinity_of(spec: MethodSpec, placement: Placement | None) -> Callable[[Any], Metadata]:
    """What gives a request's metadata the name that its instance is chosen by: that of the
    session or queue that the request acts upon or within; and its places, as far as
    `placement` knows them. None where there isn't one, so that any instance may have it."""
    service = spec.service.split(".")[1]
    key = AFFINITY_KEYS.get(service)
    if key is None or spec.client_streaming or not spec.policy.resource:
        return lambda request: ()
    read = resource_reader(spec.request_class.DESCRIPTOR, spec.policy.resource)
    found_in = _PATTERNS[key].match

    def metadata(request: Any) -> Metadata:
        found = found_in(read(request))
        if found is None:
            return ()
        named = (key, found[0])
        cookie = placement.cookie(service, found[0]) if placement is not None else ""
        return (named, ("cookie", cookie)) if cookie else (named,)

    return metadata
