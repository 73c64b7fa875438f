"""The models service as vectors call it, in this process."""

import time

from mesh.call import Call
from mesh.errors import WeftError
from services.models.service import ModelsService
from services.models.settings import ModelsSettings
from tests.support.budgets import memory_budgets
from tests.support.cached import memory_cache
from weft.models.v1 import model_service_pb2 as pb

MODEL = "builtin/hashing"


class LocalModels:
    """As `ModelServiceStub`, for `Embed` alone. `requests` are those that it got; with `error`
    it can't be reached."""

    def __init__(self) -> None:
        self._service = ModelsService(ModelsSettings(), memory_cache(), memory_budgets())
        self.requests: list[pb.EmbedRequest] = []
        self.error: WeftError | None = None

    async def Embed(  # noqa: N802 - as generated stubs name it
        self, request: pb.EmbedRequest, *, timeout: float
    ) -> pb.EmbedResponse:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        call = Call("/weft.models.v1.ModelService/Embed", time.monotonic() + timeout, "t")
        return await self._service.embed(request, call)
