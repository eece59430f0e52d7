"""Types for the identifiers that must not be mistaken for each other, and the one way new ones are made."""

from __future__ import annotations

import os
import re
import threading
import time
from functools import lru_cache
from typing import Final, NewType

WorkspaceId = NewType("WorkspaceId", str)
UserId = NewType("UserId", str)
AgentId = NewType("AgentId", str)
AgentName = NewType("AgentName", str)
RevisionId = NewType("RevisionId", str)
SessionId = NewType("SessionId", str)
MessageId = NewType("MessageId", str)
RunId = NewType("RunId", str)
StepIndex = NewType("StepIndex", int)
"""Position of a step in its run, dense from 0."""
Attempt = NewType("Attempt", int)
"""Number of a try of one step, from 1."""
Seq = NewType("Seq", int)
"""Position of an entry in its run's journal, dense from 0."""
FeedPosition = NewType("FeedPosition", int)
"""Position in the change feed, in the order of commits."""
LeaseEpoch = NewType("LeaseEpoch", int)
"""Fencing number of a run's lease; every claim makes a higher one."""
CallId = NewType("CallId", str)
ApprovalId = NewType("ApprovalId", str)
ConnectionId = NewType("ConnectionId", str)
ApiKeyId = NewType("ApiKeyId", str)
WorkerId = NewType("WorkerId", str)
ExecutorId = NewType("ExecutorId", str)
RequestId = NewType("RequestId", str)
BlobHash = NewType("BlobHash", str)
"""Lower-case hexadecimal SHA-256 of the blob's bytes."""

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_UUID_LENGTH: Final = 36
_COUNTER_BITS: Final = 42
_COUNTER_MAX: Final = (1 << _COUNTER_BITS) - 1


class _Uuid7Generator:
    """RFC 9562 §6.2 method 1: a 42-bit counter below the millisecond keeps the values of one process in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._milliseconds = 0
        self._counter = 0

    def next(self) -> str:
        with self._lock:
            milliseconds = time.time_ns() // 1_000_000
            if milliseconds > self._milliseconds:
                self._milliseconds = milliseconds
                # The highest bit starts at zero, so that there is room to count within the millisecond.
                self._counter = int.from_bytes(os.urandom(6), "big") & (_COUNTER_MAX >> 1)
            else:
                # Also when the wall clock steps back: order within the process comes before accuracy.
                self._counter += 1
                if self._counter > _COUNTER_MAX:
                    self._milliseconds += 1
                    self._counter = 0
            milliseconds, counter = self._milliseconds, self._counter
        value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80
        value |= 0x7 << 76
        value |= (counter >> 30) << 64
        value |= 0b10 << 62
        value |= (counter & 0x3FFF_FFFF) << 32
        value |= int.from_bytes(os.urandom(4), "big")
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_generator = _Uuid7Generator()


def new_uuid7() -> str:
    """Returns a UUID version 7 in its canonical lower-case form; later ones of this process sort after earlier ones."""
    return _generator.next()


def is_uuid(text: str) -> bool:
    """Tells whether `text` is a UUID in its canonical lower-case form."""
    # The same few are asked for again and again: a run's with each of its transitions.
    return len(text) == _UUID_LENGTH and _is_uuid(text)


@lru_cache(maxsize=8_192)
def _is_uuid(text: str) -> bool:
    return _UUID.fullmatch(text) is not None
