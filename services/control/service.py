"""Puts the control service together; tells of the registry."""

from collections.abc import Mapping

from mesh.call import Call
from mesh.control.registry import Registry
from mesh.rpc.pages import read_page_token, write_page_token
from services.control.traffic import Traffic
from weft.control.v1 import registry_service_pb2 as pb

PAGE_SIZE = 100
LIST = "instances"
"""What the page tokens are good for."""


class ControlService:
    """Lists the instances that this process knows, and keeps the splits."""

    def __init__(self, registry: Registry, traffic: Traffic) -> None:
        self._registry = registry
        self._traffic = traffic

    @property
    def handlers(self) -> Mapping[str, object]:
        """What implements each contract."""
        return {
            "weft.control.v1.RegistryService": self,
            "weft.control.v1.TrafficService": self._traffic,
        }

    async def start(self) -> None:
        """Reads the splits. Raises EventStoreUnavailable, DataDamaged."""
        await self._traffic.start()

    async def stop(self) -> None:
        """Takes no split back any more."""
        await self._traffic.stop()

    async def list_instances(
        self, request: pb.ListInstancesRequest, call: Call
    ) -> pb.ListInstancesResponse:
        """By name, so those first that started first."""
        after = read_page_token(request.page_token, LIST)
        size = request.page_size or PAGE_SIZE
        found = [each for each in self._registry.instances(request.service) if each.name > after]
        response = pb.ListInstancesResponse(instances=found[:size])
        if len(found) > size:
            response.next_page_token = write_page_token(found[size - 1].name, LIST)
        return response
