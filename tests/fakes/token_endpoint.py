"""A token endpoint in memory, for tests on a virtual clock: it rotates as told, and knows whether a grant is alive."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.auth.oauth.refusals import ReauthReason, RefusalKind, TokenRefused
from services.auth.oauth.tokens import OAuthApp, TokenSet
from services.auth.providers.schema import AuthKind, OAuthSpec, Provider, Rotation
from services.auth.secrets import Secret
from services.shared.clock import Clock

Hook = Callable[[str], Awaitable[None]]


@dataclass(slots=True)
class MemoryGrant:
    """One user's consent."""

    name: str
    refresh_token: str
    access_token: str
    spent: dict[str, float] = field(default_factory=dict)
    is_alive: bool = True
    calls: int = 0
    in_flight: int = 0
    max_in_flight: int = 0


class MemoryTokenEndpoint:
    """Answers as a provider does.

    Args:
        clock: Tells when tokens end.
        rotation: What a refresh does to the refresh token.
        expires_in: Seconds that access tokens live.
        grace_seconds: How long a spent token still works.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        rotation: Rotation = Rotation.STRICT,
        expires_in: float | None = 3600.0,
        grace_seconds: float = 0.0,
        answer_seconds: float = 0.0,
    ) -> None:
        self.clock = clock
        self.rotation = rotation
        self.expires_in = expires_in
        self.grace_seconds = grace_seconds
        self.answer_seconds = answer_seconds
        self.grants: dict[str, MemoryGrant] = {}
        self.calls = 0
        self.calls_by_second: Counter[int] = Counter()
        self.in_flight = 0
        self.max_in_flight = 0
        self.refusals: deque[TokenRefused] = deque()
        """Taken in order, one for each call, instead of an answer."""
        self.lost_answers = 0
        """So many calls take effect and are never answered."""
        self.returns_spent = False
        """Answers of the grace window hold the spent token again."""
        self.before_effect: Hook | None = None
        self.after_effect: Hook | None = None
        self._numbers = itertools.count(1)
        self._of_token: dict[str, MemoryGrant] = {}

    def app(self) -> OAuthApp:
        """Returns an app at this provider."""
        spec = OAuthSpec(rotation=self.rotation, rotation_grace_seconds=self.grace_seconds)
        provider = Provider(
            slug="fake",
            display_name="Fake",
            kind=AuthKind.OAUTH2,
            documentation_url="https://example.com",
            inject=(),
            hosts=(),
            oauth=spec,
        )
        return OAuthApp(provider, "client")

    def grant(self, name: str) -> TokenSet:
        """Makes a grant and returns its tokens."""
        made = MemoryGrant(name, f"rt-{name}-0", f"at-{name}-0")
        self.grants[name] = made
        self._of_token[made.refresh_token] = made
        return self._tokens(made, made.refresh_token)

    def is_alive(self, name: str, refresh_token: str) -> bool:
        """Tells whether a refresh token would be accepted now."""
        grant = self.grants[name]
        return grant.is_alive and (refresh_token == grant.refresh_token or self._is_in_grace(grant, refresh_token))

    async def refresh(
        self,
        app: OAuthApp,
        tokens: TokenSet,
        *,
        timeout_seconds: float = 20.0,
        redirect_uri: str | None = None,
        resource: str | None = None,
    ) -> TokenSet:
        """See `OAuthClient.refresh`."""
        assert tokens.refresh_token is not None
        token = tokens.refresh_token.reveal()
        grant = self._of_token[token]
        self.calls += 1
        self.calls_by_second[int(self.clock.monotonic())] += 1
        grant.calls += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        grant.in_flight += 1
        grant.max_in_flight = max(grant.max_in_flight, grant.in_flight)
        try:
            if self.before_effect is not None:
                await self.before_effect(grant.name)
            if self.answer_seconds:
                await self.clock.sleep(self.answer_seconds)
            if self.refusals:
                raise self.refusals.popleft()
            answer = self._rotate(grant, token)
            if self.after_effect is not None:
                await self.after_effect(grant.name)
            if self.lost_answers:
                self.lost_answers -= 1
                raise TokenRefused(RefusalKind.UNKNOWN_OUTCOME, "the connection broke")
            return answer
        finally:
            self.in_flight -= 1
            grant.in_flight -= 1

    async def client_credentials(
        self, app: OAuthApp, *, scopes: tuple[str, ...], resource: str | None = None, timeout_seconds: float = 20.0
    ) -> TokenSet:
        """See `OAuthClient.client_credentials`."""
        self.calls += 1
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.popleft()
        return TokenSet(
            access_token=Secret(f"cc-{next(self._numbers)}"), obtain_time=self.clock.now(), expire_time=self._ends()
        )

    def _rotate(self, grant: MemoryGrant, token: str) -> TokenSet:
        if grant.is_alive and token == grant.refresh_token:
            number = next(self._numbers)
            grant.access_token = f"at-{grant.name}-{number}"
            if self.rotation is not Rotation.NONE:
                grant.spent[token] = self.clock.monotonic()
                grant.refresh_token = f"rt-{grant.name}-{number}"
                self._of_token[grant.refresh_token] = grant
            return self._tokens(grant, grant.refresh_token)
        if grant.is_alive and self._is_in_grace(grant, token):
            grant.access_token = f"at-{grant.name}-{next(self._numbers)}"
            return self._tokens(grant, next(iter(grant.spent)) if self.returns_spent else grant.refresh_token)
        # Reuse of a spent token: whoever has the others may be a thief.
        grant.is_alive = False
        raise TokenRefused(
            RefusalKind.PERMANENT,
            "fake refused: invalid_grant",
            error="invalid_grant",
            reauth_reason=ReauthReason.GRANT_REVOKED,
            status=400,
        )

    def _is_in_grace(self, grant: MemoryGrant, token: str) -> bool:
        spent_at = grant.spent.get(token)
        if spent_at is None or self.rotation is Rotation.STRICT:
            return False
        return self.rotation is Rotation.OPTIONAL or self.clock.monotonic() - spent_at < self.grace_seconds

    def _tokens(self, grant: MemoryGrant, refresh_token: str) -> TokenSet:
        return TokenSet(
            access_token=Secret(grant.access_token),
            refresh_token=None if self.rotation is Rotation.NONE and grant.calls else Secret(refresh_token),
            obtain_time=self.clock.now(),
            expire_time=self._ends(),
            scopes=("read",),
        )

    def _ends(self) -> datetime | None:
        return None if self.expires_in is None else self.clock.now() + timedelta(seconds=self.expires_in)
