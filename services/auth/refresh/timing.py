"""When a token is renewed: early and with jitter, seldom if only to keep it alive, later and later after failures."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Final

from services.auth.oauth.tokens import TokenSet
from services.auth.providers.schema import OAuthSpec

_LEAST_MARGIN: Final = 60.0
_MOST_MARGIN: Final = 300.0
_MARGIN_SHARE: Final = 0.2
_MOST_JITTER: Final = 60.0
_JITTER_SHARE: Final = 0.1
_IDLE_SHARE: Final = 0.25

_BACKOFF_SECONDS: Final = 1.0
_MOST_BACKOFF: Final = 300.0
_SLOW_BACKOFF: Final = 60.0
_MOST_SLOW_BACKOFF: Final = 900.0


def next_refresh(tokens: TokenSet, spec: OAuthSpec, rng: random.Random) -> datetime | None:
    """Returns when tokens are to be renewed; None when nothing demands it before they are rejected.

    That is a fifth of their life (one to five minutes) before they end, less a random part, so that connections that
    were made together do not stay together; and a quarter of the provider's idle limit after they came, if that is
    sooner.
    """
    times = []
    ends = tokens.expire_time
    if ends is not None:
        life = max(0.0, (ends - tokens.obtain_time).total_seconds())
        margin = min(max(_MARGIN_SHARE * life, _LEAST_MARGIN), _MOST_MARGIN)
        margin += rng.uniform(0.0, min(_MOST_JITTER, _JITTER_SHARE * life))
        # A token of a minute is used for half of it, rather than renewed all the time.
        margin = min(margin, life / 2)
        if spec.early_refresh_seconds is not None:
            margin = min(margin, spec.early_refresh_seconds * rng.uniform(0.5, 1.0))
        times.append(ends - timedelta(seconds=margin))
    if spec.refresh_idle_seconds is not None and tokens.refresh_token is not None:
        idle = spec.refresh_idle_seconds * _IDLE_SHARE * rng.uniform(0.9, 1.0)
        times.append(tokens.obtain_time + timedelta(seconds=idle))
    return min(times, default=None)


def backoff_seconds(failures: int, rng: random.Random, *, is_slow: bool, asked: float | None) -> float:
    """Returns how long to wait after the failure of number `failures`, from 0.

    Args:
        failures: How many there were before in a row.
        rng: Chooses anywhere up to the limit, so that those that failed together do not come back together.
        is_slow: The answer came from something that is not the token endpoint, or a person has to act.
        asked: What the provider asked for.
    """
    base, most = (_SLOW_BACKOFF, _MOST_SLOW_BACKOFF) if is_slow else (_BACKOFF_SECONDS, _MOST_BACKOFF)
    limit = min(most, base * 2.0 ** min(failures + 1, 16))
    # Never nothing: a provider that refuses at once would be asked without a pause.
    waits = rng.uniform(base / 2, limit)
    return waits if asked is None else asked + rng.uniform(0.0, min(limit, 10.0))
