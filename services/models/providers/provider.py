"""The port between the models service and those who run models."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from weft.models.v1 import model_service_pb2, models_pb2


@dataclass(frozen=True, slots=True)
class Vectors:
    """Texts as vectors, in the texts' order, and what it took."""

    values: list[list[float]]
    usage: models_pb2.Usage


HASTY_SECONDS = 1.0
"""A call that timed out and had less time says nothing of who runs the model."""
Sent = Callable[[bool], None]
"""Hears whether a request is with whoever runs the model: what was sent may be billed, even where
nobody waits for the answer."""


class Provider(Protocol):
    """Runs models. Its `name` is the first part of their ids, `<name>/<model>`."""

    @property
    def name(self) -> str: ...

    @property
    def system(self) -> str:
        """What OpenTelemetry calls it, `gen_ai.provider.name`."""
        ...

    @property
    def embedding_texts_max(self) -> int:
        """Most texts that `embed` takes."""
        ...

    @property
    def embedding_requests_max(self) -> int:
        """How many times `embed` may be under way for one call."""
        ...

    async def models(self) -> Sequence[models_pb2.Model]:
        """The models that can be called now, `is_default` not set. Doesn't raise: a
        provider that can't ask its endpoint lists what it is configured with."""
        ...

    def knows(self, model: str) -> bool:
        """Whether the settings name the model, the id's second part, or the endpoint listed it
        when it was asked last. It may be called all the same."""
        ...

    async def default_model(self) -> str:
        """The id of the model that answers where none is named. Raises ModelUnavailable
        where there is none."""
        ...

    def stream(
        self,
        request: model_service_pb2.GenerateRequest,
        model: str,
        timeout_seconds: float,
        sent: Sent,
    ) -> AsyncGenerator[str | model_service_pb2.GenerateResponse, None]:
        """Runs `model`, the id's second part. Yields text as it comes, then, last, the
        response whole. Closing the generator ends the call. `sent` is called whenever that
        changes; one that never calls it sends at once.

        Raises ModelRefused, ModelRateLimited, ModelUnavailable, ModelBadAnswer, or
        NotFound for a model that it doesn't have.
        """
        ...

    async def embed(
        self,
        texts: Sequence[str],
        model: str,
        dimension: int,
        timeout_seconds: float,
        sent: Sent,
    ) -> Vectors:
        """Embeds the texts by `model` in one request; 0 for the model's own dimension.
        Raises as `stream`, or InvalidArgument for a dimension that the model doesn't have."""
        ...

    async def close(self) -> None:
        """Gives back what it holds; called once, after the last call."""
        ...
