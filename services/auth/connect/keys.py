"""The keyed hashes, sealed values and codes of connect sessions: what a browser, a link or a person brings back.

Nothing that could be presented is stored: of `state`, cookie and confirm code only hashes are, and the link's and the
form's tokens are computed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets as random_source
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from services.auth.keyring import Keyring
from services.auth.secrets import Secret, SecretDamagedError

CODE_ALPHABET: Final = "23456789BCDFGHJKMNPQRSTVWXZ"
"""Without vowels, which make words, and without what looks alike."""

CODE_CHARACTERS: Final = 8

STATE_BYTES: Final = 32
VERIFIER_CHARACTERS: Final = 64
LINK_MAC_CHARACTERS: Final = 22


class Seals(Protocol):
    """Seals what a session has to keep secret for some minutes: the part of `Envelopes` that is needed here."""

    async def seal(self, plaintext: Secret, *, context: str) -> str:
        """See `Envelopes.seal`."""

    async def open(self, sealed: str, *, context: str) -> Secret:
        """See `Envelopes.open`."""


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """What one request to the provider has to keep: half of it comes back by the browser, half proves the other."""

    verifier: Secret
    nonce: str
    is_consent_forced: bool = False
    """The second try, because the first brought no refresh token."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Values of the provider's variables with which it is asked."""

    @classmethod
    def make(cls, variables: Mapping[str, str], *, is_consent_forced: bool = False) -> Attempt:
        """Returns a new one."""
        return cls(
            Secret(random_source.token_urlsafe(VERIFIER_CHARACTERS)[:VERIFIER_CHARACTERS]),
            random_source.token_urlsafe(STATE_BYTES),
            is_consent_forced,
            variables,
        )

    @property
    def challenge(self) -> str:
        """The verifier's PKCE challenge (S256)."""
        digest = hashlib.sha256(self.verifier.reveal().encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def to_document(self) -> dict[str, Any]:
        """Returns it as JSON has it, in the open: for a sealed row and nothing else."""
        return {
            "verifier": self.verifier.reveal(),
            "nonce": self.nonce,
            "is_consent_forced": self.is_consent_forced,
            "variables": dict(self.variables),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Attempt:
        """Returns what `to_document` returned."""
        return cls(
            Secret(document["verifier"]),
            document["nonce"],
            document["is_consent_forced"],
            # An attempt that an earlier release began has none.
            document.get("variables", {}),
        )


class ConnectKeys:
    """Makes and checks what goes out and comes back.

    Args:
        keyring: The keys of the database: all replicas have the same.
        seals: Seals what a session keeps.
    """

    def __init__(self, keyring: Keyring, seals: Seals) -> None:
        self._key = hmac.digest(keyring.request_key, b"holdfast connect sessions v1", hashlib.sha256)
        self._seals = seals

    # The link of a session: its id, and a proof that it was handed out. Ids alone are in logs and in the audit.

    def link_token(self, session_id: str) -> str:
        """Returns what names a session in its link."""
        return f"{session_id}.{self._mac('link', session_id)[:LINK_MAC_CHARACTERS]}"

    def session_of(self, link_token: str) -> str | None:
        """Returns the session that a link names, None for a link that was not made here."""
        session_id, _, mac = link_token.rpartition(".")
        expected = self._mac("link", session_id)[:LINK_MAC_CHARACTERS]
        return session_id if hmac.compare_digest(mac.encode(), expected.encode()) else None

    # The form of the page: only a page that this server has shown to this browser can be continued.

    def form_token(self, session_id: str, cookie: str) -> str:
        """Returns the token against forged requests."""
        return self._mac("form", session_id, cookie)

    def is_form_token(self, presented: str, session_id: str, cookie: str) -> bool:
        """Tells whether it is the page's."""
        return hmac.compare_digest(presented.encode(), self.form_token(session_id, cookie).encode())

    # The code that the completing browser gets. It is computed from that browser's cookie: reloading the page shows the
    # same code, and no row holds it.

    def confirm_code(self, session_id: str, cookie: str) -> str:
        """Returns the code, as people read it."""
        number = int.from_bytes(self._digest("code", session_id, cookie), "big")
        digits = []
        for _ in range(CODE_CHARACTERS):
            number, digit = divmod(number, len(CODE_ALPHABET))
            digits.append(CODE_ALPHABET[digit])
        half = CODE_CHARACTERS // 2
        return f"{''.join(digits[:half])}-{''.join(digits[half:])}"

    def code_hash(self, session_id: str, code: str) -> bytes:
        """Returns the stored form of a code; case, spaces and hyphens do not matter."""
        plain = "".join(character for character in code.upper() if character.isalnum())
        return self._digest("code hash", session_id, plain)

    @staticmethod
    def is_hash(presented: bytes, stored: bytes | None) -> bool:
        """Compares in a time that tells nothing."""
        return stored is not None and hmac.compare_digest(presented, stored)

    # What a session keeps sealed.

    async def seal(self, session_id: str, document: Mapping[str, Any]) -> str:
        """Returns a document sealed for a session."""
        return await self._seals.seal(Secret(json.dumps(document)), context=f"connect/{session_id}")

    async def open(self, session_id: str, sealed: str | None) -> dict[str, Any]:
        """Returns the document of a session.

        Raises:
            SecretDamagedError: There is none that opens.
        """
        if sealed is None:
            raise SecretDamagedError("a connect session has nothing sealed")
        opened = await self._seals.open(sealed, context=f"connect/{session_id}")
        document: dict[str, Any] = json.loads(opened.reveal())
        return document

    def _mac(self, *parts: str) -> str:
        return base64.urlsafe_b64encode(self._digest(*parts)).rstrip(b"=").decode()

    def _digest(self, *parts: str) -> bytes:
        return hmac.digest(self._key, "|".join(parts).encode(), hashlib.sha256)


def new_state() -> str:
    """Returns a new `state`."""
    return random_source.token_urlsafe(STATE_BYTES)


def new_cookie() -> str:
    """Returns the name that a browser is given."""
    return random_source.token_urlsafe(STATE_BYTES)


def plain_hash(value: str) -> bytes:
    """Returns the stored form of a long random value, which needs no key."""
    return hashlib.sha256(value.encode()).digest()
