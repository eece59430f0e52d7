"""A run that lacks a sign-in waits as rows and goes on by itself once the connection is there; one call is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from holdfast import Agent, ToolContext, tool
from holdfast.agent import http_tool
from holdfast.api.common.v1 import run_pb2
from holdfast.errors import InvalidArgument
from holdfast.testing import call, scripted
from tests.auth.connect.support import Browser, code_on
from tests.auth.connect.test_service import base_of
from tests.executor.tools.test_http import Endpoint, answer, serving
from tests.fakes.oauth_provider import CLIENT_ID, CLIENT_SECRET, FakeOAuthProvider, Profile
from tests.suite.stages import Stage, open_stage, question_of, until_waiting

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.promise("P6", "P8")]


@pytest_asyncio.fixture(loop_scope="module")
async def crm() -> AsyncIterator[Endpoint]:
    """A third party's API."""
    async with serving(answer(body=b'{"customers": 3}')) as endpoint:
        yield endpoint


def agent(crm: Endpoint, connection: str) -> Agent:
    look = http_tool("look", crm.url("/v1/customers"), method="GET", connection=connection)
    return Agent(f"asks-{connection}", model=scripted(call("look"), "There are {{result}}."), tools=[look])


async def test_key_that_the_other_side_does_not_accept_is_waited_for(stage: Stage) -> None:
    async def only_the_new(writer: asyncio.StreamWriter) -> None:
        is_new = api.received[-1].headers["authorization"] == "Bearer key-new"
        await (answer(body=b'{"customers": 3}') if is_new else answer(401, b"{}"))(writer)

    async with asyncio.timeout(60), serving(only_the_new) as api:
        await stage.client.connections.create("crm", "key-old", name="crm-key", base_url=api.url("/v1"))
        handle = await stage.start(agent(api, "crm-key"))
        question = await question_of(handle)
        assert (question.sign_in.reason, question.sign_in.connect_url) == ("credential_rejected", "")
        await until_waiting(handle, run_pb2.WAIT_REASON_AUTH)
        await stage.client.connections.create("crm", "key-new", name="crm-key", base_url=api.url("/v1"), replace=True)
        run = await handle.wait()
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert [request.headers["authorization"] for request in api.received] == ["Bearer key-old", "Bearer key-new"]


async def test_run_waits_for_its_users_connection_and_goes_on_by_itself(stage: Stage, crm: Endpoint) -> None:
    async with asyncio.timeout(60):
        handle = await stage.start(agent(crm, "crm-one"), user_id="u1")
        question = await question_of(handle)
        assert question.kind == run_pb2.APPROVAL_KIND_SIGN_IN
        assert (question.sign_in.connection, question.sign_in.user_id) == ("crm-one", "u1")
        await until_waiting(handle, run_pb2.WAIT_REASON_AUTH)
        assert not crm.received
        # Somebody else's does not help.
        await stage.client.connections.create("crm", "key-of-u2", name="crm-one", base_url=crm.url("/v1"), user_id="u2")
        await stage.client.connections.create("crm", "key-of-u1", name="crm-one", base_url=crm.url("/v1"), user_id="u1")
        run = await handle.wait()
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert [request.headers["authorization"] for request in crm.received] == ["Bearer key-of-u1"]


async def test_shared_connection_serves_every_user_and_goes_nowhere_else(stage: Stage, crm: Endpoint) -> None:
    async with asyncio.timeout(60), serving(answer()) as elsewhere:
        await stage.client.connections.create("crm", "key-of-all", name="crm-two", base_url=crm.url("/v1"))
        assert (await (await stage.start(agent(crm, "crm-two"), user_id="u7")).wait()).state == (
            run_pb2.RUN_STATE_SUCCEEDED
        )
        moved = agent(elsewhere, "crm-two")
        handle = await stage.start(moved)
        run = await handle.wait()
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert "may not be" in str(run.output)
    assert not elsewhere.received
    assert [request.headers["authorization"] for request in crm.received] == ["Bearer key-of-all"]


async def test_person_may_let_the_run_go_on_without(stage: Stage, crm: Endpoint) -> None:
    async with asyncio.timeout(60):
        handle = await stage.start(agent(crm, "crm-three"))
        question = await question_of(handle)
        await stage.client.approvals.resolve(question.approval_id, "tell_model")
        run = await handle.wait()
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert "no active connection" in str(run.output)
    assert not crm.received


async def test_account_is_connected_from_a_run_and_its_token_is_renewed_when_it_is_refused(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(100))
        provider = await stack.enter_async_context(FakeOAuthProvider(Profile.strict()))
        (tmp_path / "fake.yaml").write_text(provider.text)
        of_auth = {"HOLDFAST_PROVIDERS_FOLDER": str(tmp_path), "HOLDFAST_AUTH_EGRESS_ALLOW": "127.0.0.0/8"}
        stage = await stack.enter_async_context(open_stage(service_settings={"auth": of_auth}))
        await stage.client.integrations.create(
            "fake", client_id=CLIENT_ID, client_secret=CLIENT_SECRET, variables={"base": provider.url}
        )
        who = http_tool("who", f"{provider.url}/whoami", method="GET", connection="fake", scopes=["read"])
        asks = Agent("asks-who", model=scripted(call("who"), "You are {{result}}."), tools=[who])
        handle = await stage.start(asks, user_id="u1")
        question = await question_of(handle)
        browser = Browser(base_of(question.sign_in.connect_url))
        stack.push_async_callback(browser.close)
        code = code_on(await browser.complete(question.sign_in.connect_url))
        # A forwarded link connects nothing: without the code of the completing browser the run goes on waiting.
        with pytest.raises(InvalidArgument):
            await stage.client.approvals.answer(question.approval_id, "AAAA-AAAA")
        await stage.client.approvals.answer(question.approval_id, code)
        run = await handle.wait()
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED
        assert "Ada" in str(run.output)
        [connection] = [item async for item in stage.client.connections.list(user_id="u1")]
        assert (connection.account_label, connection.user_id) == ("Ada", "u1")

        # The provider ends the access token early: it is renewed once, and the call is made with the new one.
        [grant] = [item for item in provider.grants if item.is_alive]
        calls_before = provider.token_calls
        grant.access_token = "no-longer-the-one-that-was-handed-out"
        again = await (await stage.start(asks, user_id="u1")).wait()
        assert again.state == run_pb2.RUN_STATE_SUCCEEDED
        assert "Ada" in str(again.output)
        assert provider.token_calls == calls_before + 1
        assert provider.reuses_detected == 0
        # Another user's run has no part in it.
        other = await stage.start(asks, user_id="u2")
        await until_waiting(other, run_pb2.WAIT_REASON_AUTH)


async def test_worker_is_handed_its_users_secret_once_there_is_one_that_may_be(stage: Stage) -> None:
    begun: list[int] = []
    handed: list[dict[str, str]] = []

    @tool(name="book", effect="at_most_once", connection="crm-four")
    async def book(context: ToolContext) -> str:
        begun.append(context.attempt)
        credential = await context.credential()
        handed.append(credential.headers)
        return f"booked with {credential.reveal()}"

    agent = Agent("books", model=scripted(call("book"), "It is {{result}}."), tools=[book])
    connections = stage.client.connections
    async with asyncio.timeout(60), stage.worker(book):
        handle = await stage.start(agent, user_id="u1")
        question = await question_of(handle)
        assert (question.kind, question.tool) == (run_pb2.APPROVAL_KIND_SIGN_IN, "book")
        await until_waiting(handle, run_pb2.WAIT_REASON_AUTH)
        await connections.create(
            "crm", "key-of-u1-4711", name="crm-four", base_url="https://crm.example", user_id="u1", allow_raw_token=True
        )
        run = await handle.wait()
        # Another user's connection that does not allow it: the model is told, nobody waits.
        await connections.create("crm", "key-of-u2-4711", name="crm-four", base_url="https://crm.example", user_id="u2")
        refused = await (await stage.start(agent, user_id="u2")).wait()
    assert run.state == refused.state == run_pb2.RUN_STATE_SUCCEEDED
    assert begun == [1, 2, 1]
    assert handed == [{"Authorization": "Bearer key-of-u1-4711"}]
    assert "booked with [[secret:" in str(run.output)
    assert "key-of-u1-4711" not in str(run)
    assert "does not allow" in str(refused.output)


async def test_worker_calls_through_the_egress_proxy_and_never_has_the_secret(crm: Endpoint) -> None:
    seen: list[str] = []

    @tool(name="count", effect="read_only", connection="crm-five")
    async def count(context: ToolContext) -> str:
        async with httpx2.AsyncClient(trust_env=False) as client:
            answered = await client.get(f"{context.egress_url}/{crm.url('/v1/customers').replace('://', '/')}")
        context.check_egress(answered.headers)
        seen.append(str(answered.request.headers))
        return answered.text

    crm.received.clear()
    counts = Agent("counts", model=scripted(call("count"), "It is {{result}}."), tools=[count])
    async with (
        asyncio.timeout(100),
        open_stage({"HOLDFAST_EGRESS_LISTEN": "127.0.0.1:0"}) as stage,
        stage.worker(count),
    ):
        handle = await stage.start(counts, user_id="u1")
        await until_waiting(handle, run_pb2.WAIT_REASON_AUTH)
        assert not crm.received
        # It needs not allow that its secret is handed out.
        await stage.client.connections.create(
            "crm", "key-of-u1-4711", name="crm-five", base_url=crm.url("/v1"), user_id="u1"
        )
        run = await handle.wait()
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert "customers" in str(run.output)
    assert [request.headers["authorization"] for request in crm.received] == ["Bearer key-of-u1-4711"]
    assert len(seen) == 1
    assert "4711" not in seen[0]


async def test_api_that_says_with_a_200_that_a_token_is_over_is_called_once_more_and_then_waited_for(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(100))
        provider = await stack.enter_async_context(FakeOAuthProvider(Profile.strict()))
        signals = "auth_failure_signals:\n  - {status: 200, pointer: /error, equals: invalid_auth}\n"
        (tmp_path / "fake.yaml").write_text(provider.text + signals)
        of_auth = {"HOLDFAST_PROVIDERS_FOLDER": str(tmp_path), "HOLDFAST_AUTH_EGRESS_ALLOW": "127.0.0.0/8"}
        stage = await stack.enter_async_context(open_stage(service_settings={"auth": of_auth}))
        await stage.client.integrations.create(
            "fake", client_id=CLIENT_ID, client_secret=CLIENT_SECRET, variables={"base": provider.url}
        )
        # It may not be called twice: that it was rejected says that it did nothing.
        post = http_tool("post", f"{provider.url}/api.test", connection="fake", scopes=["read"])
        posts = Agent("posts", model=scripted(call("post"), "It said {{result}}."), tools=[post])

        async def signed_in(question: run_pb2.Approval) -> None:
            browser = Browser(base_of(question.sign_in.connect_url))
            stack.push_async_callback(browser.close)
            code = code_on(await browser.complete(question.sign_in.connect_url))
            await stage.client.approvals.answer(question.approval_id, code)

        def calls() -> int:
            return sum(request.path == "/api.test" for request in provider.requests)

        handle = await stage.start(posts, user_id="u1")
        await signed_in(await question_of(handle))
        assert "Ada" in str((await handle.wait()).output)
        [grant] = [item for item in provider.grants if item.is_alive]
        calls_before, renewals_before = calls(), provider.token_calls
        grant.access_token = "no-longer-the-one-that-was-handed-out"
        assert "Ada" in str((await (await stage.start(posts, user_id="u1")).wait()).output)
        assert (calls() - calls_before, provider.token_calls - renewals_before) == (2, 1)

        # The grant is gone. A refresh proves it, or is not tried, because the token has just come from one: either way
        # the run waits for its user.
        grant.is_alive = False
        handle = await stage.start(posts, user_id="u1")
        question = await question_of(handle)
        assert question.sign_in.reason in ("needs_reauth", "credential_rejected")
        await signed_in(question)
        run = await handle.wait()
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED
        assert "Ada" in str(run.output)
