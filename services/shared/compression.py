"""Compression of what is stored: payloads of a few hundred to a few thousand bytes, many of them each second.

The form is that of zlib (RFC 1950).
"""

from __future__ import annotations

import zlib
from typing import Final

WORTHWHILE_BYTES: Final = 400
"""Shorter payloads are stored as they are: there is little to save."""

# Of deflate's fastest kind, with a window and tables of the payloads' size. To set up those of `zlib.compress` takes
# several times as long as to compress a payload (1,000 bytes: 100 µs and more instead of 20).
_LEVEL: Final = 1
_WINDOW_BITS: Final = 12
_MEMORY_LEVEL: Final = 6


def compressed(payload: bytes) -> bytes:
    """Returns a payload in zlib's form."""
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
    return deflate.compress(payload) + deflate.flush()


def expanded(stored: bytes) -> bytes:
    """Returns what `compressed`, or any other zlib, was given.

    Raises:
        ValueError: It is not zlib's form, or was damaged.
    """
    try:
        return zlib.decompress(stored)
    except zlib.error as error:
        raise ValueError("not what was compressed") from error
