"""What went wrong at a model provider, as a Failure that the journal may keep: classified, short, without credential.

reason                    class         when
PROVIDER_RATE_LIMITED     RATE_LIMITED  429, or a rate-limit error inside the stream
PROVIDER_QUOTA_EXHAUSTED  PERMANENT     402, or `insufficient_quota` / `billing_error`: money, not time, helps
PROVIDER_OVERLOADED       RETRYABLE     529, or `overloaded_error`
PROVIDER_ERROR            RETRYABLE     any other 5xx; 408, 409, 425; an error event inside the stream
PROVIDER_UNREACHABLE      RETRYABLE     no connection, or it broke before an answer began
PROVIDER_STREAM_BROKEN    RETRYABLE     the answer began and ended before it was complete
PROVIDER_BAD_RESPONSE     RETRYABLE     something that is not the provider's format
PROVIDER_AUTH             AUTH          401, 403, no credential, or one that cannot be sent
PROVIDER_REFUSED          PERMANENT     400, 404, 422 and every other 4xx
PROVIDER_REDIRECTED       PERMANENT     3xx: a credential is not carried to another address
PROVIDER_ADDRESS_INVALID  PERMANENT     the connection's address cannot be used
CONTEXT_TOO_LONG          PERMANENT     the conversation does not fit into the model
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple
from urllib.parse import quote, quote_plus

from holdfast.api.common.v1 import content_pb2
from services.shared.clock import Clock

MAX_MESSAGE_CHARACTERS: Final = 500

_RETRYABLE: Final = content_pb2.FAILURE_CLASS_RETRYABLE
_RATE_LIMITED: Final = content_pb2.FAILURE_CLASS_RATE_LIMITED
_AUTH: Final = content_pb2.FAILURE_CLASS_AUTH
_PERMANENT: Final = content_pb2.FAILURE_CLASS_PERMANENT

# Types and codes that the providers and compatible servers put into error bodies and error events.
_CODES: Final[Mapping[str, tuple[str, content_pb2.FailureClass]]] = {
    "insufficient_quota": ("PROVIDER_QUOTA_EXHAUSTED", _PERMANENT),
    "billing_error": ("PROVIDER_QUOTA_EXHAUSTED", _PERMANENT),
    "billing_hard_limit_reached": ("PROVIDER_QUOTA_EXHAUSTED", _PERMANENT),
    "context_length_exceeded": ("CONTEXT_TOO_LONG", _PERMANENT),
    "exceed_context_size_error": ("CONTEXT_TOO_LONG", _PERMANENT),
    "rate_limit_exceeded": ("PROVIDER_RATE_LIMITED", _RATE_LIMITED),
    "rate_limit_error": ("PROVIDER_RATE_LIMITED", _RATE_LIMITED),
    "overloaded_error": ("PROVIDER_OVERLOADED", _RETRYABLE),
    "authentication_error": ("PROVIDER_AUTH", _AUTH),
    "permission_error": ("PROVIDER_AUTH", _AUTH),
    "invalid_api_key": ("PROVIDER_AUTH", _AUTH),
    "invalid_request_error": ("PROVIDER_REFUSED", _PERMANENT),
    "not_found_error": ("PROVIDER_REFUSED", _PERMANENT),
    "request_too_large": ("PROVIDER_REFUSED", _PERMANENT),
}
# These say more than the status that they come with: 429 for an empty account, 400 for a long conversation.
_STRONGER_THAN_STATUS: Final = frozenset({"PROVIDER_QUOTA_EXHAUSTED", "CONTEXT_TOO_LONG"})
# No server gives a code for it alone; the sentences are those of Anthropic, OpenAI, vLLM and llama.cpp.
_CONTEXT_TOO_LONG: Final = re.compile(
    r"maximum context length|context[ _]length[ _]exceeded|prompt is too long"
    r"|exceeds? (?:the )?(?:available |model'?s? )?context (?:limit|window|size|length)",
    re.IGNORECASE,
)
_RETRYABLE_4XX: Final = frozenset({408, 409, 425})
_LONGEST_RETRY_AFTER_SECONDS: Final = 7 * 24 * 3600.0
# `sk-ab***yz`: what providers leave of a key when they quote it.
_MASKED: Final = re.compile(r"\S*\*{3,}\S*")
# A key that was cut by whoever quoted it is still recognised by this much of it.
_RECOGNISABLE_CHARACTERS: Final = 12


class ProviderError(NamedTuple):
    """What an error body says, whatever its shape."""

    codes: tuple[str, ...]
    """Its type and code, most specific first."""
    status: int | None
    """A status that the body carries itself, as errors inside a stream do."""
    message: str


class FailureReporter:
    """Makes the failures of one attempt.

    Args:
        address: Who is called, for people: the provider's name, with the host when it is not the provider's own.
        secret: What must not be in any of them.
        clock: Time against which a `Retry-After` date is measured when the answer itself has none.
    """

    def __init__(self, address: str, secret: str, clock: Clock) -> None:
        self._address = address
        self._secret = secret
        self._clock = clock

    def of_answer(self, status: int | None, headers: Mapping[str, str], body: object) -> content_pb2.Failure:
        """Classifies an error that the provider reported: as an answer, or (without status) inside its stream."""
        error = parse_error(body)
        in_stream = status is None or status < 300
        reason, failure_class = _classify(error.status if in_stream else status, error)
        if reason == "PROVIDER_REDIRECTED":
            said = "a redirect, which is not followed; the connection's address must be the final one"
        else:
            said = error.message
        did = "reported an error in its answer" if in_stream else f"answered {status}"
        return self._failure(
            reason,
            failure_class,
            f"{self._address} {did}: {said}" if said else f"{self._address} {did}.",
            retry_after_millis=retry_after_millis(headers, self._clock.now()),
        )

    def unreachable(self, error: BaseException) -> content_pb2.Failure:
        """No connection, or it was lost before an answer began."""
        return self._failure(
            "PROVIDER_UNREACHABLE", _RETRYABLE, f"{self._address} could not be reached: {_innermost_text(error)}"
        )

    def stream_broken(self, error: BaseException | None) -> content_pb2.Failure:
        """The answer ended before it was complete, with or without an error."""
        why = "" if error is None else f" ({_innermost_text(error)})"
        return self._failure(
            "PROVIDER_STREAM_BROKEN", _RETRYABLE, f"The answer of {self._address} ended before it was complete{why}."
        )

    def bad_response(self, what: str) -> content_pb2.Failure:
        """The answer is not in the provider's format."""
        return self._failure("PROVIDER_BAD_RESPONSE", _RETRYABLE, f"{self._address} sent {what}.")

    def auth(self, what: str) -> content_pb2.Failure:
        """There is no credential that could be sent."""
        return self._failure("PROVIDER_AUTH", _AUTH, f"{self._address} was not called: {what}.")

    def address_invalid(self, what: str) -> content_pb2.Failure:
        """The connection's address is of no use."""
        return self._failure(
            "PROVIDER_ADDRESS_INVALID",
            _PERMANENT,
            f"{self._address} was not called: the address of its connection cannot be used, because {what}.",
        )

    def _failure(
        self, reason: str, failure_class: content_pb2.FailureClass, message: str, *, retry_after_millis: int = 0
    ) -> content_pb2.Failure:
        # Order matters: a secret that were cut first would no longer be found.
        message = shortened(scrubbed(message, self._secret))
        return content_pb2.Failure(
            reason=reason, message=message, failure_class=failure_class, retry_after_millis=retry_after_millis
        )


def _classify(status: int | None, error: ProviderError) -> tuple[str, content_pb2.FailureClass]:
    by_code = next((_CODES[code] for code in error.codes if code in _CODES), None)
    if by_code is not None and by_code[0] in _STRONGER_THAN_STATUS:
        return by_code
    # Any refusal may say it, also one that has the general code of an invalid request.
    if (status is None or status in (400, 413, 422)) and _CONTEXT_TOO_LONG.search(error.message):
        return "CONTEXT_TOO_LONG", _PERMANENT
    if status is None:
        return by_code or ("PROVIDER_ERROR", _RETRYABLE)
    if status < 400:
        return "PROVIDER_REDIRECTED", _PERMANENT
    if status in (401, 403):
        return "PROVIDER_AUTH", _AUTH
    if status == 402:
        return "PROVIDER_QUOTA_EXHAUSTED", _PERMANENT
    if status == 429:
        return "PROVIDER_RATE_LIMITED", _RATE_LIMITED
    if status == 529:
        return "PROVIDER_OVERLOADED", _RETRYABLE
    if status >= 500 or status in _RETRYABLE_4XX:
        return "PROVIDER_ERROR", _RETRYABLE
    return "PROVIDER_REFUSED", _PERMANENT


def parse_error(body: object) -> ProviderError:
    """Reads the error bodies of the providers, of compatible servers and of the proxies in front of them."""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, str):
        # A proxy's error page tells a person nothing that the status does not.
        return ProviderError((), None, "" if body.lstrip().startswith("<") else " ".join(body.split()))
    if not isinstance(body, dict):
        return ProviderError((), None, "")
    inner = body.get("error")
    fields = inner if isinstance(inner, dict) else body
    codes = tuple(value for value in (fields.get("code"), fields.get("type")) if isinstance(value, str) and value)
    status = next(filter(None, map(_error_status, (fields.get("code"), fields.get("status")))), None)
    message = next(
        (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for value in (fields.get("message"), inner if isinstance(inner, str) else None, fields.get("detail"))
            if value
        ),
        "",
    )
    return ProviderError(codes, status, " ".join(message.split()))


def _error_status(value: object) -> int | None:
    digits = str(value) if isinstance(value, int | str) else ""
    status = int(digits) if digits.isascii() and digits.isdigit() and len(digits) == 3 else 0
    return status if 400 <= status <= 599 else None


def retry_after_millis(headers: Mapping[str, str], now: datetime) -> int:
    """Returns how long the other side asked to wait, or 0: `retry-after-ms`, or `Retry-After` as seconds or a date."""
    seconds = _number(headers.get("retry-after-ms"), scale=0.001)
    value = headers.get("retry-after")
    if seconds is None:
        seconds = _number(value, scale=1.0)
    if seconds is None and value:
        # The sender's own clock is the right one to measure its date with.
        then, sent = _date(value), _date(headers.get("date"))
        if then is not None:
            seconds = (then - (sent or now)).total_seconds()
    if seconds is None or seconds <= 0:
        return 0
    return math.ceil(min(seconds, _LONGEST_RETRY_AFTER_SECONDS) * 1000)


def _number(value: str | None, *, scale: float) -> float | None:
    try:
        number = float(value) if value else math.nan
    except ValueError:
        return None
    return number * scale if math.isfinite(number) else None


def _date(value: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(value) if value else None
    except ValueError:
        return None
    return date.replace(tzinfo=UTC) if date is not None and date.tzinfo is None else date


def _innermost_text(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def scrubbed(text: str, secret: str) -> str:
    """Returns the text without the secret: as it is, encoded for URLs, JSON or base64, masked, or cut."""
    if secret:
        encoded = secret.encode()
        forms = {
            secret,
            quote(secret, safe=""),
            quote_plus(secret),
            json.dumps(secret)[1:-1],
            *(
                encoder(prefix + encoded).decode().rstrip("=")
                for encoder in (base64.b64encode, base64.urlsafe_b64encode)
                for prefix in (b"", b":", b"Bearer ")
            ),
        }
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "[credential]")
        for start in range(len(secret) - _RECOGNISABLE_CHARACTERS + 1):
            text = text.replace(secret[start : start + _RECOGNISABLE_CHARACTERS], "[credential]")
    return _MASKED.sub("[credential]", text)


def shortened(text: str) -> str:
    """Returns at most 500 characters of the text."""
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 1] + "…"
