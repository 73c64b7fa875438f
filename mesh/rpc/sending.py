"""The requests of a call that sends a stream."""

from collections.abc import AsyncIterator
from typing import Any

from mesh.errors import WeftError


class Sending:
    """The requests of a call that sends a stream. Where they end with an error the call is
    cancelled: half of them must not pass for all."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self.error: WeftError | None = None
        self._requests = requests
        self._call: Any = None

    def through(self, call: Any) -> Any:
        """The call that they go with."""
        self._call = call
        return call

    async def messages(self) -> AsyncIterator[Any]:
        """The requests; ends where they fail."""
        try:
            async for request in self._requests:
                yield request
        except WeftError as error:
            self.error = error
            self._call.cancel()
