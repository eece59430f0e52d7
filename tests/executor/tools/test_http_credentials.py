"""Credentials of `http` tools: put into the request at the last hop, where they may go, and nowhere else."""

from __future__ import annotations

import pytest

from holdfast.api.common.v1 import content_pb2
from services.executor.credentials import CREDENTIAL_REJECTED, Injection, ResolvedCredential
from services.executor.tools.http import CredentialRejected, HttpTools, ToolFailed
from services.shared.auth_failure_signals import SIGNAL_BODY_BYTES, AuthFailureSignal
from services.shared.egress import EgressRule
from tests.executor.tools.test_http import Endpoint, answer, serving, spec

pytestmark = pytest.mark.promise("P8")

SECRET = "canary-token-7"


def credential(
    endpoint: Endpoint,
    *signals: AuthFailureSignal,
    query: bool = False,
    path: str = "/",
    host: str = "127.0.0.1",
) -> ResolvedCredential:
    return ResolvedCredential(
        secret=SECRET,
        base_url="",
        connection_id="c1",
        version=1,
        fingerprint="f1",
        headers=() if query else (Injection("Authorization", f"Bearer {SECRET}"),),
        query=(Injection("api key", f"{SECRET}&x"),) if query else (),
        allowed=(EgressRule(host, scheme="http", port=endpoint.port, path_prefix=path),),
        signals=signals,
    )


async def test_credential_is_in_the_request_and_an_agents_header_cannot_replace_it() -> None:
    async with serving(answer()) as endpoint:
        http = HttpTools(["127.0.0.1"])
        look = spec(endpoint.url("/v1/look"), headers={"x-own": "1"})
        await http.call(look, {}, "key", {"authorization": "Bearer other"}, credential(endpoint))
        await http.close()
    [received] = endpoint.received
    assert received.headers["authorization"] == f"Bearer {SECRET}"
    assert received.headers["x-own"] == "1"


async def test_credential_in_the_query_is_encoded_and_in_no_message() -> None:
    async with serving(answer(500, b"no")) as endpoint:
        http = HttpTools(["127.0.0.1"])
        with pytest.raises(ToolFailed) as caught:
            await http.call(spec(endpoint.url("/look?a=1")), {}, "key", {}, credential(endpoint, query=True))
        await http.close()
    assert endpoint.received[0].target == f"/look?a=1&api%20key={SECRET}%26x"
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("fields", [{"path": "/v2"}, {"host": "api.example.com"}, {"path": "/v1/loo"}])
async def test_request_elsewhere_is_not_made(fields: dict) -> None:
    async with serving(answer()) as endpoint:
        http = HttpTools(["127.0.0.1"])
        with pytest.raises(ToolFailed) as caught:
            await http.call(spec(endpoint.url("/v1/look")), {}, "key", {}, credential(endpoint, **fields))
        await http.close()
    assert caught.value.failure.reason == "HOST_NOT_ALLOWED"
    assert not endpoint.received


async def test_credential_without_a_target_goes_nowhere() -> None:
    async with serving(answer()) as endpoint:
        http = HttpTools(["127.0.0.1"])
        bare = ResolvedCredential(secret=SECRET, base_url="", connection_id="c1", version=1)
        with pytest.raises(ToolFailed):
            await http.call(spec(endpoint.url()), {}, "key", {}, bare)
        await http.close()
    assert not endpoint.received


async def test_redirect_is_not_followed_with_a_credential() -> None:
    async with serving(answer()) as other, serving(answer(307, b"", location=other.url())) as endpoint:
        http = HttpTools(["127.0.0.1"])
        with pytest.raises(ToolFailed) as caught:
            await http.call(spec(endpoint.url()), {}, "key", {}, credential(endpoint))
        await http.close()
    assert caught.value.failure.reason == "TOOL_REDIRECTED"
    assert not other.received


@pytest.mark.parametrize(
    ("status", "challenge", "missing"),
    [
        (401, "", None),
        (401, 'Bearer error="invalid_token"', None),
        (403, 'Bearer error="insufficient_scope", scope="repo gist"', ("repo", "gist")),
    ],
)
async def test_refused_credential_is_told_from_a_failed_call(
    status: int, challenge: str, missing: tuple[str, ...] | None
) -> None:
    async with serving(answer(status, b"no", www_authenticate=challenge)) as endpoint:
        http = HttpTools(["127.0.0.1"])
        with pytest.raises(CredentialRejected) as caught:
            await http.call(spec(endpoint.url()), {}, "key", {}, credential(endpoint))
        await http.close()
    failure = caught.value.failure
    assert (failure.reason, failure.failure_class) == (CREDENTIAL_REJECTED, content_pb2.FAILURE_CLASS_AUTH)
    assert caught.value.missing_scopes == missing


@pytest.mark.parametrize("status", [401, 403])
async def test_refusal_without_a_credential_or_about_something_else_is_an_ordinary_answer(status: int) -> None:
    async with serving(answer(status, b"no")) as endpoint:
        http = HttpTools(["127.0.0.1"])
        with pytest.raises(ToolFailed) as caught:
            await http.call(spec(endpoint.url()), {}, "key", {}, credential(endpoint) if status == 403 else None)
        await http.close()
    assert not isinstance(caught.value, CredentialRejected)
    assert caught.value.failure.reason == "TOOL_ANSWERED_ERROR"


SLACK = AuthFailureSignal(200, "/error", "invalid_auth")
OVER = b'{"ok": false, "error": "invalid_auth"}'


async def signalled(signal: AuthFailureSignal, status: int, body: bytes, **headers: str) -> str | CredentialRejected:
    """The result of a call that may not be made twice, or the refusal."""
    async with serving(answer(status, body, **headers)) as endpoint:
        http = HttpTools(["127.0.0.1"])
        try:
            return await http.call(spec(endpoint.url()), {}, "key", {}, credential(endpoint, signal))
        except CredentialRejected as rejected:
            return rejected
        finally:
            await http.close()


@pytest.mark.parametrize(
    ("signal", "status", "body", "headers"),
    [
        (SLACK, 200, OVER, {}),
        (AuthFailureSignal(400, "/code", "124"), 400, b'{"code": 124}', {}),
        (
            AuthFailureSignal(403, "/0/errorCode", "INVALID_SESSION_ID"),
            403,
            b'[{"errorCode": "INVALID_SESSION_ID"}]',
            {},
        ),
        (AuthFailureSignal(403, header="x-reason", contains="expired"), 403, b"no", {"X_Reason": "token expired"}),
        (AuthFailureSignal(418), 418, b"", {}),
        (AuthFailureSignal(302), 302, b"", {"Location": "https://elsewhere.example/sign-in"}),
    ],
)
async def test_api_that_says_in_its_own_way_that_the_credential_is_over_is_understood(
    signal: AuthFailureSignal, status: int, body: bytes, headers: dict[str, str]
) -> None:
    rejected = await signalled(signal, status, body, **headers)
    assert isinstance(rejected, CredentialRejected)
    assert rejected.failure.failure_class == content_pb2.FAILURE_CLASS_AUTH
    assert rejected.missing_scopes is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"ok": false, "error": "not_in_channel"}'),
        (201, OVER),
        (200, b'{"text": {"error": "invalid_auth"}}'),
        (200, b'{"error": "invalid_auth", "padding": "' + b"x" * SIGNAL_BODY_BYTES + b'"}'),
        (200, b'"error: invalid_auth"'),
        (200, b""),
    ],
    ids=["other-error", "other-status", "other-place", "long", "text", "empty"],
)
async def test_answer_that_only_resembles_a_signal_is_a_result(status: int, body: bytes) -> None:
    assert isinstance(await signalled(SLACK, status, body), str)
