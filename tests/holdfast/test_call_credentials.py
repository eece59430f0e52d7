"""What a tool in a worker is handed, what becomes of a missing sign-in, and that no secret leaves in a report."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from holdfast import Credential, SignInNeeded, ToolContext, ToolError, tool
from holdfast.api.executor.v1 import tool_worker_service_pb2 as pb
from holdfast.credential import HandedOut
from holdfast.errors import FailedPrecondition, HoldfastError, LeaseLost, NotFound, PermissionDenied, Reason
from tests.fakes.executor import FakeExecutor
from tests.holdfast.test_worker import running

pytestmark = pytest.mark.promise("P8")

SECRET = "canary/token+4711=="


@pytest.fixture
async def executor() -> AsyncIterator[FakeExecutor]:
    """An executor without workers."""
    async with FakeExecutor() as fake:
        yield fake


def handed(secret: str = SECRET, fingerprint: str = "f1") -> pb.GetCallCredentialResponse:
    """An answer with a credential."""
    answer = pb.GetCallCredentialResponse(secret=secret, fingerprint=fingerprint, base_url="https://api.example.com")
    answer.headers.add(name="authorization", value=f"Bearer {secret}")
    answer.expire_time.FromDatetime(datetime(2030, 1, 2, tzinfo=UTC))
    return answer


async def report_of(executor: FakeExecutor, tool_: object) -> pb.CompleteCallRequest:
    """What a worker reports about one call of the tool."""
    async with asyncio.timeout(30), running(executor, tool_):
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lease", tool_.name)  # type: ignore[attr-defined]
        return await executor.next_completion()


async def test_async_tool_is_handed_the_credential_of_its_call(executor: FakeExecutor) -> None:
    executor.credentials.append(handed())

    @tool(effect="read_only")
    async def look(context: ToolContext) -> list[object]:
        credential = await context.credential()
        assert credential.reveal() == SECRET
        assert credential.headers == {"authorization": f"Bearer {SECRET}"}
        return [credential.fingerprint, credential.base_url, credential.expire_time]

    report = await report_of(executor, look)
    assert json.loads(report.result_json) == ["f1", "https://api.example.com", "2030-01-02T00:00:00+00:00"]
    assert executor.credential_requests == [pb.GetCallCredentialRequest(worker_id=report.worker_id, lease="lease")]


async def test_plain_function_and_a_loop_of_its_own_are_handed_it_too(executor: FakeExecutor) -> None:
    executor.credentials.extend([handed(), handed("another-canary", "f2")])

    @tool(effect="read_only")
    def look(context: ToolContext) -> list[str]:
        first = context.credential_sync()
        second = asyncio.run(context.credential(rejected=first))
        return [first.fingerprint, second.fingerprint]

    assert json.loads((await report_of(executor, look)).result_json) == ["f1", "f2"]
    assert [request.rejected_fingerprint for request in executor.credential_requests] == ["", "f1"]


async def test_coroutine_is_not_blocked_by_mistake(executor: FakeExecutor) -> None:
    @tool(effect="read_only")
    async def look(context: ToolContext) -> str:
        return context.credential_sync().fingerprint

    assert "await context.credential()" in (await report_of(executor, look)).error.message


@pytest.mark.parametrize(
    ("refusal", "needs_sign_in"),
    [
        (NotFound("there is no connection", reason=Reason.CONNECTION_NOT_FOUND), True),
        (FailedPrecondition("the grant is gone", reason=Reason.CONNECTION_NEEDS_REAUTH), True),
        (FailedPrecondition("it lacks permissions", reason=Reason.SCOPE_INSUFFICIENT), True),
        (PermissionDenied("not allowed", reason=Reason.RAW_TOKEN_NOT_ALLOWED), False),
        (FailedPrecondition("declares none", reason=Reason.CREDENTIAL_NOT_DECLARED), False),
        (LeaseLost("no longer this worker's", reason=Reason.CALL_LEASE_LOST), False),
    ],
    ids=lambda value: value.reason if isinstance(value, HoldfastError) else "",
)
async def test_only_a_missing_sign_in_is_reported_as_one(
    executor: FakeExecutor, refusal: HoldfastError, needs_sign_in: bool
) -> None:
    executor.credentials.append(refusal)

    @tool(effect="at_most_once")
    async def pay(context: ToolContext) -> None:
        await context.credential()

    error = (await report_of(executor, pay)).error
    assert error.needs_sign_in is needs_sign_in
    assert refusal.message in error.message
    assert not (error.is_outcome_unknown or error.is_retryable)


async def test_tool_that_has_acted_turns_a_missing_sign_in_into_its_own_error(executor: FakeExecutor) -> None:
    executor.credentials.append(NotFound("there is no connection", reason=Reason.CONNECTION_NOT_FOUND))

    @tool(effect="at_most_once")
    async def pay(context: ToolContext) -> None:
        try:
            await context.credential()
        except SignInNeeded as error:
            raise ToolError("paid, but not booked", outcome_unknown=True) from error

    error = (await report_of(executor, pay)).error
    assert (error.message, error.is_outcome_unknown, error.needs_sign_in) == ("paid, but not booked", True, False)


async def test_result_error_and_log_are_without_the_secret_in_any_form(
    executor: FakeExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    executor.credentials.extend([handed(), handed(), handed("1234567890")])

    @tool(effect="read_only")
    async def tell(context: ToolContext) -> dict[str, str]:
        credential = await context.credential()
        return {"raw": credential.reveal(), "pair": b64encode(f"u:{SECRET}".encode()).decode(), "kept": "yes"}

    @tool(effect="read_only")
    async def fail(context: ToolContext) -> None:
        raise KeyError(f"refused: {(await context.credential()).headers}")

    @tool(effect="read_only")
    async def count(context: ToolContext) -> int:
        return int((await context.credential()).reveal())

    with caplog.at_level(logging.DEBUG):
        told = json.loads((await report_of(executor, tell)).result_json)
        failed = (await report_of(executor, fail)).error.message
        counted = await report_of(executor, count)
    assert (told["raw"], told["kept"]) == ("[[secret:f1]]", "yes")
    assert "[[secret:f1]]" in told["pair"]
    assert "[[secret:f1]]" in failed
    assert counted.error.message == "the tool ran, but its result held a credential"
    for text in (failed, caplog.text):
        assert SECRET not in text
    assert "[[secret:f1]]" in caplog.text, "the traceback is in the log"


def test_credential_has_its_value_in_no_representation() -> None:
    credential = Credential(SECRET, fingerprint="f1", headers={"authorization": f"Bearer {SECRET}"})
    assert repr(credential) == str(credential) == f"{credential}" == "<Credential f1>"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError):
            leak(credential)


def test_what_was_handed_out_is_remembered_within_bounds() -> None:
    known = HandedOut()
    for number in range(100):
        known.learn(Credential(f"secret-number-{number:03}", fingerprint=str(number)))
    assert known.scrubbed("secret-number-099") == "[[secret:99]]"
    assert known.scrubbed("secret-number-000") == "secret-number-000"


def test_password_pair_is_a_secret_of_its_own() -> None:
    known = HandedOut()
    pair = b64encode(b"ann:pw").decode()
    known.learn(Credential("pw", fingerprint="f", headers={"authorization": f"Basic {pair}xyz"}))
    assert known.scrubbed(f"sent {pair}xyz") == "sent [[secret:f]]"


def test_connection_of_a_tool_is_part_of_its_definition() -> None:
    @tool(effect="read_only", connection="github", scopes=["repo"])
    def look() -> str:
        return ""

    assert (look.spec().auth.connection, list(look.spec().auth.scopes)) == ("github", ["repo"])
    with pytest.raises(ValueError, match="name it with connection="):
        tool(name="look", scopes=["repo"])(lambda: None)


def test_outside_of_a_worker_there_is_none() -> None:
    with pytest.raises(ToolError, match="on_credential"):
        ToolContext(idempotency_key="k").credential_sync()


def test_answer_of_the_egress_proxy_itself_is_told_from_the_other_sides() -> None:
    context = ToolContext(idempotency_key="k", egress_url="http://127.0.0.1:7405/a/b/c")
    context.check_egress({"content-type": "text/plain"})
    with pytest.raises(SignInNeeded):
        context.check_egress({"holdfast-error": "CONNECTION_NEEDS_REAUTH"})
    for reason, retryable, unknown in (
        ("TOOL_UNREACHABLE", True, False),
        ("TOOL_CONNECTION_BROKEN", False, True),
        ("HOST_NOT_ALLOWED", False, False),
    ):
        with pytest.raises(ToolError, match=reason) as caught:
            context.check_egress({"holdfast-error": reason})
        assert (caught.value.retryable, caught.value.outcome_unknown) == (retryable, unknown)
