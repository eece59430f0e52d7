"""Failures of Vault as the errors that auth's own callers know, each new kind of trouble logged once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from holdfast.errors import HoldfastError, Reason, ResourceExhausted, Unavailable
from services.auth.vault.failures import LoginRefused, PolicyDenied, Refused, VaultFailure
from services.shared.telemetry import get_logger

_RETRY_SECONDS: Final = 2.0

log = get_logger(__name__)


class Troubles:
    """Logs the beginning and the end of a trouble, not each call that meets it."""

    def __init__(self) -> None:
        self._now = ""

    def met(self, failure: VaultFailure) -> None:
        """Notes a failed call."""
        if (text := str(failure)) != self._now:
            self._now = text
            # Somebody has to act on these two; the others are expected to pass.
            is_lasting = isinstance(failure, PolicyDenied | LoginRefused)
            (log.error if is_lasting else log.warning)("vault_unavailable", reason=text)

    def over(self) -> None:
        """Notes a call that succeeded."""
        if self._now:
            self._now = ""
            log.info("vault_available")


@contextmanager
def as_errors(troubles: Troubles) -> Iterator[None]:
    """Turns what Vault's client raises inside into `holdfast.errors`."""
    error: HoldfastError
    try:
        yield
    except VaultFailure as failure:
        troubles.met(failure)
        error = _error(failure)
    else:
        troubles.over()
        return
    # Outside of the block: nothing of the failure stays attached to what callers see.
    raise error


def _error(failure: VaultFailure) -> HoldfastError:
    if isinstance(failure, Refused) and failure.status == 413:
        return ResourceExhausted("Vault does not take a secret of this size", reason=Reason.STORAGE_FULL)
    text = "the secret store cannot be used now"
    if isinstance(failure, PolicyDenied):
        text = "the secret store does not allow auth this call; its operator has to look at auth's log"
    elif isinstance(failure, LoginRefused):
        text = "auth cannot log in to the secret store; its operator has to look at auth's log"
    return Unavailable(text, reason=Reason.STORAGE_UNAVAILABLE, retry_delay_seconds=_RETRY_SECONDS)
