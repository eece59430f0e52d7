"""Keys from one master key, and authenticated encryption that binds each value to its place."""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.auth.secrets import Opaque, SecretDamagedError

KEY_BYTES: Final = 32

SCHEMA: Final = 1
"""Format of sealed values, part of what authenticates them."""

_NONCE_BYTES: Final = 12


class MasterKey(Opaque):
    """The one key that is not in the database. Everything else is derived from it or sealed under it."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"{KEY_BYTES} bytes")
        self._key = key

    @classmethod
    def generate(cls) -> MasterKey:
        """Returns a new random key."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> MasterKey:
        """Returns the key that `export` wrote.

        Raises:
            ValueError: The text is no such key; it completes "expected …".
        """
        try:
            # Both alphabets of base64, with or without padding: people bring keys from many generators.
            standard = text.strip().replace("-", "+").replace("_", "/").rstrip("=")
            return cls(base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True))
        except (binascii.Error, ValueError):
            raise ValueError(f"{KEY_BYTES} bytes as base64; `openssl rand -base64 32` makes a good one") from None

    def export(self) -> str:
        """Returns the key as base64, for a file that only its owner can read."""
        return base64.b64encode(self._key).decode()

    def derive(self, *, store_id: str, purpose: str, epoch: int) -> bytes:
        """Returns the key for one purpose, in one database, between two rotations."""
        info = f"{purpose}|{epoch}".encode()
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=store_id.encode(), info=info).derive(self._key)


@dataclass(frozen=True, slots=True)
class Sealed:
    """An encrypted value."""

    nonce: bytes
    ciphertext: bytes


class Sealer:
    """Seals values with AES-256-GCM under the key of one purpose.

    The place of a value (database, path, version) is authenticated with it, so that whoever can write to the
    database cannot move a sealed value elsewhere or present an older one as the current one.

    Args:
        master: The master key.
        store_id: Identity of the database.
        purpose: What is sealed.
        epoch: Number of the master key: one higher with each rotation.
    """

    def __init__(self, master: MasterKey, *, store_id: str, purpose: str, epoch: int) -> None:
        self._store_id = store_id
        # Random nonces of 96 bits are safe for 2^32 values under one key; a rotation starts another.
        self._cipher = AESGCM(master.derive(store_id=store_id, purpose=purpose, epoch=epoch))

    def seal(self, path: str, version: int, plaintext: bytes) -> Sealed:
        """Returns `plaintext` sealed for its place."""
        nonce = os.urandom(_NONCE_BYTES)
        return Sealed(nonce, self._cipher.encrypt(nonce, plaintext, self._place(path, version)))

    def open(self, path: str, version: int, sealed: Sealed) -> bytes:
        """Returns what was sealed for this place.

        Raises:
            SecretDamagedError: It was altered, or sealed for another place or with another key.
        """
        try:
            return self._cipher.decrypt(sealed.nonce, sealed.ciphertext, self._place(path, version))
        except (InvalidTag, ValueError) as error:
            raise SecretDamagedError(f"the sealed value at {path} does not open") from error

    def _place(self, path: str, version: int) -> bytes:
        return f"{self._store_id}|{path}|{version}|{SCHEMA}".encode()
