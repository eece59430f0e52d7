"""Prices: known models at known sellers, and never a price for anything else."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from holdfast.api.common.v1 import content_pb2
from services.executor.prices import price

AT = datetime(2026, 1, 1, tzinfo=UTC)
USAGE = content_pb2.Usage(input_tokens=1_000_000, output_tokens=100_000)


@pytest.mark.parametrize(
    ("provider", "model", "base_url"),
    [
        ("openai", "gpt-4o", ""),
        ("openai", "gpt-4o-2024-08-06", "https://api.openai.com/v1"),
        ("anthropic", "claude-sonnet-4-5-20250929", ""),
        ("anthropic", "claude-sonnet-4-5", "https://api.anthropic.com"),
    ],
)
def test_known_model_at_its_provider_has_a_price_and_its_source(provider: str, model: str, base_url: str) -> None:
    nanos, source = price(provider, model, USAGE, base_url, AT)

    assert nanos is not None
    # A million tokens in and a tenth of that out: some dollars.
    assert 1_000_000_000 < nanos < 50_000_000_000
    assert re.fullmatch(r"genai-prices \d+\.\d+\.\d+\S*", source)


@pytest.mark.parametrize(
    ("provider", "model", "base_url"),
    [
        ("openai", "no-such-model", ""),
        ("openai", "", ""),
        ("openai", "gpt-4o", "http://127.0.0.1:11434/v1"),
        ("openai", "gpt-4o", "https://gateway.example.com/v1"),
        ("anthropic", "claude-sonnet-4-5", "https://gateway.example.com"),
        ("scripted", "gpt-4o", ""),
    ],
)
def test_what_has_no_known_price_is_unpriced_and_not_free(provider: str, model: str, base_url: str) -> None:
    assert price(provider, model, USAGE, base_url, AT) == (None, "")


def test_cached_input_is_cheaper_and_counted_once() -> None:
    cached = content_pb2.Usage(input_tokens=1_000_000, cache_read_input_tokens=900_000, output_tokens=100_000)

    full, _ = price("anthropic", "claude-sonnet-4-5", USAGE, "", AT)
    less, _ = price("anthropic", "claude-sonnet-4-5", cached, "", AT)

    assert full is not None
    assert less is not None
    assert less < full


def test_smallest_call_costs_whole_nanos() -> None:
    nanos, _ = price("openai", "gpt-4o-mini", content_pb2.Usage(input_tokens=1, output_tokens=0), "", AT)

    assert nanos == 150
