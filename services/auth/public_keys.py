"""Keys that an issuer shows: those of them that can verify what it has signed, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key

_MAX_KEYS: Final = 100


def public_keys(items: Sequence[Any]) -> list[Key]:
    """Returns the keys of a JSON Web Key Set's `keys` that can be used; the others are passed over."""
    return [key for item in items[:_MAX_KEYS] if (key := _public_key(item)) is not None]


def _public_key(item: Any) -> Key | None:
    # A symmetric key in a public set would let everybody sign.
    if not isinstance(item, dict) or item.get("kty") not in ("RSA", "EC", "OKP") or item.get("use", "sig") != "sig":
        return None
    try:
        return JWKRegistry.import_key(item)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
