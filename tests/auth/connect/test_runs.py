"""The sign-in that a run asks for: one session, a link as long-lived as the question, confirmed in the run's name."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from holdfast.errors import NotFound, PermissionDenied, Reason
from holdfast.ids import new_uuid7
from services.auth.connect.store import SessionState
from services.auth.grants import GrantedConnection, RunGrant
from tests.auth.connect.support import Browser, Stage, code_on


def grant_of(stage: Stage, run_id: str, *names: str, user_id: str = "u1", agent: str = "support") -> RunGrant:
    return RunGrant(
        workspace_id=stage.workspace_id,
        run_id=run_id,
        user_id=user_id,
        agent=agent,
        connections=tuple(GrantedConnection(name, ("write",)) for name in names),
        issued_to="key:alice0000001",
        expire_time=stage.clock.now() + timedelta(days=1),
    )


async def test_a_run_gets_one_link_however_often_it_asks(stage: Stage) -> None:
    run_id = new_uuid7()
    grant = grant_of(stage, run_id, "fake")
    views = await asyncio.gather(
        *(stage.sessions.request_sign_in(grant, connection="fake", request_id=f"r{number}") for number in range(4))
    )
    assert len({view.session.session_id for view in views}) == 1
    assert len({view.connect_url for view in views}) == 1
    session = views[0].session
    assert (session.initiator, session.user_id, session.connection) == (f"run:{run_id}", "u1", "fake")
    assert set(session.scopes) == {"read", "write"}
    other = await stage.sessions.request_sign_in(grant_of(stage, new_uuid7(), "fake"), connection="fake")
    assert other.session.session_id != session.session_id


async def test_its_link_lives_as_long_as_the_question(stage: Stage) -> None:
    end = stage.clock.now() + timedelta(days=3)
    grant = grant_of(stage, new_uuid7(), "fake")
    first = await stage.sessions.request_sign_in(grant, connection="fake", expire_time=end)
    assert abs(first.session.expire_time - end) < timedelta(minutes=1)
    later = await stage.sessions.request_sign_in(grant, connection="fake", expire_time=end + timedelta(days=90))
    assert later.session.session_id == first.session.session_id
    assert later.session.expire_time - stage.clock.now() <= timedelta(days=7, minutes=1)


@pytest.mark.parametrize("confirmer", ["service:executor", "key:another000001", "user:u1"])
async def test_the_code_confirms_it_in_the_name_of_the_run(stage: Stage, browser: Browser, confirmer: str) -> None:
    view = await stage.sessions.request_sign_in(grant_of(stage, new_uuid7(), "fake"), connection="fake")
    code = code_on(await browser.complete(view.connect_url))
    _, connection = await stage.sessions.confirm(stage.caller(confirmer), view.session.session_id, code)
    assert (connection.user_id, connection.account_label) == ("u1", "Ada")


@pytest.mark.parametrize("stranger", ["user:u2", "service:trace", "service:state"])
async def test_nobody_else_sees_it(stage: Stage, stranger: str) -> None:
    view = await stage.sessions.request_sign_in(grant_of(stage, new_uuid7(), "fake"), connection="fake")
    with pytest.raises(NotFound):
        await stage.sessions.get(stage.caller(stranger), view.session.session_id)


async def test_a_run_mends_the_connection_of_its_user(stage: Stage, browser: Browser) -> None:
    view = await stage.start(user_id="u1", connection="work")
    code = code_on(await browser.complete(view.connect_url))
    _, connection = await stage.sessions.confirm(stage.alice, view.session.session_id, code)
    # By the integration's name, too.
    again = await stage.sessions.request_sign_in(grant_of(stage, new_uuid7(), "fake"), connection="fake")
    assert again.session.connection == "work"
    code = code_on(await browser.complete(again.connect_url))
    _, mended = await stage.sessions.confirm(stage.caller("service:executor"), again.session.session_id, code)
    assert mended.connection_id == connection.connection_id
    assert set(mended.scopes) == {"read", "write"}


async def test_what_the_grant_does_not_name_is_refused(stage: Stage) -> None:
    await stage.integration("closed", agents=("other",))
    for grant, name in (
        (grant_of(stage, new_uuid7(), "fake"), "other"),
        (grant_of(stage, new_uuid7(), "closed"), "closed"),
    ):
        with pytest.raises(PermissionDenied) as refused:
            await stage.sessions.request_sign_in(grant, connection=name)
        assert refused.value.reason == Reason.CONNECTION_NOT_GRANTED
    with pytest.raises(NotFound):
        await stage.sessions.request_sign_in(grant_of(stage, new_uuid7(), "absent"), connection="absent")


async def test_a_long_link_survives_a_person_who_was_distracted(stage: Stage, browser: Browser) -> None:
    end = stage.clock.now() + timedelta(days=3)
    view = await stage.sessions.request_sign_in(
        grant_of(stage, new_uuid7(), "fake"), connection="fake", expire_time=end
    )
    await browser.to_provider(view.connect_url)
    session = await stage.session(view.session.session_id)
    assert session.state is SessionState.AUTHORIZING
    assert abs(session.expire_time - end) < timedelta(minutes=1)
    page = await browser.complete(view.connect_url)
    assert code_on(page)
