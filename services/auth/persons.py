"""People, who show a token of their own identity provider: verified here, and here only.

A token is taken when the configured issuer has signed it, for this suite, for now. Its claims say in which workspace
and in which roles its bearer acts; who has no role there is nobody.

Nothing is written for a person but which tokens were refused, so that a crash leaves nothing: workspaces are found and
never made by a token, and the issuer's keys are fetched again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import Key
from joserfc.jws import JWSRegistry

from holdfast.errors import Reason, Unauthenticated, Unavailable
from services.auth.oauth.answers import parse_document
from services.auth.public_keys import public_keys
from services.auth.refusals import RefusalCounter
from services.auth.roles import ROLES
from services.auth.workspaces import Workspaces
from services.shared.clock import Clock
from services.shared.egress import EgressClient, EgressFailed
from services.shared.identity import Identity
from services.shared.telemetry import get_logger

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
LEEWAY_SECONDS: Final = 60.0
KEYS_SECONDS: Final = 3_600.0
"""How long the issuer's keys are used before they are fetched again."""
REFETCH_SECONDS: Final = 60.0
"""How often tokens with an unknown key may make this service fetch them."""

_STALE_SECONDS: Final = 86_400.0
_RETRY_SECONDS: Final = 5.0
_FETCH_SECONDS: Final = 10.0
_MAX_USER_ID_CHARACTERS: Final = 255
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt", "application/jwt"})

_WORDS: Final[Mapping[str, str]] = {
    Reason.TOKEN_INVALID: "the token is not valid",
    Reason.TOKEN_EXPIRED: "the token has expired",
}

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcRules:
    """Whose tokens are taken, and what their claims mean.

    Attributes:
        issuer: Exactly as the tokens have it.
        audience: One of a token's audiences.
        user_claim: Who it is; becomes the user's id.
        workspace: Of everybody; by the claim when it is empty.
        workspace_claim: Names the workspace.
        role_claim: One value or a list of them.
        roles: What the values mean; a value is the role of that name when there are none.
    """

    issuer: str
    audience: str
    user_claim: str = "sub"
    workspace: str = ""
    workspace_claim: str = "holdfast_workspace"
    role_claim: str = "roles"
    roles: Mapping[str, str]


class _NotTaken(Exception):
    """A token is refused.

    Attributes:
        why: In a word, for the audit.
        detail: In a sentence, for the log.
        reason: For its bearer.
    """

    def __init__(self, why: str, detail: str, reason: str = Reason.TOKEN_INVALID) -> None:
        super().__init__(detail)
        self.why = why
        self.detail = detail
        self.reason = reason


class Persons:
    """Tells who shows a token.

    Args:
        rules: Whose tokens are taken.
        workspaces: Where people act.
        refusals: Is told which tokens are not taken.
        egress: The way to the issuer.
        clock: Time.
    """

    def __init__(
        self,
        rules: OidcRules,
        workspaces: Workspaces,
        refusals: RefusalCounter,
        egress: EgressClient,
        clock: Clock,
    ) -> None:
        self._rules = rules
        self._workspaces = workspaces
        self._refusals = refusals
        self._clock = clock
        self._keys = _IssuerKeys(rules.issuer, egress, clock)

    async def verify(self, token: str, *, peer: str = "") -> Identity:
        """Returns who shows the token.

        Args:
            token: What was shown.
            peer: Who has shown it, as grpc calls it, for the record.

        Raises:
            Unauthenticated: It is not taken (TOKEN_INVALID, TOKEN_EXPIRED).
            Unavailable: The issuer's keys cannot be had.
        """
        try:
            return await self._verified(token)
        except _NotTaken as error:
            # Why is for the operator: of the token itself nothing is said, and its bearer learns only that it is not
            # taken.
            log.info("token_refused", why=error.detail)
            self._refusals.note_token(peer=peer, outcome=error.reason, why=error.why)
            raise Unauthenticated(_WORDS[error.reason], reason=error.reason) from None

    async def _verified(self, token: str) -> Identity:
        header = _header_of(token)
        if header.get("alg") not in ALGORITHMS or str(header.get("typ", "JWT")).lower() not in _TYPES:
            raise _NotTaken("algorithm", "its algorithm or type is not taken")
        claims = None
        for key in await self._keys.candidates(header.get("kid")):
            claims = _signed_by(token, key)
            if claims is not None:
                break
        if claims is None:
            raise _NotTaken("signature", "it is not signed by the issuer's keys")
        expire_time = self._check(claims)
        user_id = claims.get(self._rules.user_claim)
        if not isinstance(user_id, str) or not user_id.isprintable() or not 0 < len(user_id) <= _MAX_USER_ID_CHARACTERS:
            raise _NotTaken("user", f"its claim {self._rules.user_claim} is no user's id")
        roles = self._roles(claims)
        if not roles:
            raise _NotTaken("role", f"its claim {self._rules.role_claim} names no role")
        name = self._rules.workspace or _claim(claims, self._rules.workspace_claim)
        workspace = await self._workspaces.find(name) if isinstance(name, str) else None
        if workspace is None:
            raise _NotTaken("workspace", f"its claim {self._rules.workspace_claim} names no workspace")
        return Identity(
            "person",
            workspace_id=workspace.workspace_id,
            user_id=user_id,
            scopes=frozenset(scope for role in roles for scope in ROLES[role]),
            expire_time=expire_time,
        )

    def _check(self, claims: Mapping[str, Any]) -> datetime:
        """Returns when the token ends, as far as it is taken."""
        if claims.get("iss") != self._rules.issuer:
            raise _NotTaken("issuer", "it is of another issuer")
        audience = claims.get("aud")
        if self._rules.audience not in (audience if isinstance(audience, list) else [audience]):
            raise _NotTaken("audience", "it is for another audience")
        now = self._clock.now().timestamp()
        end, begin = _number(claims.get("exp")), _number(claims.get("nbf", 0))
        if end is None or begin is None:
            raise _NotTaken("time", "it has no end")
        if end + LEEWAY_SECONDS <= now:
            raise _NotTaken("expired", "it has expired", Reason.TOKEN_EXPIRED)
        if begin - LEEWAY_SECONDS > now:
            raise _NotTaken("time", "it is not valid yet")
        try:
            return datetime.fromtimestamp(end + LEEWAY_SECONDS, UTC)
        except (ValueError, OverflowError, OSError):
            raise _NotTaken("time", "its end is no time") from None

    def _roles(self, claims: Mapping[str, Any]) -> set[str]:
        said = _claim(claims, self._rules.role_claim)
        values = said if isinstance(said, list) else [said]
        meant = self._rules.roles or {role: role for role in ROLES}
        return {meant[value] for value in values if isinstance(value, str) and value in meant}


class _IssuerKeys:
    """The issuer's keys, by discovery."""

    def __init__(self, issuer: str, egress: EgressClient, clock: Clock) -> None:
        self._issuer = issuer
        self._egress = egress
        self._clock = clock
        self._keys: tuple[Key, ...] = ()
        self._fetched: float | None = None
        self._tried: float | None = None
        self._turn = asyncio.Lock()

    async def candidates(self, key_id: object) -> Sequence[Key]:
        """Returns the keys that may have signed a token with this key id; all of them for one without."""
        await self._refresh(KEYS_SECONDS)
        found = self._with_id(key_id)
        if not found:
            # The issuer may have a new key; an invented id must not be a way to make this service fetch all the time.
            await self._refresh(REFETCH_SECONDS)
            found = self._with_id(key_id)
        return found

    def _with_id(self, key_id: object) -> Sequence[Key]:
        return [key for key in self._keys if key_id is None or key.kid == key_id]

    async def _refresh(self, age_seconds: float) -> None:
        if self._is_younger(self._fetched, age_seconds):
            return
        async with self._turn:
            if self._is_younger(self._fetched, age_seconds):
                return
            wait = _RETRY_SECONDS if self._fetched is None else REFETCH_SECONDS
            if not self._is_younger(self._tried, wait):
                self._tried = self._clock.monotonic()
                try:
                    self._keys = await self._fetch()
                    self._fetched = self._tried
                except (EgressFailed, ValueError) as error:
                    log.warning("issuer_keys_unavailable", issuer=self._issuer, detail=str(error))
            if not self._is_younger(self._fetched, _STALE_SECONDS):
                raise Unavailable("tokens cannot be verified at the moment", retry_delay_seconds=_RETRY_SECONDS)

    def _is_younger(self, moment: float | None, seconds: float) -> bool:
        return moment is not None and self._clock.monotonic() - moment < seconds

    async def _fetch(self) -> tuple[Key, ...]:
        metadata = await self._document(self._issuer.rstrip("/") + "/.well-known/openid-configuration")
        # Otherwise one issuer could speak for another (OpenID Connect Discovery 1.0, 4.3).
        if metadata.get("issuer") != self._issuer:
            raise ValueError("the metadata are of another issuer")
        address = metadata.get("jwks_uri")
        if not isinstance(address, str):
            raise ValueError("the metadata name no keys")
        items = (await self._document(address)).get("keys")
        if not isinstance(items, list):
            raise ValueError("there are no keys at the address of the metadata")
        return tuple(public_keys(items))

    async def _document(self, url: str) -> Mapping[str, Any]:
        answer = await self._egress.request(
            "GET", url, headers={"accept": "application/json"}, timeout_seconds=_FETCH_SECONDS
        )
        document = parse_document(answer.body) if answer.status == 200 else None
        if document is None:
            raise ValueError(f"the issuer answered {answer.status}, or with something else than JSON")
        return document


def _header_of(token: str) -> Mapping[str, Any]:
    part = token.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise _NotTaken("header", "it has no header")
    return header


def _signed_by(token: str, key: Key) -> Mapping[str, Any] | None:
    try:
        claims = jwt.decode(token, key, algorithms=list(ALGORITHMS), registry=_registry()).claims
    except (JoseError, ValueError, TypeError, RecursionError):
        return None
    return claims


def _registry() -> JWSRegistry:
    # A header that is not known and not critical is no reason to refuse a token (RFC 7515, 4).
    registry = JWSRegistry(algorithms=list(ALGORITHMS), strict_check_header=False)
    # RFC 9864 renames it to Ed25519; issuers go on with the old name, and each of their tokens would be a warning.
    renamed = copy(registry.algorithms["EdDSA"])
    renamed.security_warning = None
    registry.algorithms = {**registry.algorithms, "EdDSA": renamed}
    return registry


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Returns a claim; of a name with dots that is none, the one inside others (`realm_access.roles`)."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
