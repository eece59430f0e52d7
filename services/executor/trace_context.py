"""The trace context that tools receive: their own spans become children of the span that trace derives for the step."""

from __future__ import annotations

import hashlib
import uuid


def traceparent_of_step(run_id: str, step: int) -> str:
    """Returns the W3C traceparent of a tool step.

    The ids are computed and not random, by the same rule as in the trace service, which learns of the step later.
    """
    run = uuid.UUID(run_id)
    message = b"\0".join((b"tool", str(step).encode(), b"0"))
    digest = hashlib.blake2b(message, digest_size=8, key=run.bytes).digest()
    span_id = digest.hex() if any(digest) else "0000000000000001"
    return f"00-{run.hex}-{span_id}-01"
