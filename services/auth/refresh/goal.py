"""What a caller needs of a token; a refresh that somebody else did may have met it already."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.auth.refresh.documents import CurrentToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Every part has to be met."""

    min_valid_seconds: float = 0.0
    """How long the token works. Of one that lives shorter than twice that, half of its life is enough."""
    rejected_fingerprint: str = ""
    """The provider has refused the token of this fingerprint."""
    newer_than: int = 0
    """A version that does not do."""

    def is_met(self, token: CurrentToken, now: datetime) -> bool:
        """Tells whether the token does."""
        if token.version <= self.newer_than or token.fingerprint == self.rejected_fingerprint:
            return False
        if token.expire_time is None:
            return True
        left = (token.expire_time - now).total_seconds()
        life = (token.expire_time - token.obtain_time).total_seconds()
        return left > 0 and left >= min(self.min_valid_seconds, life / 2)
