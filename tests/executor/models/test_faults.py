"""Both adapters against recorded faults on real sockets: what they are classified as, and that no key gets out."""

from __future__ import annotations

import asyncio
import base64
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import pytest

from holdfast.api.common.v1 import content_pb2
from services.executor.models import Credential, Model, ModelFailed, ModelRegistry
from tests.executor.models.calls import CANARY, Heard, credential, fail, request, text_of, user
from tests.fakes.loopback import LeftLoopback
from tests.fakes.provider import (
    DONE,
    Ending,
    FakeProvider,
    Reply,
    anthropic_events,
    anthropic_text,
    chunk,
    data,
    event,
    event_stream,
    json_reply,
    openai_text,
    text_block,
)

RETRYABLE = content_pb2.FAILURE_CLASS_RETRYABLE
RATE_LIMITED = content_pb2.FAILURE_CLASS_RATE_LIMITED
AUTH = content_pb2.FAILURE_CLASS_AUTH
PERMANENT = content_pb2.FAILURE_CLASS_PERMANENT


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(provider: str, registry: ModelRegistry) -> Model:
    return registry.get(provider)


@pytest.fixture
async def server() -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as server:
        yield server


@pytest.fixture
def key(server: FakeProvider) -> Credential:
    return credential(server.url)


@pytest.fixture
def error_body(provider: str) -> Callable[[str, str], dict[str, Any]]:
    """Makes an error body in the provider's format."""

    def make(kind: str, message: str) -> dict[str, Any]:
        error = {"type": kind, "message": message}
        return {"error": error} if provider == "openai" else {"type": "error", "error": error}

    return make


@pytest.fixture
def whole(provider: str) -> Reply:
    return {"openai": openai_text, "anthropic": anthropic_text}[provider]("all ", "is well")


@pytest.fixture
def first_half(provider: str) -> list[bytes]:
    """What comes before the end of an answer: "all " and no more."""
    if provider == "openai":
        return [chunk({"role": "assistant", "content": ""}), chunk({"content": "all "})]
    events = anthropic_events([text_block("all ", "is well")])
    return events[: next(i for i, event in enumerate(events) if b"is well" in event)]


@pytest.mark.parametrize(
    ("headers", "millis"),
    [
        ({"Retry-After": "7"}, 7_000),
        ({"Retry-After": "1.5"}, 1_500),
        ({"retry-after-ms": "250", "Retry-After": "1"}, 250),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30_000),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT"}, 0),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "-5"}, 0),
        ({"Retry-After": "1e300"}, 604_800_000),
        ({}, 0),
    ],
)
async def test_rate_limit_is_told_with_its_wait(
    model: Model, server: FakeProvider, key: Credential, error_body: Any, headers: dict[str, str], millis: int
) -> None:
    server.will_reply(json_reply(429, error_body("rate_limit_error", "Slow down."), **headers))

    failure = await fail(model, request(), key)

    assert (failure.reason, failure.failure_class) == ("PROVIDER_RATE_LIMITED", RATE_LIMITED)
    assert failure.retry_after_millis == millis
    assert "Slow down." in failure.message
    # The executor is the only one that repeats.
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind", "reason", "failure_class"),
    [
        (400, "invalid_request_error", "PROVIDER_REFUSED", PERMANENT),
        (401, "authentication_error", "PROVIDER_AUTH", AUTH),
        (402, "billing_error", "PROVIDER_QUOTA_EXHAUSTED", PERMANENT),
        (403, "permission_error", "PROVIDER_AUTH", AUTH),
        (404, "not_found_error", "PROVIDER_REFUSED", PERMANENT),
        (408, "timeout_error", "PROVIDER_ERROR", RETRYABLE),
        (409, "conflict_error", "PROVIDER_ERROR", RETRYABLE),
        (413, "request_too_large", "PROVIDER_REFUSED", PERMANENT),
        (422, "invalid_request_error", "PROVIDER_REFUSED", PERMANENT),
        (429, "insufficient_quota", "PROVIDER_QUOTA_EXHAUSTED", PERMANENT),
        (500, "api_error", "PROVIDER_ERROR", RETRYABLE),
        (503, "api_error", "PROVIDER_ERROR", RETRYABLE),
        (529, "overloaded_error", "PROVIDER_OVERLOADED", RETRYABLE),
    ],
)
async def test_status_decides_the_class_and_the_provider_explains(
    model: Model,
    server: FakeProvider,
    key: Credential,
    error_body: Any,
    status: int,
    kind: str,
    reason: str,
    failure_class: content_pb2.FailureClass,
) -> None:
    server.will_reply(json_reply(status, error_body(kind, "That is how it is.")))

    failure = await fail(model, request(), key)

    assert (failure.reason, failure.failure_class) == (reason, failure_class)
    assert "That is how it is." in failure.message
    assert str(status) in failure.message


@pytest.mark.parametrize(
    "message",
    [
        "prompt is too long: 213462 tokens > 200000 maximum",
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 130512 tokens.",
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
        "the request exceeds the available context size. try increasing the context size",
    ],
)
async def test_conversation_that_does_not_fit_has_a_reason_of_its_own(
    model: Model, server: FakeProvider, key: Credential, error_body: Any, message: str
) -> None:
    server.will_reply(json_reply(400, error_body("invalid_request_error", message)))

    failure = await fail(model, request(), key)

    assert (failure.reason, failure.failure_class) == ("CONTEXT_TOO_LONG", PERMANENT)


async def test_openai_code_for_a_long_conversation_is_enough(registry: ModelRegistry, server: FakeProvider) -> None:
    body = {"error": {"type": "invalid_request_error", "code": "context_length_exceeded", "message": "Too much."}}
    server.will_reply(json_reply(400, body))

    failure = await fail(registry.get("openai"), request(), credential(server.url))

    assert failure.reason == "CONTEXT_TOO_LONG"


async def test_web_page_of_a_proxy_is_no_message(model: Model, server: FakeProvider, key: Credential) -> None:
    page = b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"
    server.will_reply(Reply([page], 502, {"Content-Type": "text/html"}))

    failure = await fail(model, request(), key)

    assert (failure.reason, failure.failure_class) == ("PROVIDER_ERROR", RETRYABLE)
    assert "<" not in failure.message
    assert "502" in failure.message


@pytest.mark.parametrize(
    "reply",
    [
        Reply([b"<html>Sign in</html>"], headers={"Content-Type": "text/html"}),
        json_reply(200, {"choices": []}),
        Reply([b"{oops"], headers={"Content-Type": "application/json"}),
    ],
    ids=["page", "json", "broken-json"],
)
async def test_success_that_is_no_stream_is_a_bad_response(
    model: Model, server: FakeProvider, key: Credential, reply: Reply
) -> None:
    server.will_reply(reply)

    failure = await fail(model, request(), key)

    assert (failure.reason, failure.failure_class) == ("PROVIDER_BAD_RESPONSE", RETRYABLE)


async def test_error_with_a_status_of_success_is_an_error(model: Model, server: FakeProvider, key: Credential) -> None:
    server.will_reply(json_reply(200, {"error": {"code": 429, "message": "Provider is busy."}}))

    failure = await fail(model, request(), key)

    assert (failure.reason, failure.failure_class) == ("PROVIDER_RATE_LIMITED", RATE_LIMITED)


@pytest.mark.parametrize("ending", [Ending.CLOSE, Ending.COMPLETE])
async def test_half_an_answer_is_a_broken_stream(
    model: Model, server: FakeProvider, key: Credential, first_half: list[bytes], ending: Ending
) -> None:
    server.will_reply(event_stream(*first_half, ending=ending))
    heard = Heard()

    failure = await fail(model, request(), key, heard)

    assert (failure.reason, failure.failure_class) == ("PROVIDER_STREAM_BROKEN", RETRYABLE)
    assert heard.text == "all "


async def test_connection_that_closes_before_an_answer_is_unreachable(
    model: Model, server: FakeProvider, key: Credential
) -> None:
    server.will_reply(Reply(with_head=False, ending=Ending.CLOSE))

    failure = await fail(model, request(), key)

    assert (failure.reason, failure.failure_class) == ("PROVIDER_UNREACHABLE", RETRYABLE)


async def test_address_where_nobody_listens_is_unreachable(model: Model) -> None:
    async with FakeProvider() as gone:
        url = gone.url

    failure = await fail(model, request(), credential(url))

    assert (failure.reason, failure.failure_class) == ("PROVIDER_UNREACHABLE", RETRYABLE)
    assert url.removeprefix("http://") in failure.message


async def test_break_after_the_last_word_loses_nothing(
    model: Model, server: FakeProvider, key: Credential, provider: str
) -> None:
    if provider == "openai":
        pieces = [chunk({"content": "all is well"}), chunk(finish_reason="stop")]
    else:
        pieces = anthropic_events([text_block("all is well")])[:-1]
    server.will_reply(event_stream(*pieces, ending=Ending.CLOSE))

    answer = await model.answer(request(), key, Heard())

    assert text_of(answer) == "all is well"


@pytest.mark.parametrize(
    "garbage",
    [
        b'event: message_delta\ndata: {"choices": [{"del\n\n',
        b"event: message_delta\ndata: <html>\n\n",
        b"event: message_delta\ndata: \xff\xfe\xfd\n\n",
        event("message_delta", choices=["?"], delta="?"),
        b"event: message_delta\ndata: [1, 2]\n\n",
        b"event: message_delta\ndata: null\n\n",
    ],
)
async def test_garbage_in_the_stream_is_a_bad_response(
    model: Model, server: FakeProvider, key: Credential, first_half: list[bytes], garbage: bytes
) -> None:
    server.will_reply(event_stream(*first_half, garbage))

    failure = await fail(model, request(), key)

    assert (failure.reason, failure.failure_class) == ("PROVIDER_BAD_RESPONSE", RETRYABLE)


@pytest.mark.parametrize(
    ("kind", "reason", "failure_class"),
    [
        ("overloaded_error", "PROVIDER_OVERLOADED", RETRYABLE),
        ("rate_limit_error", "PROVIDER_RATE_LIMITED", RATE_LIMITED),
        ("api_error", "PROVIDER_ERROR", RETRYABLE),
        ("insufficient_quota", "PROVIDER_QUOTA_EXHAUSTED", PERMANENT),
        ("something_new", "PROVIDER_ERROR", RETRYABLE),
    ],
)
async def test_error_inside_the_stream_is_classified_by_its_type(
    model: Model,
    server: FakeProvider,
    key: Credential,
    provider: str,
    first_half: list[bytes],
    kind: str,
    reason: str,
    failure_class: content_pb2.FailureClass,
) -> None:
    error = {"type": kind, "message": "Enough."}
    server.will_reply(
        event_stream(*first_half, data({"error": error}) if provider == "openai" else event("error", error=error))
    )

    failure = await fail(model, request(), key)

    assert (failure.reason, failure.failure_class) == (reason, failure_class)
    assert "Enough." in failure.message


async def test_redirect_is_not_followed(model: Model, server: FakeProvider, key: Credential) -> None:
    async with FakeProvider() as elsewhere:
        server.will_reply(Reply(status=307, headers={"Location": f"{elsewhere.url}/collect?key={quote(CANARY)}"}))

        failure = await fail(model, request(), key)

        assert (failure.reason, failure.failure_class) == ("PROVIDER_REDIRECTED", PERMANENT)
        assert elsewhere.requests == []


@pytest.mark.parametrize("with_head", [True, False], ids=["inside-the-answer", "before-the-answer"])
async def test_cancelled_call_closes_its_connection(
    model: Model, server: FakeProvider, key: Credential, first_half: list[bytes], with_head: bool
) -> None:
    pieces = first_half if with_head else ()
    head = {"Content-Type": "text/event-stream"}
    server.will_reply(Reply(pieces, headers=head, ending=Ending.HANG, with_head=with_head))
    arrived = asyncio.Event()
    waiting_for = arrived if with_head else server.requested

    async with asyncio.timeout(10):
        call = asyncio.create_task(model.answer(request(), key, lambda _: arrived.set()))
        await waiting_for.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await server.abandoned.wait()


async def test_time_limit_of_the_caller_is_its_own_error(model: Model, server: FakeProvider, key: Credential) -> None:
    server.will_reply(Reply(with_head=False, ending=Ending.HANG))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            call = asyncio.create_task(server.requested.wait())
            call.add_done_callback(lambda _: limit.reschedule(0))
            await model.answer(request(), key, Heard())

    async with asyncio.timeout(10):
        await server.abandoned.wait()


async def test_error_of_the_listener_is_not_the_providers(
    model: Model, server: FakeProvider, key: Credential, whole: Reply
) -> None:
    server.will_reply(whole)

    def listener(_: str) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await model.answer(request(), key, listener)


@pytest.mark.parametrize(
    "quoted",
    [
        CANARY,
        quote(CANARY, safe=""),
        base64.b64encode(CANARY.encode()).decode(),
        base64.b64encode(f"Bearer {CANARY}".encode()).decode(),
        f"{CANARY[:20]}...",
        f"{CANARY[:4]}************{CANARY[-4:]}",
    ],
    ids=["plain", "url", "base64", "bearer", "cut", "masked"],
)
@pytest.mark.parametrize("status", [400, 401, 500])
async def test_credential_that_the_provider_quotes_is_taken_out(
    model: Model, server: FakeProvider, key: Credential, error_body: Any, quoted: str, status: int
) -> None:
    server.will_reply(json_reply(status, error_body("invalid_request_error", f"Incorrect API key provided: {quoted}.")))

    failure = await fail(model, request(), key)

    assert "Incorrect API key provided: [credential]" in failure.message
    assert quoted not in failure.message
    assert CANARY[:8] not in failure.message
    assert CANARY[-4:] not in failure.message


async def test_credential_is_not_cut_into_something_that_is_no_longer_found(
    model: Model, server: FakeProvider, key: Credential, error_body: Any
) -> None:
    # Wherever the message is cut, the key would stand across the cut for one of these.
    for padding in range(400, 500, 10):
        server.will_reply(json_reply(400, error_body("invalid_request_error", "x" * padding + CANARY + "y" * 500)))

        failure = await fail(model, request(), key)

        assert len(failure.message) <= 500
        assert CANARY[:8] not in failure.message


async def test_nothing_that_prints_an_exception_finds_the_credential(
    model: Model, server: FakeProvider, key: Credential, first_half: list[bytes]
) -> None:
    for reply in (
        json_reply(401, {"error": {"message": CANARY}}),
        event_stream(*first_half, ending=Ending.CLOSE),
        Reply(with_head=False, ending=Ending.CLOSE),
    ):
        server.will_reply(reply)
        with pytest.raises(ModelFailed) as caught:
            await model.answer(request(), key, Heard())

        logging.getLogger("test").error("call failed", exc_info=caught.value)
        printed = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        assert CANARY not in "".join(printed.format_exception_only())
        ours = [frame for frame in printed.stack if "/services/" in frame.filename]
        assert ours
        assert not any(CANARY in repr(frame.locals) for frame in ours)


@pytest.mark.parametrize("secret", [f"{CANARY}\r\nX-Evil: 1", f"{CANARY}é", f"{CANARY} {CANARY}", f"{CANARY}\x00"])
async def test_credential_that_is_no_header_is_not_sent(model: Model, server: FakeProvider, secret: str) -> None:
    failure = await fail(model, request(), credential(server.url, secret))

    assert (failure.reason, failure.failure_class) == ("PROVIDER_AUTH", AUTH)
    assert server.requests == []


async def test_line_end_of_a_pasted_credential_does_no_harm(model: Model, server: FakeProvider, whole: Reply) -> None:
    server.will_reply(whole)

    await model.answer(request(), credential(server.url, f"{CANARY}\n"), Heard())

    assert server.requests[0].headers["authorization"] == f"Bearer {CANARY}"


async def test_missing_credential_is_a_failure_of_it(model: Model) -> None:
    assert (await fail(model, request(), None)).reason == "PROVIDER_AUTH"


@pytest.mark.parametrize(
    "address",
    [
        "ftp://127.0.0.1",
        "127.0.0.1:80",
        "http://",
        "http://127.0.0.1:99999",
        "http://[",
        "http://127.0.0.1/v1?key=1",
        "http://user:hidden-password@127.0.0.1",
    ],
)
async def test_address_that_is_of_no_use_is_refused_without_a_call(model: Model, address: str) -> None:
    failure = await fail(model, request(), credential(address))

    assert (failure.reason, failure.failure_class) == ("PROVIDER_ADDRESS_INVALID", PERMANENT)
    assert "hidden-password" not in failure.message


async def test_empty_credential_is_sent_as_none(model: Model, server: FakeProvider, whole: Reply) -> None:
    server.will_reply(whole)

    await model.answer(request(), credential(server.url, ""), Heard())

    assert server.requests[0].headers["authorization"] == "Bearer none"


async def test_calls_of_one_address_share_a_connection(
    model: Model, server: FakeProvider, key: Credential, whole: Reply
) -> None:
    server.will_reply(whole, whole)

    await model.answer(request(), key, Heard())
    other = Credential("sk-other", server.url, "connection-2", 1)
    await model.answer(request(), other, Heard())

    assert [received.connection for received in server.requests] == [0, 0]
    assert [received.headers["authorization"] for received in server.requests] == [
        f"Bearer {CANARY}",
        "Bearer sk-other",
    ]


async def test_new_version_of_a_connection_sends_its_new_secret(
    model: Model, server: FakeProvider, whole: Reply
) -> None:
    server.will_reply(whole, whole)

    await model.answer(request(), credential(server.url, "sk-old", version=1), Heard())
    await model.answer(request(), credential(server.url, "sk-new", version=2), Heard())

    assert [received.headers["authorization"] for received in server.requests] == ["Bearer sk-old", "Bearer sk-new"]


async def test_cookie_of_one_call_is_not_sent_with_the_next(
    model: Model, server: FakeProvider, key: Credential, whole: Reply
) -> None:
    with_cookie = Reply(whole.pieces, headers={**whole.headers, "Set-Cookie": "session=abc; Path=/"})
    server.will_reply(with_cookie, whole)

    await model.answer(request(), key, Heard())
    await model.answer(request(), key, Heard())

    assert "cookie" not in server.requests[1].headers


async def test_environment_of_the_operator_adds_nothing_to_a_call(
    model: Model, server: FakeProvider, key: Credential, whole: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.setenv(name, "operators-own")
    for name in ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS"):
        monkeypatch.setenv(name, "X-Operator: operators-own")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://operators-own.invalid:3128")
    server.will_reply(whole)

    await model.answer(request(), key, Heard())

    assert "operators-own" not in repr(server.requests[0].headers)


async def test_many_calls_at_once_do_not_mix(
    model: Model, server: FakeProvider, key: Credential, provider: str
) -> None:
    say = {"openai": openai_text, "anthropic": anthropic_text}[provider]
    server.will_reply(*(say(f"{number}") for number in range(40)))

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        calls = [group.create_task(model.answer(request(), key, Heard())) for _ in range(40)]

    assert sorted(int(text_of(call.result())) for call in calls) == list(range(40))


async def test_model_outside_loopback_cannot_be_called_from_here(registry: ModelRegistry) -> None:
    # Holds for every test of this folder: none can cost money.
    for provider in ("openai", "anthropic"):
        with pytest.raises(LeftLoopback):
            await registry.get(provider).answer(request(user("hi")), credential(""), Heard())


async def test_done_without_a_finish_reason_is_no_answer(registry: ModelRegistry, server: FakeProvider) -> None:
    server.will_reply(event_stream(chunk({"content": "all "}), DONE))

    failure = await fail(registry.get("openai"), request(), credential(server.url))

    assert failure.reason == "PROVIDER_STREAM_BROKEN"
