"""The interceptor that puts the credential on every call of a channel."""

from collections.abc import Callable
from typing import Any

import grpc

from mesh.cli.credentials import Credential

_Continue = Callable[[grpc.ClientCallDetails, Any], Any]


class Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Sends `authorization: Bearer <key>` (RFC 6750, section 2.1) with calls of all kinds,
    reflection and health among them. `check` raises where it mustn't be sent any more."""

    def __init__(self, credential: Credential, check: Callable[[], None]) -> None:
        self._credential = credential
        self._check = check

    def _send(self, go_on: _Continue, details: grpc.ClientCallDetails, request: Any) -> Any:
        # A channel connects again by itself, to whoever listens there by then.
        self._check()
        return go_on(_WithAuthorization(details, self._credential), request)

    intercept_unary_unary: Any = _send
    intercept_unary_stream: Any = _send
    intercept_stream_unary: Any = _send
    intercept_stream_stream: Any = _send


class _WithAuthorization(grpc.ClientCallDetails):
    """The details of a call and the header. Unlike a named tuple, its text doesn't hold it."""

    def __init__(self, details: grpc.ClientCallDetails, credential: Credential) -> None:
        self.method = details.method
        self.timeout = details.timeout
        header = ("authorization", credential.authorization)
        self.metadata = (*(details.metadata or ()), header)
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression
