"""From a link to a usable connection, through real HTTP."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from holdfast.errors import FailedPrecondition, InvalidArgument, NotFound, Reason
from services.auth.audit_sql import read_records
from services.auth.connect.store import SessionState
from services.auth.connection_store import ConnectionState, CredentialKind
from services.auth.refresh.documents import TokenDocument
from services.auth.tables import audit_records, connect_sessions
from tests.auth.connect.support import LISTED, Browser, Stage, code_on, query_of


async def test_a_session_that_its_initiator_confirms_makes_a_usable_connection(stage: Stage, browser: Browser) -> None:
    view = await stage.start(user_id="u1", scopes=("write",))
    page = await browser.complete(view.connect_url)
    assert "Ada" in page.text
    session = await stage.session(view.session.session_id)
    assert session.state is SessionState.CONFIRMING
    assert await stage.connections.find_connection(stage.workspace_id, "u1", "fake") is None

    confirmed, connection = await stage.sessions.confirm(stage.alice, session.session_id, code_on(page))
    assert confirmed.session.state is SessionState.CONNECTED
    assert (connection.state, connection.kind) == (ConnectionState.ACTIVE, CredentialKind.OAUTH2)
    assert (connection.user_id, connection.account_id, connection.account_label) == ("u1", "ada", "Ada")
    assert set(connection.scopes) == {"read", "write"}
    assert connection.missing_scopes == ()
    assert connection.refresh_time is not None
    assert connection.secret_path is not None
    stored = await stage.secrets.get(connection.secret_path)
    assert stored is not None
    assert stored.version == connection.token_version
    tokens = TokenDocument.from_secret(stored.secret, connection).tokens
    assert tokens.access_token.reveal() == stage.provider.grants[-1].access_token
    assert stage.changes == [("u1", "fake")]
    # Once more is the same as once.
    again, same = await stage.sessions.confirm(stage.alice, session.session_id, "whatever")
    assert (again.session.state, same.connection_id) == (SessionState.CONNECTED, connection.connection_id)
    assert "Connected" in (await browser.open(f"{view.connect_url}/done")).text


async def test_the_request_at_the_provider_is_as_the_standards_want_it(stage: Stage, browser: Browser) -> None:
    target = await stage.targets.named(stage.workspace_id, "fake")
    view = await stage.start()
    asked = query_of(await browser.to_provider(view.connect_url))
    assert asked["code_challenge_method"] == "S256"
    assert asked["redirect_uri"] == f"{stage.url}/oauth/callback/{target.integration_id}"
    assert len(asked["state"]) == 43
    assert asked["scope"] == "read"


async def test_a_loopback_address_gets_the_code_and_the_page_shows_none(stage: Stage, browser: Browser) -> None:
    view = await stage.start(return_url="http://127.0.0.1:4711/back")
    answer = await browser.complete(view.connect_url)
    assert answer.status_code == 303
    to = answer.headers["location"]
    assert to.startswith("http://127.0.0.1:4711/back?")
    given = query_of(to)
    assert given["session_id"] == view.session.session_id
    await stage.sessions.confirm(stage.alice, view.session.session_id, given["confirm_code"].lower().replace("-", ""))


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:4711/",
        "http://127.0.0.1/",
        "https://127.0.0.1:4711/",
        "http://127.0.0.1:4711@evil.example/",
        "http://127.0.0.1:4711/#x",
        "http://127.0.0.1:4711/?a=b",
        f"{LISTED}/more",
        "https://evil.example/",
        "javascript:alert(1)",
    ],
)
async def test_no_other_address_gets_a_code(stage: Stage, url: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await stage.start(return_url=url)
    assert refused.value.field_violations[0].field == "return_url"


async def test_the_operators_own_address_gets_the_code(stage: Stage, browser: Browser) -> None:
    view = await stage.start(return_url=LISTED)
    answer = await browser.complete(view.connect_url)
    assert answer.headers["location"].startswith(f"{LISTED}?")


async def test_a_refused_consent_connects_nothing(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    asked = query_of(await browser.to_provider(view.connect_url))
    back = f"{asked['redirect_uri']}?error=access_denied&error_description=<b>x</b>&state={asked['state']}"
    answer = await browser.open(back)
    page = await browser.open(answer.headers["location"])
    assert "You declined" in page.text
    assert "<b>x</b>" not in page.text
    session = await stage.session(view.session.session_id)
    assert (session.state, session.failure_reason) == (SessionState.DECLINED, "access_denied")
    assert stage.provider.token_calls == 0


async def test_only_the_initiator_sees_and_confirms_a_session(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    code = code_on(await browser.complete(view.connect_url))
    for other in (
        stage.caller("key:mallory000001", "admin"),
        stage.caller("user:alice"),
        stage.caller("service:executor"),
    ):
        for call in (
            stage.sessions.get(other, view.session.session_id),
            stage.sessions.confirm(other, view.session.session_id, code),
            stage.sessions.cancel(other, view.session.session_id),
        ):
            with pytest.raises(NotFound) as refused:
                await call
            assert refused.value.reason == Reason.CONNECT_SESSION_NOT_FOUND
    await stage.sessions.confirm(stage.alice, view.session.session_id, code)


async def test_the_fifth_wrong_code_ends_the_session_and_gives_the_grant_back(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    code = code_on(await browser.complete(view.connect_url))
    for _ in range(5):
        with pytest.raises(InvalidArgument) as refused:
            await stage.sessions.confirm(stage.alice, view.session.session_id, "AAAA-AAAA")
        assert refused.value.reason == Reason.CONFIRM_CODE_INVALID
    with pytest.raises(FailedPrecondition) as over:
        await stage.sessions.confirm(stage.alice, view.session.session_id, code)
    assert over.value.reason == Reason.CONNECT_SESSION_NOT_CONFIRMABLE
    session = await stage.session(view.session.session_id)
    assert (session.state, session.failure_reason) == (SessionState.FAILED, "too_many_codes")
    assert session.secret_path is None
    assert await stage.stored_paths() == []
    assert not stage.provider.grants[-1].is_alive


async def test_a_session_that_is_given_up_gives_the_grant_back(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    await browser.complete(view.connect_url)
    for _ in range(2):
        cancelled = await stage.sessions.cancel(stage.alice, view.session.session_id)
        assert cancelled.session.state is SessionState.CANCELLED
    assert await stage.stored_paths() == []
    assert not stage.provider.grants[-1].is_alive
    assert "given up" in (await browser.open(f"{view.connect_url}/done")).text


async def test_a_repeated_request_gets_the_same_session(stage: Stage) -> None:
    first = await stage.start(request_id="r1")
    again = await stage.start(request_id="r1")
    assert first.session.session_id == again.session.session_id
    assert first.connect_url == again.connect_url
    with pytest.raises(InvalidArgument) as reused:
        await stage.start(request_id="r1", user_id="u2")
    assert reused.value.reason == Reason.REQUEST_ID_REUSED


async def test_how_a_sign_in_ended_is_on_record(stage: Stage, browser: Browser) -> None:
    declined = await stage.start(user_id="u1")
    asked = query_of(await browser.to_provider(declined.connect_url))
    await browser.open(f"{asked['redirect_uri']}?error=access_denied&state={asked['state']}")
    failed = await stage.start()
    asked = query_of(await browser.to_provider(failed.connect_url))
    await browser.open(f"{asked['redirect_uri']}?error=canary_of_a_stranger&state={asked['state']}")
    cancelled = await stage.start()
    for _ in range(2):
        await stage.sessions.cancel(stage.alice, cancelled.session.session_id)
    expired = await stage.start()
    await stage.db.write(
        lambda connection: connection.execute(
            sa.update(connect_sessions)
            .where(connect_sessions.c.session_id == expired.session.session_id)
            .values(expire_time=connect_sessions.c.create_time)
        )
    )
    assert await stage.store.end_expired(limit=10) == 1
    records = await stage.db.read(
        lambda connection: read_records(
            connection, stage.workspace_id, audit_records.c.action == "connect.end", limit=100
        )
    )
    assert [(record.outcome, json.loads(record.details or "")) for record in records] == [
        ("DECLINED", {"session_id": declined.session.session_id, "reason": "access_denied"}),
        ("FAILED", {"session_id": failed.session.session_id, "reason": "provider_error"}),
        ("CANCELLED", {"session_id": cancelled.session.session_id}),
        ("EXPIRED", {"session_id": expired.session.session_id}),
    ]
    assert (records[0].actor, records[0].user_id, records[0].connection) == (stage.alice.actor, "u1", "fake")
