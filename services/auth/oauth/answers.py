"""Reads what a token endpoint answers, by the provider's data: tokens, or a refusal that says what it proves.

Invariant: whatever the bytes are, the only exception is `TokenRefused`, and nothing of the bytes is in its text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qsl

from services.auth.oauth.expiry import clock_skew, expire_time, jwt_expire_time, retry_after_seconds
from services.auth.oauth.refusals import VERDICTS, RefusalKind, TokenRefused
from services.auth.oauth.tokens import TokenSet
from services.auth.providers.schema import AnswerRule, CaptureSource, ErrorRule, OAuthSpec
from services.auth.secrets import Secret
from services.shared.egress import Answer
from services.shared.json_pointers import as_text, at_pointer
from services.shared.telemetry import get_logger

MAX_TOKEN_CHARACTERS: Final = 16 * 1024
LONGEST_RETRY_AFTER_SECONDS: Final = 900.0
LONG_BACKOFF_SECONDS: Final = 300.0
"""After an answer that did not come from the token endpoint, but from something before it."""

_MAX_SCOPES: Final = 500
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_TYPE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]{0,31}")
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,300}")
_SKEW: Final = timedelta(seconds=60)
# Of a status that the endpoint itself chose, so that what it says about the grant is a proof.
# 428 is Google's for `authorization_pending`.
_PROVING: Final = frozenset({400, 401, 403, 428})

log = get_logger(__name__)


def read_tokens(spec: OAuthSpec, answer: Answer, *, provider: str, start: datetime, now: datetime) -> TokenSet:
    """Returns the tokens of an answer.

    Args:
        spec: The provider's OAuth.
        answer: What came back.
        provider: The provider's slug, for the log and for texts.
        start: When the request began.
        now: When the answer was there.

    Raises:
        TokenRefused: There are none, or none that can be used.
    """
    document = parse_document(answer.body)
    refuse_errors(spec.answer, answer, document, provider=provider, now=now)
    if document is None:
        raise _malformed(provider, answer, "an answer that is neither JSON nor a form")
    skew = clock_skew(answer.headers.get("date"), now)
    if abs(skew) > _SKEW:
        log.warning("the clocks differ", provider=provider, ahead_seconds=round(skew.total_seconds()))
    else:
        # A header counts whole seconds, and the answer was under way: this close, the clocks agree.
        skew = timedelta(0)
    return _tokens(spec, answer, document, provider=provider, start=start, skew=skew)


def refuse_errors(
    rule: AnswerRule, answer: Answer, document: Mapping[str, Any] | None, *, provider: str, now: datetime
) -> None:
    """Returns when the answer is not an error.

    Raises:
        TokenRefused: It is one.
    """
    status = answer.status
    wait = retry_after_seconds(answer.headers.get("retry-after"), now, longest=LONGEST_RETRY_AFTER_SECONDS)
    is_success = 200 <= status < 300
    if status >= 500 or status in (408, 425, 429):
        raise TokenRefused(
            RefusalKind.TRANSIENT,
            f"{provider} answered {status}",
            error=_known_error(rule, document),
            retry_after_seconds=wait,
            status=status,
        )
    found = _error(rule, document, is_success=is_success)
    if found is not None and (is_success or status in _PROVING):
        raise refusal(found, provider=provider, status=status, retry_after_seconds=wait)
    has_error = document is not None and any(True for _ in _codes(rule, document))
    if is_success:
        if document is not None and _is_error(rule, document, has_error):
            # An error in a success: what the code means is not known here, so it proves nothing.
            raise TokenRefused(RefusalKind.TRANSIENT, f"{provider} refused with a code of its own", status=status)
        return
    if 300 <= status < 400:
        raise TokenRefused(
            RefusalKind.TRANSIENT,
            f"{provider} answered {status}, a redirect, which is not followed",
            retry_after_seconds=LONG_BACKOFF_SECONDS,
            status=status,
        )
    raise TokenRefused(
        RefusalKind.TRANSIENT,
        f"{provider} answered {status} " + ("with a code of its own" if has_error else "without an OAuth error"),
        # Most often a firewall or a proxy in between; what it says is about the request, not the grant.
        retry_after_seconds=wait if wait is not None else LONG_BACKOFF_SECONDS,
        status=status,
    )


def refusal(
    found: ErrorRule, *, provider: str, status: int | None = None, retry_after_seconds: float | None = None
) -> TokenRefused:
    """Returns what an error code means."""
    verdict = VERDICTS[found.error]
    reason = (found.reauth_reason or verdict.reauth_reason) if verdict.kind is RefusalKind.PERMANENT else None
    return TokenRefused(
        verdict.kind,
        f"{provider} refused: {found.error}",
        error=found.error,
        reauth_reason=reason,
        retry_after_seconds=retry_after_seconds,
        status=status,
    )


def parse_document(body: bytes) -> Mapping[str, Any] | None:
    """Returns an answer's JSON object, or its form as one; None when it is neither, whatever its content type says."""
    try:
        text = body.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None
    try:
        # Of a key that is there twice, the last counts, as with every other reader of JSON.
        document = json.loads(text, parse_int=_integer, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return _form(text)
    return document if isinstance(document, dict) else None


def read_scopes(value: Any, separator: str | None = None) -> tuple[str, ...]:
    """Returns scopes given as a text with spaces or commas, or as an array; what is no scope is left out."""
    if isinstance(value, str):
        names: Iterable[Any] = re.split(r"[\s,]+" if separator is None else re.escape(separator), value)
    elif isinstance(value, list):
        names = value
    else:
        return ()
    scopes = (name.strip() for name in names if isinstance(name, str))
    return tuple(dict.fromkeys(scope for scope in scopes if _SCOPE.fullmatch(scope)))[:_MAX_SCOPES]


def _tokens(
    spec: OAuthSpec, answer: Answer, document: Mapping[str, Any], *, provider: str, start: datetime, skew: timedelta
) -> TokenSet:
    rule = spec.answer
    access_token = _first_text(document, rule.access_token)
    if access_token is None:
        raise _malformed(provider, answer, "a success without an access token")
    refresh_token = _first_text(document, rule.refresh_token)
    for token in (access_token, refresh_token):
        if token is not None and (len(token) > MAX_TOKEN_CHARACTERS or _TOKEN.fullmatch(token) is None):
            raise _malformed(provider, answer, "a token that cannot be sent in a header")
    id_token = _first_text(document, rule.id_token)
    token_type = _first_text(document, rule.token_type) or ""
    ends = expire_time(_first(document, rule.expires), rule.expires_unit, start=start, skew=skew)
    if ends is None and rule.jwt_exp_hint:
        ends = jwt_expire_time(access_token, start=start, skew=skew)
    if ends is None and rule.default_ttl_seconds is not None:
        ends = start + timedelta(seconds=rule.default_ttl_seconds)
    refresh_ends = None
    if refresh_token is not None:
        value = _first(document, rule.refresh_expires)
        refresh_ends = expire_time(value, rule.refresh_expires_unit, start=start, skew=skew)
        if refresh_ends is None and spec.refresh_ttl_seconds is not None:
            refresh_ends = start + timedelta(seconds=spec.refresh_ttl_seconds)
    extra = {}
    for capture in spec.captures:
        if capture.source is CaptureSource.TOKEN:
            value = as_text(at_pointer(document, capture.at))
            if value is not None and value != "" and capture.accepts(value):
                extra[capture.name] = value
    return TokenSet(
        access_token=Secret(access_token),
        refresh_token=None if refresh_token is None else Secret(refresh_token),
        token_type="Bearer" if not _TYPE.fullmatch(token_type) or token_type.lower() == "bearer" else token_type,
        obtain_time=start,
        expire_time=ends,
        refresh_expire_time=refresh_ends,
        scopes=read_scopes(_first(document, rule.scope), rule.scope_separator),
        extra=extra,
        id_token=None if id_token is None or len(id_token) > MAX_TOKEN_CHARACTERS else Secret(id_token),
    )


def _form(text: str) -> Mapping[str, Any] | None:
    if "=" not in text or text[0] in '<{["' or "\n" in text:
        return None
    try:
        pairs = parse_qsl(text, max_num_fields=100)
    except ValueError:
        return None
    return dict(pairs) or None


def _integer(text: str) -> int | None:
    # Longer numbers mean nothing here, and Python refuses to read the longest.
    return int(text) if len(text) <= 30 else None


def _error(rule: AnswerRule, document: Mapping[str, Any] | None, *, is_success: bool = False) -> ErrorRule | None:
    """Returns the meaning of the first code that has one, the provider's own before the registry's."""
    if document is None:
        return None
    codes = list(_codes(rule, document))
    if is_success and not _is_error(rule, document, bool(codes)):
        return None
    for code in codes:
        if code in rule.errors:
            return rule.errors[code]
    for code in codes:
        if code in VERDICTS:
            return ErrorRule(code)
    return None


def _known_error(rule: AnswerRule, document: Mapping[str, Any] | None) -> str | None:
    found = _error(rule, document)
    return None if found is None else found.error


def _codes(rule: AnswerRule, document: Mapping[str, Any]) -> Iterator[str]:
    for pointer in rule.error:
        head, star, tail = pointer.partition("/*")
        value = at_pointer(document, head)
        items = value[:20] if star and isinstance(value, list) else [] if star else [value]
        for item in items:
            code = as_text(at_pointer(item, tail) if tail else item)
            if code is not None and code not in ("", "0", "ok", "false"):
                yield code


def _is_success(rule: AnswerRule, document: Mapping[str, Any]) -> bool:
    return rule.success is None or as_text(at_pointer(document, rule.success[0])) == rule.success[1]


def _is_error(rule: AnswerRule, document: Mapping[str, Any], has_code: bool) -> bool:
    """Tells whether an answer with a status of success is none. Tokens beside a code are kept: they may be the last."""
    return not _is_success(rule, document) or (has_code and not _has_token(rule, document))


def _has_token(rule: AnswerRule, document: Mapping[str, Any]) -> bool:
    return _first_text(document, rule.access_token) is not None


def _first(document: Mapping[str, Any], pointers: tuple[str, ...]) -> Any:
    return next((value for pointer in pointers if (value := at_pointer(document, pointer)) is not None), None)


def _first_text(document: Mapping[str, Any], pointers: tuple[str, ...]) -> str | None:
    values = (at_pointer(document, pointer) for pointer in pointers)
    return next((value for value in values if isinstance(value, str) and value), None)


def _malformed(provider: str, answer: Answer, what: str) -> TokenRefused:
    return TokenRefused(RefusalKind.MALFORMED, f"{provider} answered with {what}", status=answer.status)
