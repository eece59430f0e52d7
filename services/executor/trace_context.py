"""The trace context that tools receive: their own spans become children of the span that trace derives for the step."""

from __future__ import annotations

import hashlib
import uuid


def traceparent_of_step(run_id: str, step: int, root_run_id: str = "") -> str:
    """Returns the W3C traceparent of a tool step.

    The ids are computed and not random, by the same rule as in the trace service, which learns of the step later.

    Args:
        run_id: The run.
        step: The step.
        root_run_id: The run at the top of its tree, whose trace it is; empty for one that stands there itself.
    """
    run = uuid.UUID(run_id)
    message = b"\0".join((b"tool", str(step).encode(), b"0"))
    digest = hashlib.blake2b(message, digest_size=8, key=run.bytes).digest()
    span_id = digest.hex() if any(digest) else "0000000000000001"
    trace_id = uuid.UUID(root_run_id).hex if root_run_id else run.hex
    return f"00-{trace_id}-{span_id}-01"
