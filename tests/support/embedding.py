"""A models service for vectors that embeds by the words of a text."""

import hashlib
import math
import re

from mesh.errors import WeftError
from weft.models.v1 import model_service_pb2 as pb

DIMENSION = 64


def vector_of(text: str, dimension: int = DIMENSION) -> list[float]:
    """Each word is a direction; its singular and plural are one. All 0 without a word."""
    values = [0.0] * dimension
    for word in re.findall(r"\w+", text.lower()):
        digest = hashlib.sha256(word.rstrip("s").encode()).digest()
        values[int.from_bytes(digest[:4]) % dimension] += 1 if digest[4] % 2 else -1
    length = math.hypot(*values) or 1.0
    return [value / length for value in values]


class WordModels:
    """As `ModelServiceStub`, for `Embed` alone. `requests` are those that it got; with `error`
    it fails."""

    def __init__(self) -> None:
        self.requests: list[pb.EmbedRequest] = []
        self.error: WeftError | None = None

    async def Embed(  # noqa: N802 - as generated stubs name it
        self, request: pb.EmbedRequest, *, timeout: float
    ) -> pb.EmbedResponse:
        assert timeout > 0
        assert all(request.texts)
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        dimension = request.dimension or DIMENSION
        response = pb.EmbedResponse(model=request.model)
        for text in request.texts:
            response.embeddings.add(values=vector_of(text, dimension))
        return response
