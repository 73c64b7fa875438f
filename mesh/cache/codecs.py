"""How values are written."""

from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

M = TypeVar("M", bound=Message)


class MessageCodec(Generic[M]):
    """Messages of one type."""

    def __init__(self, message_type: type[M]) -> None:
        self._type = message_type

    def encode(self, value: M) -> bytes:
        """The message's bytes."""
        return value.SerializeToString()

    def decode(self, data: bytes) -> M:
        """The message; ValueError where the bytes are none."""
        try:
            return self._type.FromString(data)
        except DecodeError as error:
            raise ValueError("not such a message") from error
