"""Requests that an aggregate answered, so that one which comes again changes nothing."""

from collections.abc import Iterable
from typing import Protocol

from mesh.errors import RequestIdReused


class AnsweredRequest(Protocol):
    """What an aggregate keeps of a request: its id, and a hash of its body."""

    @property
    def request_id(self) -> str: ...

    @property
    def request_hash(self) -> bytes: ...


def came_before(answered: Iterable[AnsweredRequest], request_id: str, request_hash: bytes) -> bool:
    """Whether the request is among those. RequestIdReused where another one had its id."""
    for request in answered:
        if request.request_id == request_id:
            if request.request_hash != request_hash:
                raise RequestIdReused(f"request_id {request_id} came before with another body")
            return True
    return False
