"""What a process says of itself in the registry."""

import asyncio
import importlib.metadata
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from mesh.control.nats_registry import COLLECTION
from mesh.errors import FailedPrecondition
from mesh.runtime.settings import RuntimeSettings
from mesh.sockets import address_at
from mesh.telemetry.metrics import Served
from weft.control.v1 import instances_pb2

LOOPBACK = "127.0.0.1"
NATS_PORT = 4222


def own_instance(
    settings: RuntimeSettings, instance_id: str, services: Sequence[str]
) -> instances_pb2.Instance:
    """This process, but for where it listens."""
    instance = instances_pb2.Instance(
        name=COLLECTION + instance_id,
        services=services,
        zone=settings.zone,
        version=settings.version or importlib.metadata.version("weft"),
        weight=settings.weight,
    )
    instance.start_time.GetCurrentTime()
    return instance


def target_of(settings: RuntimeSettings, port: int) -> str:
    """Where other instances dial this one, which listens on `port`: an IP address, since the
    control plane tells no names. Where it listens on all of the machine's addresses, that is
    the one by which the machine reaches NATS, as the others do. Looks a name up, so it may
    take a moment. FailedPrecondition where there is no such address."""
    named = settings.advertised_host or settings.host
    host = _towards(settings.nats_url) if _is_everywhere(named) else _address_of(named)
    return address_at(host, port)


async def targets(
    settings: RuntimeSettings, port: int, addresses: Mapping[str, str]
) -> tuple[str, str]:
    """Where others dial this process, and where xDS clients do; the latter is empty unless
    `addresses` says that it listens there. See target_of."""
    xds_port = int(addresses.get("xds", ":0").rpartition(":")[2])
    target = await asyncio.to_thread(target_of, settings, port)
    return target, f"{target.rpartition(':')[0]}:{xds_port}" if xds_port else ""


class LoadMeter:
    """How busy this process was since it was last read; `calls` are those under way, `served`
    those that ended, by service."""

    def __init__(
        self, calls: Callable[[], int], served: Callable[[], Mapping[str, Served]]
    ) -> None:
        self._calls = calls
        self._served = served
        self._processors = os.cpu_count() or 1
        self._read_at = time.monotonic()
        self._cpu_seconds = time.process_time()

    def read(self) -> instances_pb2.InstanceLoad:
        """The load by now."""
        now, cpu_seconds = time.monotonic(), time.process_time()
        spent = (cpu_seconds - self._cpu_seconds) / max(now - self._read_at, 1e-3)
        self._read_at, self._cpu_seconds = now, cpu_seconds
        return instances_pb2.InstanceLoad(
            cpu_utilization=spent / self._processors,
            calls=self._calls(),
            served=[
                instances_pb2.ServedCalls(
                    service=service, calls=served.calls, failures=served.failures
                )
                for service, served in self._served().items()
            ],
        )


def _is_everywhere(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _address_of(host: str) -> str:
    """The address itself, or the first of a name's."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise FailedPrecondition(
            f"{host}, where others shall find this process, has no address: {error.strerror}"
        ) from None
    return str(found[0][4][0])


def _towards(nats_url: str) -> str:
    """The machine's address on the way to NATS; loopback where NATS is embedded."""
    # Of several servers they share a network; one that is down has an address all the same.
    server = urlsplit(nats_url.split(",")[0] if "//" in nats_url else f"//{nats_url}")
    host = _address_of(server.hostname or LOOPBACK)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Of a datagram socket this only chooses the way: nothing is sent.
            probe.connect((host, server.port or NATS_PORT))
        except OSError as error:
            raise FailedPrecondition(
                f"no way to NATS at {host}: {error.strerror}; WEFT_RUNTIME_ADVERTISED_HOST says"
                " where others find this process"
            ) from None
        return str(probe.getsockname()[0])
