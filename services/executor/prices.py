"""What a model call costs, from the price data that genai-prices ships; what it does not know stays unpriced."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from datetime import datetime
from decimal import ROUND_HALF_EVEN
from typing import Any, Final

from holdfast.api.common.v1 import agent_pb2, content_pb2

_DISTRIBUTION: Final = "genai-prices"
_PRICED_PROVIDERS: Final = frozenset({"anthropic", "openai"})
_NANOS_PER_DOLLAR: Final = 1_000_000_000
_MILLION: Final = 1_000_000

OF_DEFINITION: Final = "definition"
"""The source of a price that the agent's own definition gives."""


def price_of(
    spec: agent_pb2.ModelSpec, model: str, usage: content_pb2.Usage, base_url: str, at: datetime
) -> tuple[int | None, str]:
    """As `price`, by the price that the definition gives where it does: rounded up, so that it is never too low.

    Args:
        spec: The model's definition.
        model: The model that answered.
        usage: Inclusive totals.
        base_url: Where it answered; empty means the provider's own address.
        at: When.
    """
    if not spec.HasField("price"):
        return price(spec.provider, model, usage, base_url, at)
    own = spec.price
    millionths = (
        usage.input_tokens * own.input_usd_nanos_per_million_tokens
        + usage.output_tokens * own.output_usd_nanos_per_million_tokens
    )
    return -(-millionths // _MILLION), OF_DEFINITION


def price(provider: str, model: str, usage: content_pb2.Usage, base_url: str, at: datetime) -> tuple[int | None, str]:
    """Returns the price in billionths of a US dollar and the price data's name and version.

    The seller is whoever answers at the address: a compatible server has the prices of its own host, if that is a
    known seller, and never those of the provider whose protocol it speaks. None, with an empty source, means unknown;
    unknown is never 0.

    Args:
        provider: Of the model: `ModelSpec.provider`.
        model: The model that answered.
        usage: Inclusive totals.
        base_url: Where it answered; empty means the provider's own address.
        at: When, because prices change.
    """
    if provider not in _PRICED_PROVIDERS or not model:
        return None, ""
    prices = _library()
    # Always one of the two: a model's name alone is sold by many, at different prices.
    seller = {"provider_api_url": base_url} if base_url else {"provider_id": provider}
    try:
        calculation = prices.calc_price(
            prices.Usage(
                input_tokens=usage.input_tokens,
                cache_read_tokens=usage.cache_read_input_tokens,
                cache_write_tokens=usage.cache_write_input_tokens,
                output_tokens=usage.output_tokens,
            ),
            model,
            genai_request_timestamp=at,
            **seller,
        )
    except (LookupError, ValueError):
        return None, ""
    nanos = (calculation.total_price * _NANOS_PER_DOLLAR).to_integral_value(ROUND_HALF_EVEN)
    return int(nanos), price_source()


@functools.cache
def price_source() -> str:
    """Returns the name and version of the price data, such as `genai-prices 0.2.3`."""
    return f"{_DISTRIBUTION} {importlib.metadata.version(_DISTRIBUTION)}"


def is_known(provider: str, model: str) -> bool:
    """Whether the price data have a price of a provider's model today; loads them."""
    if provider not in _PRICED_PROVIDERS:
        return False
    prices = _library()
    try:
        prices.calc_price(prices.Usage(input_tokens=1, output_tokens=1), model, provider_id=provider)
    except (LookupError, ValueError):
        return False
    return True


def load() -> None:
    """Loads the price data, which takes a third of a second: for a thread, before the first price is wanted."""
    prices = _library()
    prices.calc_price(prices.Usage(input_tokens=1), "gpt-4o", provider_id="openai")


@functools.cache
def _library() -> Any:
    # Not at the top: an executor that only calls scripted models never needs it, nor what it imports.
    return importlib.import_module("genai_prices")
