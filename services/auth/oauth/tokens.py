"""What a provider grants: tokens that travel as one value, are stored as one document, and never show themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Self

from services.auth.providers.schema import Provider
from services.auth.secrets import Secret

DOCUMENT_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class OAuthApp:
    """A workspace's app at a provider, as one request needs it."""

    provider: Provider
    client_id: str
    client_secrets: tuple[Secret, ...] = ()
    """In the order in which they are tried: while one is rotated there are two. Private keys for `private_key_jwt`."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Values of the provider's variables, such as a tenant; checked by its data."""

    def with_variables(self, variables: Mapping[str, str]) -> OAuthApp:
        """Returns the app as one connection uses it, with values of its own."""
        return replace(self, variables={**self.variables, **variables}) if variables else self


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TokenSet:
    """One answer of a token endpoint."""

    access_token: Secret
    refresh_token: Secret | None = None
    token_type: str = "Bearer"
    obtain_time: datetime
    """When the request began, on this machine's clock."""
    expire_time: datetime | None = None
    """None when the provider did not say: the token is used until it is rejected."""
    refresh_expire_time: datetime | None = None
    scopes: tuple[str, ...] = ()
    """Empty when the answer did not say, which means as asked for or as before."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """What the provider's data captures beside the tokens, such as `instance_url`: checked, and not secret."""
    id_token: Secret | None = None
    """For `identify` right after the exchange; it is not stored."""

    def carrying_over(self, previous: TokenSet) -> TokenSet:
        """Returns this answer to a refresh with what it left unsaid: the refresh token, its end, scopes and extras.

        A refresh token that is absent is one that stays valid, never one that is gone.
        """
        kept = self.refresh_token is None
        return replace(
            self,
            refresh_token=previous.refresh_token if kept else self.refresh_token,
            refresh_expire_time=self.refresh_expire_time or (previous.refresh_expire_time if kept else None),
            scopes=self.scopes or previous.scopes,
            extra={**previous.extra, **self.extra},
        )

    def with_extra(self, extra: Mapping[str, str]) -> TokenSet:
        """Returns the tokens with more beside them; what the token answer said comes first."""
        return replace(self, extra={**extra, **self.extra})

    def to_document(self) -> dict[str, Any]:
        """Returns the tokens as JSON has them, in the open: for the secret store and nothing else."""
        return {
            "schema": DOCUMENT_SCHEMA,
            "access_token": self.access_token.reveal(),
            "refresh_token": None if self.refresh_token is None else self.refresh_token.reveal(),
            "token_type": self.token_type,
            "obtain_time": self.obtain_time.isoformat(),
            "expire_time": _text(self.expire_time),
            "refresh_expire_time": _text(self.refresh_expire_time),
            "scopes": list(self.scopes),
            "extra": dict(self.extra),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Returns what `to_document` returned; keys that it does not know are left to whoever put them there.

        Raises:
            ValueError: It is no such document. The text repeats nothing of it.
        """
        try:
            if document["schema"] != DOCUMENT_SCHEMA:
                raise ValueError
            refresh_token = document["refresh_token"]
            return cls(
                access_token=Secret(document["access_token"]),
                refresh_token=None if refresh_token is None else Secret(refresh_token),
                token_type=document["token_type"],
                obtain_time=datetime.fromisoformat(document["obtain_time"]),
                expire_time=_time(document["expire_time"]),
                refresh_expire_time=_time(document["refresh_expire_time"]),
                scopes=tuple(document["scopes"]),
                extra=dict(document["extra"]),
            )
        except (KeyError, TypeError, ValueError):
            raise ValueError("expected a token document") from None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DeviceAuthorization:
    """A sign-in that the user finishes on another device (RFC 8628)."""

    device_code: Secret
    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    expire_time: datetime
    interval: timedelta
    """Between two polls; five seconds more after each `slow_down`."""

    def to_document(self) -> dict[str, Any]:
        """Returns it as JSON has it, with the device code in the open: for a sealed row and nothing else."""
        return {
            "device_code": self.device_code.reveal(),
            "user_code": self.user_code,
            "verification_uri": self.verification_uri,
            "verification_uri_complete": self.verification_uri_complete,
            "expire_time": self.expire_time.isoformat(),
            "interval_seconds": self.interval.total_seconds(),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Returns what `to_document` returned.

        Raises:
            ValueError: It is no such document.
        """
        try:
            return cls(
                device_code=Secret(document["device_code"]),
                user_code=document["user_code"],
                verification_uri=document["verification_uri"],
                verification_uri_complete=document["verification_uri_complete"],
                expire_time=datetime.fromisoformat(document["expire_time"]),
                interval=timedelta(seconds=document["interval_seconds"]),
            )
        except (KeyError, TypeError, ValueError):
            raise ValueError("expected the document of a device sign-in") from None


@dataclass(frozen=True, slots=True)
class Account:
    """Whose account at the provider the tokens are for."""

    account_id: str
    """Stable and unique at the provider; a reconnect compares it."""
    label: str
    """For people, such as an e-mail address."""


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
