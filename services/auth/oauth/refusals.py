"""How a provider's refusal is told apart: only a proof ends a connection, everything else is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class RefusalKind(StrEnum):
    """What a refusal means for the connection."""

    PERMANENT = "permanent"
    """The provider said, in its protocol, that the grant is over: the user has to sign in again."""
    INTEGRATION = "integration"
    """The workspace's app at the provider is set up wrongly; the grant may be fine."""
    TRANSIENT = "transient"
    """Later it may work; nothing is known about the grant."""
    UNKNOWN_OUTCOME = "unknown outcome"
    """The request may have been carried out, and its answer is lost: a refresh token may be spent."""
    MALFORMED = "malformed"
    """An answer that claims success and holds no token that can be used."""


class ReauthReason(StrEnum):
    """Why a user has to sign in again."""

    GRANT_REVOKED = "grant_revoked"
    REFRESH_TOKEN_EXPIRED = "refresh_token_expired"
    NO_REFRESH_TOKEN = "no_refresh_token"
    SCOPE_INSUFFICIENT = "scope_insufficient"
    ACCOUNT_MISMATCH = "account_mismatch"
    REFRESH_OUTCOME_UNKNOWN = "refresh_outcome_unknown"
    PROVIDER_POLICY = "provider_policy"
    USER_DISABLED = "user_disabled"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one error code means."""

    error: str
    """The code of the OAuth registry that says the same."""
    kind: RefusalKind
    reauth_reason: ReauthReason | None = None


class TokenRefused(Exception):
    """There are no tokens. The text is public: it holds nothing that the provider said in free text."""

    def __init__(
        self,
        kind: RefusalKind,
        message: str,
        *,
        error: str | None = None,
        reauth_reason: ReauthReason | None = None,
        retry_after_seconds: float | None = None,
        was_sent: bool = True,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.error = error
        """A code of the OAuth registry such as `invalid_grant`; None for a code that is not known here."""
        self.reauth_reason = reauth_reason
        """Set exactly when `kind` is PERMANENT and the user can heal it."""
        self.retry_after_seconds = retry_after_seconds
        """How long the provider asks to wait, at most 15 minutes."""
        self.was_sent = was_sent
        """Whether bytes of the request may have left."""
        self.status = status
        """Status of the answer, if there was one."""


class DevicePending(Exception):
    """The user has not decided yet: ask again after the interval."""

    def __init__(self, *, slow_down: bool = False) -> None:
        super().__init__("the user has not decided yet")
        self.slow_down = slow_down
        """From now on the interval is five seconds longer (RFC 8628 §3.5)."""


AUTHORIZATION_PENDING: Final = "authorization_pending"
SLOW_DOWN: Final = "slow_down"


def _verdicts() -> dict[str, Verdict]:
    permanent, integration, transient = RefusalKind.PERMANENT, RefusalKind.INTEGRATION, RefusalKind.TRANSIENT
    policy = ReauthReason.PROVIDER_POLICY
    rows = [
        # RFC 6749 §5.2
        Verdict("invalid_grant", permanent, ReauthReason.GRANT_REVOKED),
        Verdict("invalid_client", integration),
        Verdict("unauthorized_client", integration),
        Verdict("unsupported_grant_type", integration),
        Verdict("invalid_scope", integration),
        # Something of the request is not as this provider wants it, which no user can change by signing in.
        Verdict("invalid_request", integration),
        # RFC 6749 §4.1.2.1; some token endpoints send them too.
        Verdict("unsupported_response_type", integration),
        Verdict("server_error", transient),
        Verdict("temporarily_unavailable", transient),
        # RFC 8707 §2, RFC 9449 §5
        Verdict("invalid_target", integration),
        Verdict("invalid_dpop_proof", integration),
        Verdict("use_dpop_nonce", integration),
        # OpenID Connect Core §3.1.2.6
        Verdict("interaction_required", permanent, policy),
        Verdict("login_required", permanent, policy),
        Verdict("consent_required", permanent, policy),
        Verdict("account_selection_required", permanent, policy),
        # RFC 8628 §3.5
        Verdict(SLOW_DOWN, transient),
        Verdict(AUTHORIZATION_PENDING, transient),
        Verdict("access_denied", permanent, ReauthReason.GRANT_REVOKED),
        Verdict("expired_token", permanent, ReauthReason.GRANT_REVOKED),
    ]
    return {row.error: row for row in rows}


VERDICTS: Final[Mapping[str, Verdict]] = MappingProxyType(_verdicts())
"""What the codes of the OAuth registry mean at a token endpoint. A code that is not here is no proof of anything."""
