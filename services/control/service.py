"""Tells of the registry, and where calls go: xDS clients of any language ask here."""

from collections.abc import Mapping

from mesh.call import Call
from mesh.control.registry import Registry
from mesh.rpc.pages import read_page_token, write_page_token
from mesh.runtime.service import Mesh
from mesh.sockets import address_at, bind_first_free
from services.control.traffic import Traffic
from weft.control.v1 import registry_service_pb2 as pb

PAGE_SIZE = 100
LIST = "instances"
"""What the page tokens are good for."""


class ControlService:
    """Lists the instances that this process knows, serves its control plane, and keeps the
    splits."""

    def __init__(self, mesh: Mesh, traffic: Traffic) -> None:
        self._mesh = mesh
        self._registry: Registry = mesh.registry
        self._traffic = traffic

    @property
    def handlers(self) -> Mapping[str, object]:
        """What implements each contract."""
        return {
            "weft.control.v1.RegistryService": self,
            "weft.control.v1.TrafficService": self._traffic,
        }

    async def start(self) -> None:
        """Reads the splits, and takes the streams of xDS clients from now on: of those with a
        certificate, where there are any. FailedPrecondition where no port is free,
        EventStoreUnavailable, DataDamaged."""
        await self._traffic.start()
        settings, transport = self._mesh.settings, self._mesh.transport
        transport.check_listening(settings.host)
        with bind_first_free(settings.host, settings.xds_port) as probe:
            free: int = probe.getsockname()[1]
        credentials = transport.server_credentials(processes=True)
        port = await self._mesh.control_plane.serve(address_at(settings.host, free), credentials)
        self._mesh.announce("xds", settings.xds_port, port)

    async def stop(self) -> None:
        """Takes no split back any more. The process's control plane ends later: calls that are
        under way need it."""
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
