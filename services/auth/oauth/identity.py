"""Whose account a token is for: by a verified ID token, or by asking the provider. What fails here costs no token."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from services.auth.oauth import requests
from services.auth.oauth.answers import parse_document
from services.auth.oauth.refusals import ReauthReason, RefusalKind, TokenRefused
from services.auth.oauth.tokens import Account, OAuthApp, TokenSet
from services.auth.providers.schema import AccountRule, AccountSource, OAuthSpec, Provider
from services.auth.providers.templates import VariableMissing, fill
from services.auth.public_keys import public_keys
from services.auth.secrets import Secret
from services.shared.clock import Clock
from services.shared.egress import Destination, EgressClient, EgressFailed
from services.shared.json_pointers import as_text, at_pointer

WHOAMI_SECONDS: Final = 10.0
LEEWAY_SECONDS: Final = 60.0
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
"""Signatures of ID tokens that are taken: all need the issuer's key, none the client's secret."""

_KEYS_SECONDS: Final = 3_600.0
_REFETCH_SECONDS: Final = 60.0
_MAX_KEY_SETS: Final = 200
_MAX_ID_CHARACTERS: Final = 255
_CLAIM: Final = re.compile(r"\{claim\.([a-z_]+)\}")
_STANDARD_ID: Final = ("/sub",)
_STANDARD_LABEL: Final = ("/email", "/preferred_username", "/name", "/sub")


class Identity:
    """Tells accounts, with the issuers' keys kept for an hour.

    Args:
        egress: Through which every request goes.
        clock: Where time comes from.
    """

    def __init__(self, egress: EgressClient, clock: Clock) -> None:
        self._egress = egress
        self._clock = clock
        self._key_sets: dict[str, tuple[float, KeySet]] = {}

    async def identify(self, app: OAuthApp, tokens: TokenSet, *, nonce: str | None) -> Account:
        """Returns whose tokens these are.

        An ID token that is there is verified in any case; the provider's data says where the account's id is.

        Raises:
            TokenRefused: It cannot be told.
        """
        spec = app.provider.oauth
        rule = app.provider.account
        slug = app.provider.slug
        claims: Mapping[str, Any] | None = None
        if tokens.id_token is not None and spec is not None and spec.jwks_url is not None and spec.issuer is not None:
            claims = await self._claims(app, spec, tokens.id_token, tokens.extra, nonce)
        if rule is None:
            if claims is None:
                return Account("", app.provider.display_name)
            rule = AccountRule(AccountSource.ID_TOKEN, _STANDARD_ID, _STANDARD_LABEL)
        variables = requests.values_of(app, tokens.extra)
        if rule.source is AccountSource.EXTRA:
            ids, labels = ([variables.get(name) for name in names] for names in (rule.id, rule.label))
            return _account(slug, ids, labels)
        if rule.source is AccountSource.ID_TOKEN:
            if claims is None:
                raise _unknown(slug, "sent no ID token")
            return _account_in(slug, rule, claims)
        return await self._whoami(app.provider, rule, {"access_token": tokens.access_token}, variables)

    async def identify_fields(
        self, provider: Provider, fields: Mapping[str, Secret], variables: Mapping[str, str]
    ) -> Account:
        """Returns whose key or password this is.

        Raises:
            TokenRefused: The provider does not take it, or it cannot be told.
        """
        rule = provider.account
        if rule is None:
            return Account("", provider.display_name)
        return await self._whoami(provider, rule, fields, variables)

    async def _whoami(
        self, provider: Provider, rule: AccountRule, secrets: Mapping[str, Secret], variables: Mapping[str, str]
    ) -> Account:
        slug = provider.slug
        if rule.url is None:
            raise ValueError(f"the account rule of {slug} has no address")
        headers = {"accept": "application/json"}
        try:
            to = rule.url.expand(variables)
            for item in provider.render({**variables, **secrets}):
                if item.in_query:
                    raise _unknown(slug, "takes credentials in addresses only")
                headers[item.name.lower()] = item.value.reveal()
            plain = {**variables, **{name: secret.reveal() for name, secret in secrets.items()}}
            headers |= {name.lower(): fill(value, plain) for name, value in rule.headers.items()}
        except VariableMissing as missing:
            raise TokenRefused(RefusalKind.INTEGRATION, f"{slug}: {missing}", was_sent=False) from None
        except ValueError:
            raise TokenRefused(
                RefusalKind.INTEGRATION, f"{slug}: its variables make no address", was_sent=False
            ) from None
        body = b"" if rule.body is None else rule.body.encode()
        if body:
            headers["content-type"] = "application/json"
        try:
            answer = await self._egress.request(
                rule.method, to, headers=headers, body=body, timeout_seconds=WHOAMI_SECONDS
            )
        except EgressFailed as failed:
            raise TokenRefused(RefusalKind.TRANSIENT, f"{slug}: {failed}", was_sent=failed.was_sent) from failed
        if not 200 <= answer.status < 300:
            message = f"{slug} answered {answer.status} to the question whose account it is"
            if answer.status == 401:
                # What came a moment ago is not taken: for a key that is all there is to know.
                raise TokenRefused(
                    RefusalKind.PERMANENT, message, reauth_reason=ReauthReason.GRANT_REVOKED, status=answer.status
                )
            kind = RefusalKind.INTEGRATION if answer.status == 403 else RefusalKind.TRANSIENT
            raise TokenRefused(kind, message, status=answer.status)
        try:
            document = json.loads(answer.body.decode("utf-8-sig"), parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            raise _unknown(slug, "answered with no JSON to the question whose account it is") from None
        return _account_in(slug, rule, document)

    async def _claims(
        self, app: OAuthApp, spec: OAuthSpec, id_token: Secret, extra: Mapping[str, str], nonce: str | None
    ) -> Mapping[str, Any]:
        """Returns the claims of an ID token whose signature, issuer, audience, time and nonce are right."""
        to = requests.address(app, spec.jwks_url, extra)
        text = id_token.reveal()
        try:
            claims = _verified(text, await self._keys(app, to, is_fresh=False))
            if claims is None:
                # Signed with a key that was not there an hour ago.
                claims = _verified(text, await self._keys(app, to, is_fresh=True))
        except (JoseError, ValueError, TypeError, RecursionError):
            claims = None
        if claims is None:
            raise _unknown(app.provider.slug, "sent an ID token that is not signed by its keys")
        expected = _expected_issuer(app, spec, claims, extra)
        if expected is None or claims.get("iss") != expected:
            raise _unknown(app.provider.slug, "sent an ID token of another issuer")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if app.client_id not in audiences or (len(audiences) > 1 and claims.get("azp") != app.client_id):
            raise _unknown(app.provider.slug, "sent an ID token for another app")
        now = self._clock.now().timestamp()
        ends, begins = _number(claims.get("exp")), _number(claims.get("nbf", now))
        if ends is None or begins is None:
            raise _unknown(app.provider.slug, "sent an ID token without an end")
        if ends <= now - LEEWAY_SECONDS or begins > now + LEEWAY_SECONDS:
            raise _unknown(app.provider.slug, "sent an ID token that is not valid now")
        if nonce is not None:
            said = claims.get("nonce")
            if not isinstance(said, str) or not hmac.compare_digest(said.encode(), nonce.encode()):
                raise _unknown(app.provider.slug, "sent an ID token of another sign-in")
        return claims

    async def _keys(self, app: OAuthApp, to: Destination, *, is_fresh: bool) -> KeySet:
        now = self._clock.monotonic()
        cached = self._key_sets.get(to.url)
        # A token with an invented key id must not be a way to make this service fetch keys all the time.
        if cached is not None and now - cached[0] < (_REFETCH_SECONDS if is_fresh else _KEYS_SECONDS):
            return cached[1]
        try:
            answer = await self._egress.request(
                "GET", to, headers={"accept": "application/json"}, timeout_seconds=WHOAMI_SECONDS
            )
        except EgressFailed as failed:
            raise TokenRefused(
                RefusalKind.TRANSIENT, f"{app.provider.slug}: {failed}", was_sent=failed.was_sent
            ) from failed
        document = parse_document(answer.body) if answer.status == 200 else None
        keys = None if document is None else document.get("keys")
        if not isinstance(keys, list):
            raise TokenRefused(
                RefusalKind.TRANSIENT, f"{app.provider.slug} does not show its keys", status=answer.status
            )
        key_set = KeySet(public_keys(keys))
        if len(self._key_sets) >= _MAX_KEY_SETS:
            self._key_sets.pop(next(iter(self._key_sets)))
        self._key_sets[to.url] = (now, key_set)
        return key_set


def _verified(text: str, keys: KeySet) -> Mapping[str, Any] | None:
    """Returns the claims; None when no key fits."""
    registry = JWSRegistry(algorithms=list(ALGORITHMS))
    try:
        return jwt.decode(text, keys, algorithms=ALGORITHMS, registry=registry).claims
    except JoseError:
        return None


def _expected_issuer(app: OAuthApp, spec: OAuthSpec, claims: Mapping[str, Any], extra: Mapping[str, str]) -> str | None:
    def claim(found: re.Match[str]) -> str:
        value = claims.get(found[1])
        # A value that could change the host, or the path before it, is none.
        return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9-]{1,64}", value) else "?"

    try:
        return fill(_CLAIM.sub(claim, spec.issuer or ""), requests.values_of(app, extra))
    except VariableMissing:
        return None


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _account_in(slug: str, rule: AccountRule, document: Any) -> Account:
    ids, labels = (
        [as_text(at_pointer(document, pointer)) for pointer in pointers] for pointers in (rule.id, rule.label)
    )
    return _account(slug, ids, labels)


def _account(slug: str, ids: list[str | None], labels: list[str | None]) -> Account:
    parts = [part for part in ids if part]
    account_id = ":".join(parts)
    if len(parts) != len(ids) or len(account_id) > _MAX_ID_CHARACTERS or not account_id.isprintable():
        raise _unknown(slug, "did not say whose account it is")
    label = next((text for text in labels if text), account_id)
    shown = "".join(character for character in label if character.isprintable()).strip()
    return Account(account_id, shown[:_MAX_ID_CHARACTERS] or account_id)


def _unknown(slug: str, what: str) -> TokenRefused:
    return TokenRefused(RefusalKind.MALFORMED, f"{slug} {what}")
