"""The port between the models service and those who run models."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from weft.models.v1 import model_service_pb2, models_pb2


class Provider(Protocol):
    """Runs models. Its `name` is the first part of their ids, `<name>/<model>`."""

    @property
    def name(self) -> str: ...

    async def models(self) -> Sequence[models_pb2.Model]:
        """The models that can be called now, `is_default` not set. Doesn't raise: a
        provider that can't ask its endpoint lists what it is configured with."""
        ...

    def stream(
        self, request: model_service_pb2.GenerateRequest, model: str, timeout_seconds: float
    ) -> AsyncGenerator[str | model_service_pb2.GenerateResponse, None]:
        """Runs `model`, the id's second part. Yields text as it comes, then, last, the
        response whole. Closing the generator ends the call.

        Raises ModelRefused, ModelRateLimited, ModelUnavailable, ModelBadAnswer, or
        NotFound for a model that it doesn't have.
        """
        ...

    async def close(self) -> None:
        """Gives back what it holds; called once, after the last call."""
        ...
