"""Names and bounds that the control plane and its clients must agree on."""

from collections.abc import Mapping

TARGET = "weft"
"""The one listener: `xds:///weft`. A hundred targets cost a client 199 MB, a hundred routes 13."""
SESSION_KEY = "x-weft-session"
QUEUE_KEY = "x-weft-queue"
AFFINITY_KEYS: Mapping[str, str] = {
    "agents": SESSION_KEY,
    "scheduler": QUEUE_KEY,
    "state": SESSION_KEY,
}
"""By service, the header whose equal values go to one instance, as long as there is one: it
has the session or queue in memory. Who may write, the event log settles, not the route."""
PLACE_COOKIE = "weft-place"
"""In which clients of gRPC's C core name the instances that they want, best first (gRFC A55):
base64 of addresses, parted by commas."""
CERTIFICATES = "weft"
"""Name of the provider of certificates in a client's bootstrap."""
RING_PLACES_MAX = 65_536
"""Of a whole ring; clients cap it at 4,096 unless they are told otherwise."""
