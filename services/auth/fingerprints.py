"""Fingerprints: a short keyed hash by which a secret from an incident is matched with what auth handed out."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from services.auth.secrets import Secret

_DIGITS: Final = 12


def fingerprint_of(audit_key: bytes, secret: Secret) -> str:
    """Returns the first 12 hex digits of the secret's keyed hash; empty for an empty secret."""
    if secret.is_empty:
        return ""
    return hmac.digest(audit_key, secret.reveal().encode(), hashlib.sha256).hex()[:_DIGITS]
