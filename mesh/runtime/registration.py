"""What a process says of itself in the registry."""

import importlib.metadata
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from mesh.control.nats_registry import COLLECTION
from mesh.runtime.settings import RuntimeSettings
from mesh.telemetry.metrics import Served
from weft.control.v1 import instances_pb2


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
    """Where other instances dial this one, which listens on `port`."""
    host = settings.advertised_host or settings.host
    if _is_everywhere(host):
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
