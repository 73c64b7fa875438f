"""Lets any client reach all of Weft at this process's port."""

from collections.abc import Mapping

from mesh.runtime.service import Mesh


class GatewayService:
    """What is served here is answered here, the rest by whoever serves it."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    @property
    def handlers(self) -> Mapping[str, object]:
        """It has no contract of its own."""
        return self._mesh.elsewhere()

    async def start(self) -> None:
        """The process's server needs nothing of it."""

    async def stop(self) -> None:
        """Neither does it need an end."""
