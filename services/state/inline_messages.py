"""Messages that are stored as bodies of their own, put back into their events for whoever reads those."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from holdfast.api.common.v1 import content_pb2, run_pb2
from services.shared.stored_messages import stored_message_of
from services.state import journal

INLINE_BLOB_LIMIT = 1024 * 1024
FRAME_BYTES = 4 * 1024 * 1024


def put_messages_inline(
    connection: sa.Connection, workspace_id: str, events: Sequence[run_pb2.Event], *, limit: int | None
) -> list[run_pb2.Event]:
    """Replaces the blob references of messages by the messages, up to `limit` bytes each.

    Returns:
        As many of the events as fit into a frame with their messages, one at least. Of an event that is larger by
        itself, messages that do not fit stay references, unless there is no limit.
    """
    kept: list[run_pb2.Event] = []
    wanted: list[content_pb2.StoredMessage] = []
    room = FRAME_BYTES
    for event in events:
        refs = [
            stored
            for change in event.changes
            if (stored := stored_message_of(change)) is not None
            and stored.WhichOneof("body") == "blob"
            and (limit is None or stored.blob.size <= limit)
        ]
        size = event.ByteSize() + sum(stored.blob.size for stored in refs)
        if kept and size > room:
            break
        kept.append(event)
        room -= size
        while limit is not None and room < 0 and refs:
            room += refs.pop().blob.size
        wanted.extend(refs)
    if wanted:
        bodies = journal.read_blobs(connection, workspace_id, {stored.blob.hash for stored in wanted})
        for stored in wanted:
            body = bodies.get(stored.blob.hash)
            if body is not None:
                stored.message.ParseFromString(body)
    return kept
