"""A registry in memory: just what a client sees of it."""

from collections.abc import Callable, Sequence

from mesh.call import Call
from mesh.control.mesh_status import status_of
from mesh.errors import NotFound
from tests.support.memory_catalogues import page_of
from weft.control.v1 import instances_pb2, mesh_service_pb2
from weft.control.v1 import registry_service_pb2 as pb


class MemoryInstances:
    """The service of `weft.control.v1`, with the instances that were added."""

    def __init__(self, *instances: instances_pb2.Instance) -> None:
        self._instances = list(instances)

    def add(self, instance: instances_pb2.Instance) -> None:
        """Has it in the registry from now on."""
        self._instances.append(instance)

    def instances(self, service: str = "") -> Sequence[instances_pb2.Instance]:
        """As `mesh.control.registry.Registry` has it."""
        return [each for each in self._instances if not service or service in each.services]

    def serving(self, service: str = "") -> Sequence[instances_pb2.Instance]:
        """As `mesh.control.registry.Registry` has it."""
        serving = instances_pb2.INSTANCE_STATE_SERVING
        return [each for each in self.instances(service) if each.state == serving]

    def on_change(self, callback: Callable[[], None]) -> None:
        """Nobody is told: what is added is there at once."""

    def on_say(self, callback: Callable[[instances_pb2.InstanceLoad], None]) -> None:
        """Nothing is said of an instance of one's own."""

    @property
    def draining(self) -> bool:
        return False

    async def register(self, target: str, xds_target: str = "") -> None:
        raise NotImplementedError

    async def drain(self) -> None:
        raise NotImplementedError

    async def list_instances(
        self, request: pb.ListInstancesRequest, _: Call
    ) -> pb.ListInstancesResponse:
        found = list(self.instances(request.service))
        page, token = page_of(found, request.page_size, request.page_token)
        return pb.ListInstancesResponse(instances=page, next_page_token=token)

    async def drain_instance(
        self, request: mesh_service_pb2.DrainInstanceRequest, _: Call
    ) -> mesh_service_pb2.DrainInstanceResponse:
        """Says that it drains."""
        found = [each for each in self._instances if each.name == request.name]
        if not found:
            raise NotFound.of("instance", request.name)
        found[0].state = instances_pb2.INSTANCE_STATE_DRAINING
        return mesh_service_pb2.DrainInstanceResponse(instance=found[0])

    async def get_mesh_status(
        self, request: mesh_service_pb2.GetMeshStatusRequest, _: Call
    ) -> mesh_service_pb2.GetMeshStatusResponse:
        """Of the services that an instance has, and of agents."""
        services = {"agents", *(name for each in self._instances for name in each.services)}
        return mesh_service_pb2.GetMeshStatusResponse(
            services=[status_of(service, self) for service in sorted(services)],
            instances=self._instances,
            control_planes=[each.name for each in self._instances if each.xds_target],
        )
