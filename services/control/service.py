"""Tells of the registry."""

from collections.abc import Mapping

from mesh.call import Call
from mesh.control.registry import Registry
from mesh.rpc.pages import read_page_token, write_page_token
from weft.control.v1 import registry_service_pb2 as pb

PAGE_SIZE = 100
LIST = "instances"
"""What the page tokens are good for."""


class ControlService:
    """Lists the instances that this process knows."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def handlers(self) -> Mapping[str, object]:
        """What implements each contract."""
        return {"weft.control.v1.RegistryService": self}

    async def start(self) -> None:
        """Nothing is to be made ready."""

    async def stop(self) -> None:
        """Nothing is to be ended."""

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
