"""What a control plane knows at one moment: services, instances, splits, health."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from google.protobuf.descriptor import ServiceDescriptor

from weft.control.v1 import instances_pb2

PORTION_WEIGHT_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class RoutedService:
    """A service of the catalogue, such as `agents`, and the contracts that it serves."""

    name: str
    contracts: tuple[ServiceDescriptor, ...]


@dataclass(frozen=True, slots=True)
class Portion:
    """The share of a service's calls that one version takes: `weight` of the sum of all.

    `revision` counts up whenever the version comes back to taking calls. A client
    remembers for 15 minutes that it couldn't reach what it last knew under a cluster's
    name, so what comes back needs another name. ValueError for a weight out of bounds.
    """

    version: str
    weight: int
    revision: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= PORTION_WEIGHT_MAX:
            raise ValueError(f"a weight is from 0 to {PORTION_WEIGHT_MAX}")


@dataclass(frozen=True)
class MeshView:
    """All that resources are made of; never changed, but replaced by the next one.

    `splits` holds portions by service; a service without any sends its calls to all
    versions alike. `kept` holds other portions that clients shall know: those before, and those
    to come; empty ones are a service that isn't split. `unhealthy` are names of instances.

    With a `trust_domain` every connection is mutual TLS, and an instance gets calls of those
    services only that its SPIFFE id names in that domain; without one everything is plain
    text, so that only instances on loopback get any, or all with `plain_text`.
    """

    services: tuple[RoutedService, ...] = ()
    instances: tuple[instances_pb2.Instance, ...] = ()
    splits: Mapping[str, tuple[Portion, ...]] = field(default_factory=dict)
    kept: Mapping[str, tuple[Portion, ...]] = field(default_factory=dict)
    unhealthy: frozenset[str] = frozenset()
    trust_domain: str = ""
    plain_text: bool = False

    @cached_property
    def zones(self) -> frozenset[str]:
        """Zones that instances run in."""
        return frozenset(instance.zone for instance in self.instances if instance.zone)
