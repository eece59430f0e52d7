"""What the model is shown of a call's outcome, and what is kept beside it."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.tools.output import SettledResult, settle_failure, settle_result, shorten

TOOL = agent_pb2.ToolSpec(name="look")


def shown(settled: SettledResult) -> content_pb2.ToolResult:
    message = settled.message.message
    if settled.message.WhichOneof("body") == "blob":
        [body] = [blob.data for blob in settled.blobs if blob.hash == settled.message.blob.hash]
        message = content_pb2.Message.FromString(body)
    assert message.role == content_pb2.ROLE_TOOL
    [part] = message.parts
    return part.tool_result


@pytest.mark.parametrize(
    ("result", "content"),
    [
        ('"plain \\"text\\""', 'plain "text"'),
        ('{"b": 1,  "a": [1.0, null]}', '{"a":[1,null],"b":1}'),
        ("null", "null"),
        ("12", "12"),
        ('""', ""),
    ],
)
def test_a_text_is_shown_plain_and_other_json_compact(result: str, content: str) -> None:
    settled = settle_result(TOOL, "c1", result)
    assert shown(settled) == content_pb2.ToolResult(call_id="c1", tool="look", content=content)
    assert settled.message.WhichOneof("body") == "message"
    assert (settled.failure, settled.output, settled.blobs, shown(settled).is_error) == (None, None, [], False)


def test_long_output_is_cut_in_the_middle_and_kept_whole() -> None:
    text = "".join(f"line {n}\n" for n in range(20_000))
    settled = settle_result(agent_pb2.ToolSpec(name="look", max_output_bytes=1_000), "c1", json.dumps(text))
    content = shown(settled).content
    assert len(content.encode()) <= 1_000
    assert content.startswith("line 0\n")
    assert content.endswith("line 19999\n")
    assert f"of {len(text):,} bytes are left out" in content
    assert settled.output is not None
    [blob] = settled.blobs
    assert blob.data.decode() == text
    assert settled.output.hash == blob.hash == hashlib.sha256(text.encode()).digest()
    assert (settled.output.size, settled.output.media_type) == (len(text), "text/plain; charset=utf-8")


def test_message_beyond_the_inline_limit_is_stored_once_under_its_hash() -> None:
    settled = settle_result(TOOL, "c1", json.dumps("x" * 10_000))
    assert settled.message.WhichOneof("body") == "blob"
    [blob] = settled.blobs
    assert settled.message.blob.hash == blob.hash == hashlib.sha256(blob.data).digest()
    assert shown(settled).content == "x" * 10_000
    assert settled.output is None


def test_result_that_is_no_json_becomes_an_error_and_is_kept_as_evidence() -> None:
    settled = settle_result(TOOL, "c1", "{oops")
    assert settled.failure is not None
    assert settled.failure.reason == "INVALID_RESULT"
    assert shown(settled).is_error
    assert "may have taken effect" in shown(settled).content
    assert [blob.data for blob in settled.blobs] == [b"{oops"]


def test_result_that_does_not_fit_its_schema_becomes_an_error_for_the_model() -> None:
    tool = agent_pb2.ToolSpec(name="look")
    tool.output_schema.update({"type": "object", "properties": {"id": {"type": "integer"}}})
    settled = settle_result(tool, "c1", '{"id": "x"}')
    assert shown(settled).is_error
    assert '$.id: expected integer, got string "x"' in shown(settled).content


def test_result_beyond_the_limit_is_refused_and_not_kept() -> None:
    settled = settle_result(TOOL, "c1", json.dumps("x" * (8 * 1024 * 1024)))
    assert settled.failure is not None
    assert "the limit is 8,388,608" in settled.failure.message
    assert (settled.blobs, settled.output) == ([], None)


@pytest.mark.parametrize(
    ("failure_class", "told"),
    [
        (content_pb2.FAILURE_CLASS_INVALID_ARGUMENTS, "it broke"),
        (content_pb2.FAILURE_CLASS_PERMANENT, "The call failed (BROKEN): it broke"),
        (content_pb2.FAILURE_CLASS_RETRYABLE, "The call failed (BROKEN): it broke"),
        (content_pb2.FAILURE_CLASS_CANCELLED, "The call was cancelled: it broke"),
        (content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME, "The outcome of this call is unknown: it broke"),
    ],
)
def test_every_failure_has_one_result_that_says_what_it_means(
    failure_class: content_pb2.FailureClass, told: str
) -> None:
    failure = content_pb2.Failure(reason="BROKEN", message="it broke", failure_class=failure_class)
    settled = settle_failure(TOOL, "c1", failure)
    result = shown(settled)
    assert result.content.startswith(told)
    assert (result.call_id, result.is_error) == ("c1", True)


def test_failure_of_any_length_stands_inline() -> None:
    settled = settle_failure(TOOL, "c1", content_pb2.Failure(reason="BROKEN", message="ü" * 100_000))
    assert settled.message.WhichOneof("body") == "message"


@given(st.text(), st.integers(1, 200))
def test_shortened_text_never_exceeds_its_limit_and_stays_text(text: str, limit: int) -> None:
    short = shorten(text, limit)
    assert len(short.encode()) <= limit
    assert short == text or len(text.encode()) > limit


@given(st.text(min_size=1).map(lambda text: text * 200), st.integers(120, 400))
def test_shortened_text_says_exactly_how_much_is_left_out(text: str, limit: int) -> None:
    short = shorten(text, limit)
    if short != text:
        head, _, rest = short.partition("\n[… ")
        count, _, tail = rest.partition(" bytes are left out here …]\n")
        left_out = int(count.split(" of ")[0].replace(",", ""))
        assert len(head.encode()) + left_out + len(tail.encode()) == len(text.encode()) or "\n[… " in text
