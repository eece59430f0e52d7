"""How messages enter the journal: small ones inline, large ones once under their content hash."""

from __future__ import annotations

import hashlib
from typing import Final

from holdfast.api.common.v1 import content_pb2

INLINE_LIMIT_BYTES: Final = 8 * 1024
"""Longest serialized message that stands in an event itself."""


def store_message(message: content_pb2.Message) -> tuple[content_pb2.StoredMessage, list[content_pb2.Blob]]:
    """Returns the message as the journal keeps it, and the bodies that have to be stored with it."""
    stored = content_pb2.StoredMessage()
    return stored, store_message_in(stored, message)


def store_message_in(stored: content_pb2.StoredMessage, message: content_pb2.Message) -> list[content_pb2.Blob]:
    """Fills in a message as the journal keeps it; returns the bodies that have to be stored with it."""
    if message.ByteSize() <= INLINE_LIMIT_BYTES:
        stored.message.CopyFrom(message)
        return []
    # A Message has no map fields, so that its deterministic form is the same in every process.
    blob = make_blob(message.SerializeToString(deterministic=True))
    stored.blob.CopyFrom(blob_ref(blob))
    return [blob]


def make_blob(data: bytes) -> content_pb2.Blob:
    """Returns a body with its content hash."""
    return content_pb2.Blob(hash=hashlib.sha256(data).digest(), data=data)


def blob_ref(blob: content_pb2.Blob, media_type: str = "") -> content_pb2.BlobRef:
    """Returns what names the body."""
    return content_pb2.BlobRef(hash=blob.hash, size=len(blob.data), media_type=media_type)
