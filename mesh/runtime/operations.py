"""What every process answers of the mesh: `weft.control.v1.MeshService`.

It isn't a service of the catalogue's own, since each process must be able to be drained and
asked, whatever it serves. A call about another instance goes to that one, as its caller's own,
so that both judge it; it goes one hop.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.call import Call
from mesh.control.mesh_status import left_without, routes_of, status_of
from mesh.control.nats_registry import COLLECTION
from mesh.errors import FailedPrecondition, NotFound
from mesh.events.appending import append_behind
from mesh.events.store import CommitDraft, NewEvent, StreamName
from mesh.rpc.channel import RemoteChannel
from mesh.rpc.server import RpcServer
from mesh.runtime import dump
from mesh.runtime.service import Mesh, ServiceEntry
from weft.control.v1 import mesh_events_pb2 as facts
from weft.control.v1 import mesh_service_pb2 as pb
from weft.control.v1.instances_pb2 import INSTANCE_STATE_DRAINING, Instance

CONTRACT = "weft.control.v1.MeshService"
RELAYING = ("control", "gateway")
"""Services whose processes take such calls from outside: the catalogue lets them call it, and
they may append to AREA."""
AREA = "instances"


class Operations:
    """See the module. `catalogue` are all services that there are, and `readiness` says which
    parts of this process are ready. `stop` has the process end in order."""

    def __init__(
        self,
        mesh: Mesh,
        catalogue: Sequence[ServiceEntry],
        readiness: Callable[[], Mapping[str, bool]],
        stop: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM),
    ) -> None:
        self._mesh = mesh
        self._services = [entry.name for entry in catalogue]
        self._readiness = readiness
        self._stop = stop
        self._server: RpcServer | None = None
        self._own_name = COLLECTION + mesh.instance

    @property
    def handlers(self) -> Mapping[str, object]:
        """What implements the contract."""
        return {CONTRACT: self}

    def serve(self, server: RpcServer) -> None:
        """The process listens with this server, whose health tells of a drain."""
        self._server = server

    async def get_mesh_status(
        self, request: pb.GetMeshStatusRequest, call: Call
    ) -> pb.GetMeshStatusResponse:
        """By the registry, as it is known here."""
        registry = self._mesh.registry
        instances = registry.instances()
        return pb.GetMeshStatusResponse(
            services=[status_of(service, registry) for service in sorted(self._services)],
            instances=instances,
            control_planes=[each.name for each in instances if each.xds_target],
            answered_by=self._own_name,
        )

    async def list_routes(self, request: pb.ListRoutesRequest, call: Call) -> pb.ListRoutesResponse:
        """NotFound where the catalogue has no such service."""
        if request.service and request.service not in self._services:
            raise NotFound.of("service", request.service)
        zone = request.zone or self._mesh.settings.zone
        return routes_of(self._mesh.control_plane.view, zone, request.service)

    async def drain_instance(
        self, request: pb.DrainInstanceRequest, call: Call
    ) -> pb.DrainInstanceResponse:
        """Drained already, it stays so; `stop` ends it all the same."""
        lost = left_without(self._known(request.name), self._mesh.registry)
        if lost and not request.force:
            raise FailedPrecondition(f"nobody else takes calls of {', '.join(lost)}")
        drained = facts.InstanceDrained(
            instance=request.name, stops=request.stop, forced=request.force
        )
        await self._note(drained, request.name, call)
        if request.name != self._own_name:
            response: pb.DrainInstanceResponse = await self._handed_on(request, call)
            return response
        await self._say_serving(False)
        await self._mesh.registry.drain()
        if request.stop:
            self._stop()
        return pb.DrainInstanceResponse(instance=self._own())

    async def undrain_instance(
        self, request: pb.UndrainInstanceRequest, call: Call
    ) -> pb.UndrainInstanceResponse:
        """One that takes calls goes on taking them."""
        self._known(request.name)
        await self._note(facts.InstanceUndrained(instance=request.name), request.name, call)
        if request.name != self._own_name:
            response: pb.UndrainInstanceResponse = await self._handed_on(request, call)
            return response
        if self._mesh.stopping:
            raise FailedPrecondition("the instance ends")
        own = self._own()
        if own.state == INSTANCE_STATE_DRAINING:
            await self._mesh.registry.register(own.target, own.xds_target)
            await self._say_serving(True)
        return pb.UndrainInstanceResponse(instance=self._own())

    async def dump_instance(
        self, request: pb.DumpInstanceRequest, call: Call
    ) -> pb.DumpInstanceResponse:
        """What this process, or the one that is named, knows and is."""
        if request.name not in (f"{COLLECTION}-", self._own_name):
            self._known(request.name)
            response: pb.DumpInstanceResponse = await self._handed_on(request, call)
            return response
        time = Timestamp()
        time.FromNanoseconds(self._mesh.clock.now_ns())
        return pb.DumpInstanceResponse(
            instance=self._own(),
            time=time,
            instances=self._mesh.registry.instances(),
            readiness=self._readiness(),
            versions=await asyncio.to_thread(dump.versions),
            settings=dump.settings_told((self._mesh.settings, self._mesh.rpc_settings)),
            channelz=dump.channelz(),
            xds_resources=dump.xds_resources(),
        )

    def _known(self, name: str) -> Instance:
        """The instance of that name, which the registry knows."""
        for each in self._mesh.registry.instances():
            if each.name == name:
                return each
        raise NotFound.of("instance", name)

    def _own(self) -> Instance:
        return self._known(self._own_name)

    async def _say_serving(self, serving: bool) -> None:
        if self._server is not None:
            await self._server.say_serving(serving)

    async def _handed_on(self, request: Message, call: Call) -> Any:
        """What the instance answers that the request names."""
        name: str = request.name  # type: ignore[attr-defined]
        if call.relayed_by:
            # Who handed it on knows better than we, or it is gone.
            raise NotFound.of("instance", name)
        instance = self._known(name)
        channel = RemoteChannel(
            instance.target,
            self._mesh.rpc_settings,
            caller=self._relaying(),
            sign=self._mesh.access.sign,
            relays=True,
            transport=self._mesh.transport,
            service=instance.services[0],
            instance=name.removeprefix(COLLECTION),
        )
        try:
            return await channel.callable_of(call.method)(request)
        finally:
            await channel.close()

    def _relaying(self) -> str:
        for service in RELAYING:
            if service in self._own().services:
                return service
        raise FailedPrecondition("ask an instance with gateway or control")

    async def _note(self, fact: Message, name: str, call: Call) -> None:
        """Commits for the audit who wants it, before it is done; whoever hands a call on has."""
        if call.relayed_by or call.principal is None or not call.principal.tenant:
            return
        self._relaying()
        stream = StreamName(AREA, call.principal.tenant, (name.removeprefix(COLLECTION),))
        draft = CommitDraft(
            [NewEvent(fact)],
            self._mesh.clock.now_ns(),
            actor=call.actor,
            request_id=call.request_id,
            traceparent=call.traceparent,
        )
        await append_behind(self._mesh.events, stream, draft)
