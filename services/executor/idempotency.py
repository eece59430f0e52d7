"""The key by which a tool recognises a repeated call: the same for every attempt of a step, different for all else."""

from __future__ import annotations

import base64
import hashlib
from json.encoder import encode_basestring_ascii
from typing import Final

_LABEL: Final = "holdfast idempotency key v1"


def idempotency_key(run_id: str, step: int, tool: str, arguments_json: str) -> str:
    """Returns 43 URL-safe characters.

    Args:
        run_id: The run.
        step: The step in it. Two calls of one run with equal arguments are two effects, so it is part of the key.
        tool: Name of the tool.
        arguments_json: The arguments in canonical JSON.
    """
    # A JSON array keeps the parts apart: ("a", "bc") and ("ab", "c") are different keys. Written here, as `json.dumps`
    # makes an encoder at every call.
    label, run, name, arguments = map(encode_basestring_ascii, (_LABEL, run_id, tool, arguments_json))
    source = f"[{label}, {run}, {step}, {name}, {arguments}]".encode()
    return base64.urlsafe_b64encode(hashlib.sha256(source).digest()).rstrip(b"=").decode()
