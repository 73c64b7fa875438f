"""Recognising a request that comes again (AIP-155)."""

import hashlib

from google.protobuf.message import Message


def request_hash(request: Message) -> bytes:
    """SHA-256 of a request's body: of all its fields but `request_id`. The same
    request_id with another hash is another request under a used name."""
    body = type(request)()
    body.CopyFrom(request)
    body.ClearField("request_id")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()
