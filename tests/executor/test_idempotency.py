"""The idempotency key: the same for every attempt of a call, different for every other call."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from services.executor.idempotency import idempotency_key
from services.executor.trace_context import traceparent_of_step
from services.trace.spans import SpanKind, span_id_of

RUN = "01920000-0000-7000-8000-000000000001"


def test_key_is_url_safe_and_the_same_each_time() -> None:
    key = idempotency_key(RUN, 3, "refund", '{"order":1}')
    assert key == idempotency_key(RUN, 3, "refund", '{"order":1}')
    assert re.fullmatch(r"[A-Za-z0-9_-]{32,}", key)


@pytest.mark.parametrize("arguments", ["{}", '{"text":"a\\n\\"b\\" \u2028 é 😀"}', "\x00\x7f/"])
def test_key_is_the_digest_of_a_json_array_of_its_parts(arguments: str) -> None:
    # Keys of runs that are under way when a new release takes over must not change.
    source = json.dumps(["holdfast idempotency key v1", RUN, 3, "refund", arguments]).encode()
    expected = base64.urlsafe_b64encode(hashlib.sha256(source).digest()).rstrip(b"=").decode()
    assert idempotency_key(RUN, 3, "refund", arguments) == expected


def test_key_differs_in_every_part_and_at_every_border() -> None:
    keys = {
        idempotency_key(RUN, 3, "refund", "{}"),
        idempotency_key(RUN.replace("1920", "1921"), 3, "refund", "{}"),
        idempotency_key(RUN, 4, "refund", "{}"),
        idempotency_key(RUN, 3, "refunds", "{}"),
        idempotency_key(RUN, 3, "refund{", "}"),
        idempotency_key(RUN, 3, "refund", '{"a":1}'),
    }
    assert len(keys) == 6


def test_spans_of_a_tool_become_children_of_the_step_that_trace_derives() -> None:
    expected = span_id_of(RUN, SpanKind.TOOL, "7")
    assert traceparent_of_step(RUN, 7) == f"00-{RUN.replace('-', '')}-{expected}-01"
