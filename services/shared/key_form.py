"""The form of what callers show: an API key with its checksum, or a person's token. No look-up is made for the rest."""

from __future__ import annotations

import re
import zlib
from typing import Final

KEY_PREFIX: Final = "hfst_"
ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
MAX_CREDENTIAL_CHARACTERS: Final = 8_192

_CHECKSUM_CHARACTERS: Final = 6
_KEY: Final = re.compile(r"hfst_(?P<id>[0-9A-Za-z]{12})_(?P<secret>[0-9A-Za-z]{43})(?P<checksum>[0-9A-Za-z]{6})")
# A signed JWT in its compact form, RFC 7515: three parts, none of them empty.
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


def parts_of_key(text: str) -> tuple[str, str] | None:
    """Returns the id and the secret of an API key, or None for what is none: most typing errors end here."""
    match = _KEY.fullmatch(text)
    if match is None or checksum(text[:-_CHECKSUM_CHARACTERS]) != match["checksum"]:
        return None
    return match["id"], match["secret"]


def id_of_key(text: str) -> str | None:
    """Returns the id of an API key, or None for what is none."""
    parts = parts_of_key(text)
    return None if parts is None else parts[0]


def is_token(text: str) -> bool:
    """Tells whether the text has the form of a person's token; no key has."""
    return len(text) <= MAX_CREDENTIAL_CHARACTERS and _TOKEN.fullmatch(text) is not None


def is_credential(text: str) -> bool:
    """Tells whether it is worth asking whose the text is."""
    return parts_of_key(text) is not None if text.startswith(KEY_PREFIX) else is_token(text)


def checksum(body: str) -> str:
    """Returns the characters that end a key: the CRC-32 of all that is before them."""
    return base62(zlib.crc32(body.encode()), _CHECKSUM_CHARACTERS)


def base62(number: int, characters: int) -> str:
    """Returns the last `characters` digits of a number to the base 62."""
    digits = []
    for _ in range(characters):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
