"""Moments and durations as the contracts write them."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def to_timestamp(moment: datetime | None) -> Timestamp | None:
    """Returns the message of a moment; None stays unset."""
    if moment is None:
        return None
    timestamp = Timestamp()
    # A naive datetime means local time, as everywhere in the standard library.
    timestamp.FromDatetime(moment.astimezone())
    return timestamp


def to_duration(seconds: float) -> Duration:
    """Returns the message of a duration."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
