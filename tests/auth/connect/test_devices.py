"""Consent on another device: asked for in the background, by one replica at a time, at the provider's pace."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from holdfast.errors import FailedPrecondition, InvalidArgument, Unavailable
from services.auth.connect.store import ConnectMode, SessionState
from services.auth.connection_store import ConnectionState
from services.auth.sealing import MasterKey
from tests.auth.connect.support import Stage, staged
from tests.fakes.clock import FakeClock
from tests.fakes.oauth_provider import FakeOAuthProvider, Fault


@pytest.fixture
async def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def stage(tmp_path: Path, provider: FakeOAuthProvider, clock: FakeClock):
    async with staged(f"sqlite:///{tmp_path / 'auth.db'}", provider, clock=clock) as made:
        await made.integration()
        yield made


async def polled(stage: Stage, clock: FakeClock, seconds: float = 5) -> None:
    await clock.advance(seconds)
    await stage.background.step()


async def test_a_consent_on_another_device_makes_a_connection(stage: Stage, clock: FakeClock) -> None:
    view = await stage.start(mode=ConnectMode.DEVICE, user_id="u1")
    assert (view.connect_url, view.session.state) == ("", SessionState.AUTHORIZING)
    assert view.session.user_code.startswith("WXYZ-")
    assert view.session.verification_url == f"{stage.provider.url}/activate"
    await polled(stage, clock)
    with pytest.raises(FailedPrecondition):
        await stage.sessions.confirm(stage.alice, view.session.session_id, "")
    stage.provider.decide_device(view.session.user_code)
    await polled(stage, clock)
    waiting = await stage.sessions.get(stage.alice, view.session.session_id)
    assert waiting.session.state is SessionState.CONFIRMING
    assert waiting.session.account_label == "Ada"
    _, connection = await stage.sessions.confirm(stage.alice, view.session.session_id, "")
    assert (connection.state, connection.user_id) == (ConnectionState.ACTIVE, "u1")


async def test_the_provider_is_asked_at_its_own_pace(stage: Stage, clock: FakeClock) -> None:
    view = await stage.start(mode=ConnectMode.DEVICE)
    await polled(stage, clock, 4)
    assert stage.provider.token_calls == 0
    await polled(stage, clock, 1)
    assert stage.provider.token_calls == 1
    stage.provider.decide_device(view.session.user_code, "slow_down")
    await polled(stage, clock, 5)
    assert stage.provider.token_calls == 2
    stage.provider.decide_device(view.session.user_code, "authorization_pending")
    await polled(stage, clock, 9)
    assert stage.provider.token_calls == 2
    await polled(stage, clock, 1)
    assert stage.provider.token_calls == 3
    # An outage makes it slower, too.
    stage.provider.faults.append(Fault.unavailable())
    await polled(stage, clock, 10)
    await polled(stage, clock, 10)
    assert stage.provider.token_calls == 4
    await polled(stage, clock, 10)
    assert stage.provider.token_calls == 5


@pytest.mark.parametrize(
    ("decision", "state"), [("access_denied", SessionState.DECLINED), ("expired_token", SessionState.EXPIRED)]
)
async def test_a_decision_against_it_ends_the_session(
    stage: Stage, clock: FakeClock, decision: str, state: SessionState
) -> None:
    view = await stage.start(mode=ConnectMode.DEVICE)
    stage.provider.decide_device(view.session.user_code, decision)
    await polled(stage, clock)
    assert (await stage.session(view.session.session_id)).state is state
    calls = stage.provider.token_calls
    for _ in range(5):
        await polled(stage, clock, 60)
    assert stage.provider.token_calls == calls
    assert (await stage.session(view.session.session_id)).secret_path is None


async def test_several_replicas_ask_once(tmp_path: Path, provider: FakeOAuthProvider, clock: FakeClock) -> None:
    url, master = f"sqlite:///{tmp_path / 'auth.db'}", MasterKey.generate()
    async with (
        staged(url, provider, clock=clock, master=master) as one,
        staged(url, provider, clock=clock, master=master) as two,
    ):
        await one.integration()
        two.targets.by_name = one.targets.by_name
        view = await one.start(mode=ConnectMode.DEVICE)
        provider.decide_device(view.session.user_code)
        await clock.advance(5)
        counts = await asyncio.gather(*(stage.background.step() for stage in (one, two, one, two)))
        assert sum(counts) == 1
        assert provider.token_calls == 1
        assert (await one.session(view.session.session_id)).state is SessionState.CONFIRMING


async def test_a_device_survives_a_restart(tmp_path: Path, provider: FakeOAuthProvider, clock: FakeClock) -> None:
    url, master = f"sqlite:///{tmp_path / 'auth.db'}", MasterKey.generate()
    async with staged(url, provider, clock=clock, master=master) as before:
        await before.integration()
        view = await before.start(mode=ConnectMode.DEVICE)
        targets = before.targets.by_name
    async with staged(url, provider, clock=clock, master=master) as after:
        after.targets.by_name = targets
        provider.decide_device(view.session.user_code)
        await polled(after, clock)
        assert (await after.session(view.session.session_id)).state is SessionState.CONFIRMING


async def test_a_device_that_is_given_up_is_asked_for_no_more(stage: Stage, clock: FakeClock) -> None:
    view = await stage.start(mode=ConnectMode.DEVICE)
    await stage.sessions.cancel(stage.alice, view.session.session_id)
    stage.provider.decide_device(view.session.user_code)
    for _ in range(3):
        await polled(stage, clock, 60)
    assert stage.provider.token_calls == 0
    assert (await stage.sessions.get(stage.alice, view.session.session_id)).session.secret_path is None


async def test_a_provider_without_devices_is_refused(stage: Stage) -> None:
    await stage.integration("plain", stage.provider.app(device_url=None))
    with pytest.raises(InvalidArgument) as refused:
        await stage.start("plain", mode=ConnectMode.DEVICE)
    assert refused.value.field_violations[0].field == "mode"


async def test_a_provider_that_is_away_begins_nothing(tmp_path: Path, stage: Stage) -> None:
    app = stage.provider.app()
    gone = "http://127.0.0.1:9"
    from dataclasses import replace

    await stage.integration("gone", replace(app, variables={"base": gone}))
    with pytest.raises(Unavailable):
        await stage.start("gone", mode=ConnectMode.DEVICE)
