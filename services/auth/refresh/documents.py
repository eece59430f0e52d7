"""The tokens of a connection as they lie in the secret store: what rotates together is one document."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from services.auth.connection_store import Connection, NewConnection
from services.auth.oauth.tokens import TokenSet
from services.auth.secrets import Secret, SecretDamagedError

Fingerprint = Callable[[Secret], str]
"""First digits of a keyed hash, by which a token is told from others without showing it."""

_SPENT_KEPT: Final = 8
_WRITE_ID_BYTES: Final = 16
_BOUND: Final = ("workspace_id", "user_id", "name", "integration_id", "provider")


def new_write_id() -> str:
    """Returns a random mark by which a writer finds its own write again."""
    return secrets.token_hex(_WRITE_ID_BYTES)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TokenDocument:
    """Tokens, how they were granted, and what tells this write from others.

    Sealed as one and bound to its connection: whoever can write to the database cannot have the tokens used elsewhere.
    """

    tokens: TokenSet
    write_id: str = field(default_factory=new_write_id)
    spent: tuple[str, ...] = ()
    """Fingerprints of the refresh tokens before this one, newest first: none of them may come back."""
    resource: str | None = None
    """The server the tokens are for (RFC 8707), repeated with each refresh."""
    redirect_uri: str | None = None
    """As in the authorization, for the providers that want it again."""

    def to_secret(self, connection: Connection | NewConnection) -> Secret:
        """Returns the document of a connection as the secret store keeps it."""
        document = {
            **self.tokens.to_document(),
            **{name: getattr(connection, name) for name in _BOUND},
            "write_id": self.write_id,
            "spent": list(self.spent),
            "resource": self.resource,
            "redirect_uri": self.redirect_uri,
        }
        return Secret(json.dumps(document))

    @classmethod
    def from_secret(cls, secret: Secret, connection: Connection) -> TokenDocument:
        """Returns what `to_secret` returned.

        Raises:
            SecretDamagedError: It is no token document, or that of another connection.
        """
        try:
            document: Mapping[str, Any] = json.loads(secret.reveal())
            tokens = TokenSet.from_document(document)
            found = cls(
                tokens=tokens,
                write_id=document.get("write_id", ""),
                spent=tuple(document.get("spent", ())),
                resource=document.get("resource"),
                redirect_uri=document.get("redirect_uri"),
            )
            # A document that a sign-in has just left is bound by its path alone, which names workspace and user.
            bound = {name: document[name] for name in _BOUND if name in document}
        except (KeyError, TypeError, ValueError):
            # Without the cause: its text may hold a part of the document.
            raise SecretDamagedError("a connection's secret is no token document") from None
        for name, value in bound.items():
            if value != getattr(connection, name):
                raise SecretDamagedError(f"the sealed {name} of a connection is not that of its row")
        return found

    def after(self, answer: TokenSet, fingerprint: Fingerprint) -> TokenDocument:
        """Returns the document that follows this one when a refresh was answered with `answer`.

        Invariant: a refresh token that was spent before never replaces a newer one.
        """
        old = self.tokens.refresh_token
        merged = answer.carrying_over(self.tokens)
        new = merged.refresh_token
        spent = self.spent
        if old is not None and new is not None:
            old_print, new_print = fingerprint(old), fingerprint(new)
            if new_print in spent:
                merged = replace(merged, refresh_token=old, refresh_expire_time=self.tokens.refresh_expire_time)
            elif new_print != old_print:
                spent = (old_print, *spent)[:_SPENT_KEPT]
        return replace(self, tokens=replace(merged, id_token=None), spent=spent, write_id=new_write_id())

    def brings_back_spent(self, answer: TokenSet, fingerprint: Fingerprint) -> bool:
        """Tells whether an answer to this document's refresh token holds one that was spent before it."""
        return answer.refresh_token is not None and fingerprint(answer.refresh_token) in self.spent


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CurrentToken:
    """An access token for use, without the refresh token that came with it."""

    secret: Secret
    fingerprint: str
    version: int
    """Of the document: one higher with each renewal."""
    token_type: str
    obtain_time: datetime
    expire_time: datetime | None
    """None when the provider did not say: it is used until it is rejected."""
    scopes: tuple[str, ...]
    """Empty when the provider did not say."""
    extra: Mapping[str, str]
    """What the provider's data captures beside the tokens; not secret."""

    def seconds_left(self, now: datetime) -> float | None:
        """Returns how long it works; None when that is not known."""
        return None if self.expire_time is None else (self.expire_time - now).total_seconds()

    def works_at(self, now: datetime) -> bool:
        """Tells whether it has not ended, as far as is known."""
        return self.expire_time is None or self.expire_time > now


@dataclass(frozen=True, slots=True, eq=False)
class StoredTokens:
    """A token document as read from the store."""

    document: TokenDocument
    version: int
    """Of the secret."""
    fingerprint: str
    """Of the access token."""

    @property
    def current(self) -> CurrentToken:
        """What callers get: without the refresh token."""
        tokens = self.document.tokens
        return CurrentToken(
            secret=tokens.access_token,
            fingerprint=self.fingerprint,
            version=self.version,
            token_type=tokens.token_type,
            obtain_time=tokens.obtain_time,
            expire_time=tokens.expire_time,
            scopes=tokens.scopes,
            extra=tokens.extra,
        )

    @property
    def tokens(self) -> TokenSet:
        """The tokens."""
        return self.document.tokens

    def seconds_left(self, now: datetime) -> float | None:
        """Returns how long the access token works; None when that is not known."""
        ends = self.tokens.expire_time
        return None if ends is None else (ends - now).total_seconds()

    def works_at(self, now: datetime) -> bool:
        """Tells whether the access token has not ended, as far as is known."""
        left = self.seconds_left(now)
        return left is None or left > 0
