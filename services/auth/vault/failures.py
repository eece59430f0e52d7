"""What can go wrong at Vault, as few kinds as callers need to decide.

The texts hold a status and nothing that was asked or answered: those of hvac and requests name the whole path, and the
answers of Vault repeat what was sent.
"""

from __future__ import annotations

from typing import Final

CAS_MISMATCH: Final = "check-and-set parameter did not match the current version"
KV_NOT_READY: Final = "Upgrading from non-versioned to versioned data"
NODE_NOT_ACTIVE: Final = "local node not active"
KEY_NOT_FOUND: Final = ("encryption key not found", "no existing key named", "could not delete key; not found")


class VaultFailure(Exception):
    """Base of the failures below.

    Args:
        message: What happened, without path, body or token.
        may_be_applied: Whether the call may have taken effect all the same.
    """

    def __init__(self, message: str, *, may_be_applied: bool = False) -> None:
        super().__init__(message)
        self.may_be_applied = may_be_applied
        self.is_repetition = False
        """Whether the call was tried before: then what stands in its way may be its own effect."""


class Unreachable(VaultFailure):
    """No answer: refused, reset, timed out, or not TLS as configured."""


class Redirected(VaultFailure):
    """A standby points elsewhere, and this adapter does not go there by itself.

    Args:
        location: Where it points; compared with the configured addresses, never shown.
    """

    def __init__(self, location: str) -> None:
        super().__init__("Vault answered with a redirect")
        self.location = location


class Refused(VaultFailure):
    """Vault answered with a status that is no success.

    Args:
        status: The HTTP status.
        texts: The answer's `errors`, for the decisions below; never shown.
        deleted_version: Of a secret whose newest version was deleted: the number of that version.
        retry_after_seconds: What a quota's answer asks for.
    """

    def __init__(
        self,
        status: int,
        texts: tuple[str, ...] = (),
        *,
        deleted_version: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        self._text = " ".join(texts)
        # A proxy's 502 and 504, and errors of the storage behind Vault, say nothing of what happened there.
        unknown = status in (502, 504) or (status == 500 and NODE_NOT_ACTIVE not in self._text)
        super().__init__(f"Vault answered with status {status}", may_be_applied=unknown)
        self.status = status
        self.deleted_version = deleted_version
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_cas_mismatch(self) -> bool:
        """Tells whether another version of the secret is current."""
        return self.status == 400 and CAS_MISMATCH in self._text

    @property
    def is_not_ready(self) -> bool:
        """Tells whether the KV engine has just been mounted and takes calls in a moment."""
        return self.status == 400 and KV_NOT_READY in self._text

    @property
    def is_missing_key(self) -> bool:
        """Tells whether the transit key does not exist."""
        return self.status in (400, 404) and any(text in self._text for text in KEY_NOT_FOUND)

    @property
    def is_failover(self) -> bool:
        """Tells whether this node cannot answer, but another one, or this one later, may."""
        return self.status in (472, 473, 474, 500, 502, 503, 504, 530)


class PolicyDenied(VaultFailure):
    """The token is good, and its policies do not allow the call. Repeating it is of no use."""


class LoginRefused(VaultFailure):
    """Vault does not take the credentials of the login."""
