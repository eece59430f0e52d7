"""Whatever a token endpoint answers, what comes of it is tokens or a refusal that repeats nothing of it."""

from __future__ import annotations

import json
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth.oauth.answers import MAX_TOKEN_CHARACTERS, parse_document, read_scopes, read_tokens
from services.auth.oauth.refusals import VERDICTS, ReauthReason, RefusalKind, TokenRefused
from services.auth.oauth.tokens import TokenSet
from services.auth.providers import ProviderCatalog
from services.auth.providers.schema import AnswerRule, ExpiryUnit, OAuthSpec
from services.shared.egress import Answer

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(seconds=1)
SPEC = OAuthSpec()
SPECS = [item.oauth for item in ProviderCatalog.load() if item.oauth is not None]


def read(body: Any, status: int = 200, spec: OAuthSpec = SPEC, **headers: str) -> TokenSet:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_tokens(spec, Answer(status, fields, raw), provider="acme", start=START, now=NOW)


def refused(body: Any, status: int = 200, spec: OAuthSpec = SPEC) -> TokenRefused:
    with pytest.raises(TokenRefused) as caught:
        read(body, status, spec)
    return caught.value


def lifetime(tokens: TokenSet) -> float | None:
    return None if tokens.expire_time is None else (tokens.expire_time - START).total_seconds()


# ------------------------------------------------------------------------------------------------------------ any bytes

secret_text = st.text(st.characters(codec="utf-8"), max_size=20).map(lambda text: f"canary{text}")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | secret_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "access_token", "error"]), inner),
    max_leaves=8,
)
names = st.sampled_from(
    "access_token refresh_token expires_in expires_at scope token_type error error_description ok authed_user data "
    "id_token instance_url errors message status".split()
)
documents = st.dictionaries(names, json_values | st.sampled_from(sorted(VERDICTS)))
statuses = st.sampled_from([200, 201, 204, 301, 400, 401, 403, 404, 408, 418, 429, 500, 502, 503])
bodies = st.one_of(
    st.binary(max_size=300),
    documents.map(lambda document: json.dumps(document).encode()),
    documents.map(lambda document: b"\xef\xbb\xbf" + json.dumps(document).encode()),
    documents.map(lambda document: json.dumps(document).encode()[:-3]),
    st.text(max_size=200).map(lambda text: f"access_token={text}&error=canary".encode()),
)


@given(bodies, statuses, st.sampled_from(SPECS), st.text(max_size=40), st.text(max_size=20))
def test_any_answer_is_tokens_or_a_refusal_that_repeats_nothing(
    body: bytes, status: int, spec: OAuthSpec, date: str, retry_after: str
) -> None:
    try:
        tokens = read(body, status, spec, date=date, retry_after=retry_after)
    except TokenRefused as error:
        assert "canary" not in "".join(traceback.format_exception(error))
        assert (error.reauth_reason is not None) is (error.kind is RefusalKind.PERMANENT)
        assert error.error is None or error.error in VERDICTS
        assert error.retry_after_seconds is None or 0 <= error.retry_after_seconds <= 900
        # Only the provider's own word, in a status that it chose, ends a grant.
        if error.kind is RefusalKind.PERMANENT:
            assert status in (200, 201, 204, 400, 401, 403)
            assert parse_document(body) is not None
        return
    assert 200 <= status < 300
    assert "canary" not in repr(tokens).replace(repr(tokens.extra), "").replace(repr(tokens.scopes), "")
    assert tokens.expire_time is None or START < tokens.expire_time <= START + timedelta(days=3_662)
    # Every token can be sent in a header and stored.
    for token in (tokens.access_token, tokens.refresh_token):
        if token is not None:
            assert token.reveal().encode("ascii").isascii()
            assert not set(token.reveal()) & set("\r\n \x00")
    assert TokenSet.from_document(json.loads(json.dumps(tokens.to_document()))).to_document() == tokens.to_document()


# ------------------------------------------------------------------------------------------------------------- success


@pytest.mark.parametrize(
    "body",
    [
        b'{"access_token": "a"}',
        b'\xef\xbb\xbf{"access_token": "a"}',
        b'\r\n\t {"access_token": "a"}\n\n',
        b"access_token=a&scope=&token_type=bearer",
        b"token_type=bearer&access_token=a",
        b'{"access_token": "x", "access_token": "a"}',
        b'{"access_token": "a", "huge": ' + b"9" * 5_000 + b"}",
        b'{"access_token": "a", "odd": NaN, "expires_in": Infinity}',
        b'{"access_token": "a", "error": "", "error_description": null}',
        b'{"access_token": "a", "refresh_token": null, "scope": null, "token_type": null}',
        b'{"access_token": "a", "refresh_token": "", "scope": 7, "token_type": 7}',
        # Both at once: what may be the last copy of the tokens is kept.
        b'{"access_token": "a", "error": "invalid_grant"}',
    ],
)
def test_odd_success_is_a_success(body: bytes) -> None:
    tokens = read(body)
    assert tokens.access_token.reveal() == "a"
    assert (tokens.refresh_token, tokens.token_type, tokens.expire_time) == (None, "Bearer", None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"access_token"',
        b"{}",
        b'{"access_token": ""}',
        b'{"access_token": null}',
        b'{"access_token": 12345}',
        b'{"access_token": ["a"]}',
        b'{"access_token": {"value": "a"}}',
        b'{"Access_Token": "a"}',
        b'{"access_token": "a"',
        b'{"access_token": "a b"}',
        b'{"access_token": "a\\u0000"}',
        b'{"access_token": "a\\r\\nX: y"}',
        b'{"access_token": "\\u00e4"}',
        b'{"access_token": "\\ud800"}',
        b'{"access_token": "a", "refresh_token": "a\\nb"}',
        b'{"access_token": "' + b"a" * (MAX_TOKEN_CHARACTERS + 1) + b'"}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"<html>access_token=a</html>",
        b"access_token=a\n\nSet-Cookie: b",
        b"\xff\xfe{\x00",
        b'{"access_token": "\xff"}',
    ],
)
def test_success_without_a_usable_token_is_malformed(body: bytes) -> None:
    error = refused(body)
    assert (error.kind, error.was_sent) == (RefusalKind.MALFORMED, True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (3600, 3600),
        ("3600", 3600),
        (" 3600 ", 3600),
        (3599.5, 3599.5),
        ("3600.0", 3600),
        (0, None),
        ("0", None),
        (-1, None),
        ("-3600", None),
        (None, None),
        ("", None),
        ("soon", None),
        ("1e9", None),
        ("0x10", None),
        ("٣٦٠٠", None),
        (True, None),
        ([3600], None),
        ({"seconds": 3600}, None),
        (10**30, None),
        (1e308, None),
        ("9" * 4_000, None),
        (365 * 86_400 * 10, 365 * 86_400 * 10),
        (365 * 86_400 * 11, None),
    ],
)
def test_lifetime_is_a_number_that_makes_sense_or_not_known(value: Any, seconds: float | None) -> None:
    assert lifetime(read({"access_token": "a", "expires_in": value})) == seconds
    default = OAuthSpec(answer=AnswerRule(default_ttl_seconds=600))
    assert lifetime(read({"access_token": "a", "expires_in": value}, spec=default)) == seconds or 600


@pytest.mark.parametrize(
    ("unit", "value", "seconds"),
    [
        (ExpiryUnit.MILLISECONDS, 3_600_000, 3600),
        (ExpiryUnit.MILLISECONDS, "3600000", 3600),
        (ExpiryUnit.CLOCK, "1:02:30", 86_400 + 2 * 3_600 + 30 * 60),
        (ExpiryUnit.CLOCK, 3600, None),
        (ExpiryUnit.CLOCK, "1:2", None),
        (ExpiryUnit.EPOCH_SECONDS, int(START.timestamp()) + 60, 60),
        (ExpiryUnit.EPOCH_SECONDS, str(int(START.timestamp()) + 60), 60),
        (ExpiryUnit.EPOCH_SECONDS, int(START.timestamp()), None),
        (ExpiryUnit.EPOCH_SECONDS, 60, None),
        (ExpiryUnit.EPOCH_SECONDS, 10**29, None),
        (ExpiryUnit.EPOCH_MILLISECONDS, (int(START.timestamp()) + 60) * 1000, 60),
        (ExpiryUnit.RFC3339, "2026-01-01T00:01:00Z", 60),
        (ExpiryUnit.RFC3339, "2026-01-01T01:01:00+01:00", 60),
        (ExpiryUnit.RFC3339, "2026-01-01T00:01:00", 60),
        (ExpiryUnit.RFC3339, "2025-12-31T23:59:00Z", None),
        (ExpiryUnit.RFC3339, "9999-12-31T23:59:59Z", None),
        (ExpiryUnit.RFC3339, "0001-01-01T00:00:00+14:00", None),
        (ExpiryUnit.RFC3339, "tomorrow", None),
        (ExpiryUnit.RFC3339, 60, None),
    ],
)
def test_end_is_read_in_the_providers_unit(unit: ExpiryUnit, value: Any, seconds: float | None) -> None:
    spec = OAuthSpec(answer=AnswerRule(expires_unit=unit))
    assert lifetime(read({"access_token": "a", "expires_in": value}, spec=spec)) == seconds


@pytest.mark.parametrize("minutes", [-10, 10])
def test_points_in_time_are_moved_by_how_far_the_clocks_differ_and_lifetimes_are_not(minutes: int) -> None:
    ahead = timedelta(minutes=minutes)
    date = format_datetime((NOW + ahead).replace(microsecond=0), usegmt=True)
    point = OAuthSpec(answer=AnswerRule(expires_unit=ExpiryUnit.EPOCH_SECONDS))
    ends = int((START + ahead).timestamp()) + 3600
    assert lifetime(read({"access_token": "a", "expires_in": ends}, spec=point, date=date)) == 3600
    assert lifetime(read({"access_token": "a", "expires_in": 3600}, date=date)) == 3600


@pytest.mark.parametrize("date", ["", "soon", "Thu, 01 Jan 1970 00:00:00 +9999", "Thu, 32 Jan 2026 00:00:00 GMT"])
def test_date_that_is_none_changes_nothing(date: str) -> None:
    point = OAuthSpec(answer=AnswerRule(expires_unit=ExpiryUnit.EPOCH_SECONDS))
    ends = int(START.timestamp()) + 3600
    assert lifetime(read({"access_token": "a", "expires_in": ends}, spec=point, date=date)) == 3600


def test_clocks_that_differ_by_a_second_agree() -> None:
    point = OAuthSpec(answer=AnswerRule(expires_unit=ExpiryUnit.EPOCH_SECONDS))
    ends = int(START.timestamp()) + 3600
    date = format_datetime(NOW + timedelta(seconds=30), usegmt=True)
    assert lifetime(read({"access_token": "a", "expires_in": ends}, spec=point, date=date)) == 3600


@pytest.mark.parametrize(
    ("claims", "seconds"),
    [("eyJleHAiOjE3NjcyMjkyMDB9", 3600), ("e30", None), ("eyJleHAiOiJ4In0", None), ("%%%", None), ("W10", None)],
)
def test_end_of_a_token_that_is_a_jwt_is_a_hint(claims: str, seconds: float | None) -> None:
    spec = OAuthSpec(answer=AnswerRule(jwt_exp_hint=True))
    assert lifetime(read({"access_token": f"e30.{claims}.x"}, spec=spec)) == seconds
    assert lifetime(read({"access_token": f"e30.{claims}.x"})) is None


@pytest.mark.parametrize(
    ("value", "scopes"),
    [
        ("a b", ("a", "b")),
        ("a,b", ("a", "b")),
        (" a,  b a ", ("a", "b")),
        (["a", "b", 7, None, ""], ("a", "b")),
        ("", ()),
        (None, ()),
        (7, ()),
        ("https://www.googleapis.com/auth/drive", ("https://www.googleapis.com/auth/drive",)),
        ('a"b c\\d', ()),
    ],
)
def test_scopes_are_read_from_texts_and_arrays(value: Any, scopes: tuple[str, ...]) -> None:
    assert read_scopes(value) == scopes


def test_token_type_is_taken_whatever_its_case() -> None:
    for said in ("bearer", "BEARER", "Bearer", "", "a b", None):
        assert read({"access_token": "a", "token_type": said}).token_type == "Bearer"
    assert read({"access_token": "a", "token_type": "DPoP"}).token_type == "DPoP"


# ------------------------------------------------------------------------------------------------------------ refusals


def test_every_verdict_of_the_registry_is_given_for_its_code() -> None:
    for code, verdict in VERDICTS.items():
        for status in (400, 401):
            error = refused({"error": code, "error_description": "canary"}, status)
            assert (error.kind, error.error, error.reauth_reason) == (verdict.kind, code, verdict.reauth_reason)


def test_only_a_grant_that_is_over_asks_for_the_user() -> None:
    asking = {code for code, verdict in VERDICTS.items() if verdict.reauth_reason is not None}
    assert "invalid_client" not in asking
    assert "invalid_request" not in asking
    assert refused({"error": "unheard_of"}, 400).reauth_reason is None
    assert refused({"error": "invalid_grant"}, 400).reauth_reason is ReauthReason.GRANT_REVOKED


@pytest.mark.parametrize("code", [7, True, None, [], ["invalid_grant"], {"code": "invalid_grant"}, "INVALID_GRANT", ""])
def test_code_that_is_none_proves_nothing(code: Any) -> None:
    assert refused({"error": code}, 400).kind is RefusalKind.TRANSIENT
