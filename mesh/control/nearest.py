"""Which instance of a service a call goes to."""

from collections.abc import Mapping
from itertools import count

from mesh.clock import SYSTEM, Clock
from mesh.control.registry import Registry
from weft.control.v1.instances_pb2 import INSTANCE_STATE_SERVING

AVOIDED_SECONDS = 0.5
"""How long an instance isn't named that couldn't be reached. The registry hears within 1.3 s
that one is gone."""
AVOIDED_MAX = 10_000


class Nearest:
    """One of the instances that serve a contract: in turns those of the own zone, or, where
    there are none in it, all others. `services` says which service has which contract."""

    def __init__(
        self,
        registry: Registry,
        zone: str,
        services: Mapping[str, str],
        clock: Clock = SYSTEM,
    ) -> None:
        self._clock = clock
        self._avoided: dict[str, float] = {}
        self._registry = registry
        self._zone = zone
        self._services = services
        self._turns = count()

    def __call__(self, contract: str) -> str | None:
        """The gRPC target of one; None where nobody serves the contract."""
        service = self._services.get(contract)
        if service is None:
            return None
        serving = [
            each
            for each in self._registry.instances(service)
            if each.state == INSTANCE_STATE_SERVING and not self._is_avoided(each.target)
        ]
        near = [each for each in serving if each.zone == self._zone] or serving
        return near[next(self._turns) % len(near)].target if near else None

    def avoid(self, target: str) -> None:
        """Names another one for a moment: this one couldn't be reached."""
        if len(self._avoided) >= AVOIDED_MAX:
            self._avoided.clear()
        self._avoided[target] = self._clock.monotonic() + AVOIDED_SECONDS

    def _is_avoided(self, target: str) -> bool:
        until = self._avoided.get(target)
        return until is not None and self._clock.monotonic() < until

    def knows(self, target: str) -> bool:
        """Whether an instance is there that listens at the target."""
        return any(each.target == target for each in self._registry.instances())
