"""When a token ends, from whatever an answer says: a number that makes no sense means "not known", never an error."""

from __future__ import annotations

import base64
import json
import math
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from services.auth.providers.schema import ExpiryUnit

MAX_LIFETIME: Final = timedelta(days=3_660)
"""What is said to live longer is used until it is rejected."""

_CLOCK: Final = re.compile(r"(\d{1,4}):(\d{1,2}):(\d{1,2})")
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)


def expire_time(value: Any, unit: ExpiryUnit, *, start: datetime, skew: timedelta) -> datetime | None:
    """Returns the end of a token on this machine's clock.

    Args:
        value: As the answer holds it: a number, or a text with one.
        unit: What it means.
        start: When the request began: a lifetime is counted from there, which is never too long.
        skew: How far the provider's clock is ahead of this machine's; a point in time is moved by it.

    Returns:
        None when the value is absent, not positive, or too far away to be meant.
    """
    if unit is ExpiryUnit.RFC3339:
        return _within(start, _point(value), skew)
    if unit is ExpiryUnit.CLOCK:
        found = _CLOCK.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            return None
        days, hours, minutes = (int(part) for part in found.groups())
        number: float | None = days * 86_400.0 + hours * 3_600 + minutes * 60
    else:
        number = _number(value)
    if number is None or number <= 0:
        return None
    if unit in (ExpiryUnit.MILLISECONDS, ExpiryUnit.EPOCH_MILLISECONDS):
        number /= 1000
    if unit in (ExpiryUnit.EPOCH_SECONDS, ExpiryUnit.EPOCH_MILLISECONDS):
        return _within(start, _from_epoch(number), skew)
    if number > MAX_LIFETIME.total_seconds():
        return None
    return start + timedelta(seconds=number)


def jwt_expire_time(token: str, *, start: datetime, skew: timedelta) -> datetime | None:
    """Returns the `exp` of a JWT, unverified: a hint about a token that the provider itself has just handed out."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    if not isinstance(claims, dict):
        return None
    number = _number(claims.get("exp"))
    return None if number is None else _within(start, _from_epoch(number), skew)


def clock_skew(date: str | None, now: datetime) -> timedelta:
    """Returns how far a server's clock is ahead, by the `Date` of its answer; zero when it does not say."""
    if not date:
        return timedelta(0)
    try:
        said = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return timedelta(0)
    said = said.replace(tzinfo=UTC) if said.tzinfo is None else said
    return said - now


def retry_after_seconds(value: str | None, now: datetime, *, longest: float) -> float | None:
    """Returns what a `Retry-After` asks for, at most `longest`; None when it asks for nothing that has a meaning."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        date = date.replace(tzinfo=UTC) if date.tzinfo is None else date
        seconds = (date - now).total_seconds()
    return min(max(seconds, 0.0), longest) if math.isfinite(seconds) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and (len(value) > 40 or not re.fullmatch(r"\s*-?[0-9]+(\.[0-9]+)?\s*", value)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _from_epoch(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _point(value: Any) -> datetime | None:
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        point = datetime.fromisoformat(value)
    except ValueError:
        return None
    return point.replace(tzinfo=UTC) if point.tzinfo is None else point


def _within(start: datetime, point: datetime | None, skew: timedelta) -> datetime | None:
    if point is None or point < _EARLIEST:
        return None
    # Compared before it is moved: a point near the end of all time cannot be.
    if point - start > MAX_LIFETIME + timedelta(days=2):
        return None
    moved = point - skew
    return moved.astimezone(UTC) if timedelta(0) < moved - start <= MAX_LIFETIME else None
