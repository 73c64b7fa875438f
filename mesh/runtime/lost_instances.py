"""Streams of instances that are lost: they end where their instance has no word any more."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from mesh.control.health_checks import Dialling, answers
from mesh.control.nats_registry import COLLECTION
from mesh.control.xds.mesh_view import MeshView
from mesh.rpc.retries import Losses
from weft.control.v1.instances_pb2 import Instance

DOUBT_SECONDS = 0.5
"""From the loss of an instance until it is asked for a word, and between two times."""
QUIET_MAX = 60
"""Times in a row that there was no stream of a lost instance, after which none comes."""

log = structlog.get_logger(__name__)


class LostInstances:
    """Follows instances that are lost by what `view` says, and tells `losses`. An instance is
    lost where its lease runs out or its checks fail, which they also do where all is only slow:
    so it is asked for a word, as `dialling` reaches it, before its streams end. Made, told and
    stopped in one event loop."""

    def __init__(self, losses: Losses, view: Callable[[], MeshView], dialling: Dialling) -> None:
        self._losses = losses
        self._view = view
        self._dialling = dialling
        self._following: dict[str, asyncio.Task[None]] = {}

    def tell(self, instances: Sequence[Instance]) -> None:
        """They are found to be lost."""
        self._losses.tell()
        for each in instances:
            if each.name not in self._following:
                following = self._follow(each)
                self._following[each.name] = asyncio.create_task(following, name=each.name)

    async def stop(self) -> None:
        """Follows none any more."""
        tasks = list(self._following.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, instance: Instance) -> None:
        name, quiet = instance.name.removeprefix(COLLECTION), 0
        try:
            await asyncio.sleep(DOUBT_SECONDS)
            while self._is_lost(instance) and quiet < QUIET_MAX:
                quiet += 1
                if streams := self._losses.streams(name):
                    quiet = 0
                    answered = await answers(self._dialling, instance)
                    if not answered and self._is_to_be_left(instance):
                        log.warning("instance_lost", instance=name, streams=streams)
                        self._losses.cut(name)
                await asyncio.sleep(DOUBT_SECONDS)
        finally:
            del self._following[instance.name]

    def _is_lost(self, instance: Instance) -> bool:
        """Whether it isn't registered, or fails its checks."""
        view = self._view()
        there = {each.name for each in view.instances}
        return instance.name not in there or instance.name in view.unhealthy

    def _is_to_be_left(self, instance: Instance) -> bool:
        """Whether it isn't registered, or fails its checks where others serve what it does."""
        view = self._view()
        there = {each.name: each for each in view.instances}
        fit = [each for name, each in there.items() if name not in view.unhealthy]
        served = {service for each in fit for service in each.services}
        hangs = instance.name in view.unhealthy and served.issuperset(instance.services)
        return hangs or instance.name not in there
