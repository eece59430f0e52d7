"""What a forged, replayed, foreign or repeated step does: nothing for whoever tries it, and no harm to the owner."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from urllib.parse import urlencode

import httpx2
import pytest

from holdfast.errors import FailedPrecondition, InvalidArgument
from services.auth.connect.store import SessionState
from services.auth.connection_store import ConnectionState
from tests.auth.connect.support import Browser, Stage, code_on, query_of, staged
from tests.fakes.clock import FakeClock
from tests.fakes.oauth_provider import FakeOAuthProvider, Profile


async def state_of(stage: Stage, session_id: str) -> tuple[SessionState, str]:
    session = await stage.session(session_id)
    return session.state, session.failure_reason


async def test_a_replayed_answer_is_refused_and_asks_for_no_tokens(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    callback = await browser.consent(await browser.to_provider(view.connect_url))
    first = await browser.open(callback)
    again = await browser.open(callback)
    assert (first.status_code, again.status_code) == (303, 400)
    assert "over" in again.text
    assert stage.provider.token_calls == 1
    assert (await state_of(stage, view.session.session_id))[0] is SessionState.CONFIRMING


async def test_of_two_answers_at_the_same_time_one_asks_for_tokens(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    callback = await browser.consent(await browser.to_provider(view.connect_url))
    with stage.provider.gate() as gate:
        calls = [asyncio.create_task(browser.open(callback)) for _ in range(4)]
        async with asyncio.timeout(10):
            await gate.arrived.wait()
        gate.release()
        answers = await asyncio.gather(*calls)
    assert sorted(answer.status_code for answer in answers) == [303, 400, 400, 400]
    assert stage.provider.token_calls == 1


async def test_an_answer_in_another_browser_changes_nothing(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    callback = await browser.consent(await browser.to_provider(view.connect_url))
    other = Browser(stage.url)
    try:
        for _ in range(2):
            refused = await other.open(callback)
            assert refused.status_code == 400
            assert "browser in which you began" in refused.text
            # With a cookie of its own, too.
            await other.open((await stage.start()).connect_url)
        assert stage.provider.token_calls == 0
        # Whoever began is not disturbed.
        assert (await browser.open(callback)).status_code == 303
        assert (await other.open(f"{view.connect_url}/done")).status_code == 404
    finally:
        await other.close()


async def test_a_forwarded_link_connects_nothing_for_whoever_forwarded_it(stage: Stage, browser: Browser) -> None:
    # Mallory begins, and Victor, who was sent the link, completes it with his account.
    mallory = stage.caller("key:mallory00001")
    view = await stage.sessions.start(mallory, integration="fake", user_id="mallory")
    stage.provider.signing_in = "victor"
    page = await browser.complete(view.connect_url)
    assert "key:mallory00001" in (await browser.open(view.connect_url)).text or "nobody" in page.text
    session_id = view.session.session_id
    for guess in ("", "2222-2222", "BCDF-BCDF"):
        with pytest.raises(InvalidArgument):
            await stage.sessions.confirm(mallory, session_id, guess)
    # The page of the code opens in Victor's browser only.
    others = Browser(stage.url)
    try:
        refused = await others.open(f"{view.connect_url}/done")
        assert refused.status_code == 404
        assert code_on(page) not in refused.text
        assert "<output" not in (await others.open(view.connect_url)).text
    finally:
        await others.close()
    assert await stage.connections.find_connection(stage.workspace_id, "mallory", "fake") is None


async def test_an_attackers_code_in_a_victims_browser_is_refused(stage: Stage, browser: Browser) -> None:
    # The attacker's own consent, whose answer is put into the victim's session: PKCE binds it to another verifier.
    attacker = Browser(stage.url)
    try:
        theirs = await attacker.consent(await attacker.to_provider((await stage.start()).connect_url))
    finally:
        await attacker.close()
    view = await stage.start()
    asked = query_of(await browser.to_provider(view.connect_url))
    forged = f"{asked['redirect_uri']}?{urlencode({'code': query_of(theirs)['code'], 'state': asked['state']})}"
    answer = await browser.open(forged)
    page = await browser.open(answer.headers["location"])
    assert "Not connected" in page.text
    assert await state_of(stage, view.session.session_id) == (SessionState.FAILED, "invalid_grant")
    assert await stage.stored_paths() == []


@pytest.mark.parametrize("state", ["", "x" * 43, "x" * 5000])
async def test_a_foreign_state_is_refused(stage: Stage, browser: Browser, state: str) -> None:
    target = await stage.targets.named(stage.workspace_id, "fake")
    await browser.to_provider((await stage.start()).connect_url)
    answer = await browser.open(f"/oauth/callback/{target.integration_id}?code=x&state={state}")
    assert answer.status_code == 400
    assert stage.provider.token_calls == 0


async def test_an_answer_at_another_integrations_address_ends_the_session(stage: Stage, browser: Browser) -> None:
    other = await stage.integration("other")
    view = await stage.start()
    callback = await browser.consent(await browser.to_provider(view.connect_url))
    answer = await browser.open(f"/oauth/callback/{other.integration_id}?{callback.partition('?')[2]}")
    assert answer.status_code == 303
    assert await state_of(stage, view.session.session_id) == (SessionState.FAILED, "integration_mismatch")
    assert stage.provider.token_calls == 0


@pytest.mark.parametrize(
    ("promised", "iss", "is_taken"),
    [
        (True, "right", True),
        (True, "", False),
        (True, "https://evil.example", False),
        (True, "right/", False),
        (False, "right", True),
        (False, "", True),
        (False, "https://evil.example", False),
    ],
)
@pytest.mark.parametrize("kind", ["code", "error"])
async def test_the_issuer_of_an_answer_is_the_one_that_was_asked(
    stage: Stage, browser: Browser, promised: bool, iss: str, is_taken: bool, kind: str
) -> None:
    issuer = stage.provider.url
    app = stage.provider.app(issuer=issuer, iss_in_callback=promised)
    await stage.integration("strict", app)
    view = await stage.start("strict")
    callback = await browser.consent(await browser.to_provider(view.connect_url))
    params = query_of(callback)
    if kind == "error":
        params = {"error": "access_denied", "error_description": "canary", "state": params["state"]}
    if iss:
        params["iss"] = iss.replace("right", issuer)
    answer = await browser.open(f"{callback.partition('?')[0]}?{urlencode(params)}")
    page = await browser.open(answer.headers["location"])
    assert "canary" not in page.text
    state, reason = await state_of(stage, view.session.session_id)
    if not is_taken:
        assert (state, reason) == (SessionState.FAILED, "iss_mismatch")
        assert stage.provider.token_calls == 0
    else:
        assert state is (SessionState.DECLINED if kind == "error" else SessionState.CONFIRMING)


async def test_an_error_of_the_provider_is_shown_in_words_of_our_own(stage: Stage, browser: Browser) -> None:
    for error, reason in (
        ("<script>alert(1)</script>", "provider_error"),
        ("server_error", "server_error"),
        ("invalid_scope", "invalid_scope"),
    ):
        view = await stage.start()
        asked = query_of(await browser.to_provider(view.connect_url))
        params = {"error": error, "error_description": "<img src=x>", "state": asked["state"]}
        answer = await browser.open(f"{asked['redirect_uri']}?{urlencode(params)}")
        page = await browser.open(answer.headers["location"])
        assert "<script>" not in page.text
        assert "<img src=x" not in page.text
        assert await state_of(stage, view.session.session_id) == (SessionState.FAILED, reason)
    assert stage.targets.reports == [("fake", "invalid_scope")]


async def test_a_form_that_this_server_did_not_show_to_this_browser_is_refused(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    page = await browser.open(view.connect_url)
    other = Browser(stage.url)
    try:
        stolen = await other.submit(page)  # the right token, from another browser
        assert stolen.status_code == 404
        await other.open(view.connect_url)
        assert (await other.submit(page)).status_code == 404
    finally:
        await other.close()
    for data in ({}, {"form_token": "x"}, {"form_token": "é"}):
        assert (await browser.http.post(view.connect_url, data=data)).status_code == 404
    assert (await state_of(stage, view.session.session_id))[0] is SessionState.PENDING


async def test_a_look_binds_nothing_and_a_second_browser_cannot_take_over(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    scanner, other = Browser(stage.url), Browser(stage.url)
    try:
        assert (await scanner.open(view.connect_url)).status_code == 200
        await browser.to_provider(view.connect_url)
        page = await other.open(view.connect_url)
        assert "another browser" in page.text
        assert (await other.submit(page)).status_code == 400
    finally:
        await scanner.close()
        await other.close()


async def test_the_back_button_begins_the_request_anew(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    first = await browser.consent(await browser.to_provider(view.connect_url))
    second = await browser.consent(await browser.to_provider(view.connect_url))
    assert (await browser.open(first)).status_code == 400
    assert (await browser.open(second)).status_code == 303
    # And back again, when all is done.
    assert (await browser.open(view.connect_url)).status_code == 200
    assert (await state_of(stage, view.session.session_id))[0] is SessionState.CONFIRMING


@pytest.mark.parametrize("link", ["x", "0198c0de-0000-7000-8000-000000000001.aaaaaaaaaaaaaaaaaaaaaa", "a.b", "%00"])
async def test_a_link_that_was_not_handed_out_leads_nowhere(stage: Stage, browser: Browser, link: str) -> None:
    for url in (f"/connect/{link}", f"/connect/{link}/done"):
        assert (await browser.open(url)).status_code == 404


async def test_the_id_of_a_session_is_not_its_link(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    assert (await browser.open(f"/connect/{view.session.session_id}")).status_code == 404


@pytest.mark.parametrize(
    "query", ["code=a&code=b&state=c", "&".join(f"p{number}=1" for number in range(60)), "code=" + "a" * 13_000]
)
async def test_an_answer_beyond_the_limits_is_refused(stage: Stage, browser: Browser, query: str) -> None:
    target = await stage.targets.named(stage.workspace_id, "fake")
    assert (await browser.open(f"/oauth/callback/{target.integration_id}?{query}")).status_code in (400, 414)


async def test_a_body_or_head_beyond_the_limits_is_refused(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    await browser.open(view.connect_url)
    assert (await browser.http.post(view.connect_url, content=b"a" * 50_000)).status_code == 413
    try:
        answer = await browser.http.get("/healthz", headers={"x-long": "a" * 40_000})
        assert answer.status_code in (400, 431)
    except httpx2.TransportError:
        # The connection is closed on whoever sends without an end.
        pass


async def test_every_answer_keeps_to_itself(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    callback = await browser.consent(await browser.to_provider(view.connect_url))
    back = await browser.open(callback)
    pages = [
        back,
        await browser.open(back.headers["location"]),
        await browser.open("/nothing"),
        await browser.open(view.connect_url),
    ]
    for page in pages:
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert "server" not in page.headers
    assert "?" not in back.headers["location"]
    assert "strict-transport-security" not in back.headers


async def test_over_https_the_cookie_belongs_to_this_host_alone(database_url: str, provider: FakeOAuthProvider) -> None:
    async with staged(database_url, provider, public_url="https://auth.example.com") as stage:
        await stage.integration()
        view = await stage.start()
        assert view.connect_url.startswith("https://auth.example.com/connect/")
        browser = Browser(stage.url)
        page = await browser.open(view.connect_url.removeprefix("https://auth.example.com"))
        cookie = page.headers["set-cookie"]
        assert cookie.startswith("__Host-holdfast-connect=")
        for part in ("HttpOnly", "Secure", "SameSite=lax", "Path=/", "Max-Age=600"):
            assert part in cookie
        assert "Domain" not in cookie
        assert page.headers["strict-transport-security"]
        target = await stage.targets.named(stage.workspace_id, "fake")
        document = (await browser.open(f"/oauth/client/{target.integration_id}")).json()
        assert document["client_id"] == f"https://auth.example.com/oauth/client/{target.integration_id}"
        assert document["redirect_uris"] == [f"https://auth.example.com/oauth/callback/{target.integration_id}"]
        assert (await browser.open("/oauth/client/x")).status_code == 404
        await browser.close()


async def test_a_posted_answer_comes_back_with_the_cookie(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    callback = await browser.consent(await browser.to_provider(view.connect_url))
    target = callback.partition("?")[0]
    async with httpx2.AsyncClient(trust_env=False) as without_cookie:
        posted = await without_cookie.post(target, data=query_of(callback))
    assert posted.status_code == 303
    bounced = posted.headers["location"]
    assert query_of(callback)["code"] not in bounced
    assert (await browser.open(bounced)).status_code == 303
    assert (await state_of(stage, view.session.session_id))[0] is SessionState.CONFIRMING
    assert (await browser.open(bounced)).status_code == 400
    assert (await browser.open(f"{bounced[:-4]}AAAA")).status_code == 400


async def test_a_reconnect_leaves_the_live_grant_alone_until_it_is_confirmed(stage: Stage, browser: Browser) -> None:
    view = await stage.start(user_id="u1")
    page = await browser.complete(view.connect_url)
    _, first = await stage.sessions.confirm(stage.alice, view.session.session_id, code_on(page))
    live = stage.provider.grants[-1]

    again = await stage.start(user_id="u1", scopes=("write",))
    page = await browser.complete(again.connect_url)
    assert await stage.connections.find_connection(stage.workspace_id, "u1", "fake") == first
    assert live.is_alive
    _, second = await stage.sessions.confirm(stage.alice, again.session.session_id, code_on(page))
    assert second.connection_id == first.connection_id
    assert set(second.scopes) == {"read", "write"}
    assert second.version > first.version
    assert [grant.is_alive for grant in stage.provider.grants] == [False, True]
    assert await stage.stored_paths() == [second.secret_path]


async def test_a_reconnect_with_another_account_changes_nothing(stage: Stage, browser: Browser) -> None:
    view = await stage.start(user_id="u1")
    page = await browser.complete(view.connect_url)
    _, first = await stage.sessions.confirm(stage.alice, view.session.session_id, code_on(page))
    live = stage.provider.grants[-1]
    again = await stage.start(user_id="u1")
    stage.provider.signing_in = "eve"
    page = await browser.complete(again.connect_url)
    assert "another account" in page.text
    assert await state_of(stage, again.session.session_id) == (SessionState.FAILED, "account_mismatch")
    assert await stage.connections.find_connection(stage.workspace_id, "u1", "fake") == first
    assert live.is_alive
    assert not stage.provider.grants[-1].is_alive
    assert await stage.stored_paths() == [first.secret_path]


async def test_of_two_accounts_that_were_granted_at_once_the_second_is_not_confirmed(
    stage: Stage, browser: Browser
) -> None:
    one, two = await stage.start(user_id="u1"), await stage.start(user_id="u1")
    code_one = code_on(await browser.complete(one.connect_url))
    stage.provider.signing_in = "eve"
    code_two = code_on(await browser.complete(two.connect_url))
    _, connection = await stage.sessions.confirm(stage.alice, one.session.session_id, code_one)
    with pytest.raises(FailedPrecondition):
        await stage.sessions.confirm(stage.alice, two.session.session_id, code_two)
    assert await state_of(stage, two.session.session_id) == (SessionState.FAILED, "account_mismatch")
    assert (await stage.connections.find_connection(stage.workspace_id, "u1", "fake")) == connection
    assert connection.account_id == "ada"
    assert await stage.stored_paths() == [connection.secret_path]


async def test_many_guesses_at_once_are_no_more_than_five(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    await browser.complete(view.connect_url)
    session_id = view.session.session_id
    guesses = [stage.sessions.confirm(stage.alice, session_id, f"2222-22{number:02}") for number in range(20)]
    outcomes = await asyncio.gather(*guesses, return_exceptions=True)
    assert all(isinstance(outcome, InvalidArgument | FailedPrecondition) for outcome in outcomes)
    assert await state_of(stage, session_id) == (SessionState.FAILED, "too_many_codes")


async def test_what_is_not_finished_in_time_expires_and_is_given_back(tmp_path, provider: FakeOAuthProvider) -> None:
    clock = FakeClock()
    async with staged(f"sqlite:///{tmp_path / 'auth.db'}", provider, clock=clock) as stage:
        await stage.integration()
        browser = Browser(stage.url)
        pending, away, granted = [await stage.start() for _ in range(3)]
        callback = await browser.consent(await browser.to_provider(away.connect_url))
        code = code_on(await browser.complete(granted.connect_url))
        await clock.advance(601)
        assert "too long" in (await browser.open(pending.connect_url)).text
        assert (await browser.open(callback)).status_code == 400
        with pytest.raises(FailedPrecondition):
            await stage.sessions.confirm(stage.alice, granted.session.session_id, code)
        await stage.background.step()
        for view in (pending, away, granted):
            assert (await state_of(stage, view.session.session_id))[0] is SessionState.EXPIRED
        assert await stage.stored_paths() == []
        assert not provider.grants[-1].is_alive
        await clock.advance(8 * 24 * 3600)
        assert await stage.store.forget_sessions(older_than_seconds=7 * 24 * 3600) == 3
        await browser.close()


async def test_a_grant_that_is_shared_is_not_revoked_by_what_was_not_confirmed(stage: Stage, browser: Browser) -> None:
    from services.auth.providers.schema import RevokeScope

    await stage.integration("google", stage.provider.app(revoke_scope=RevokeScope.GRANT))
    view = await stage.start("google")
    page = await browser.complete(view.connect_url)
    await stage.sessions.confirm(stage.alice, view.session.session_id, code_on(page))
    again = await stage.start("google")
    await browser.complete(again.connect_url)
    await stage.sessions.cancel(stage.alice, again.session.session_id)
    # At such a provider it would have ended the live connection.
    assert all(grant.is_alive for grant in stage.provider.grants)
    assert len(await stage.stored_paths()) == 1


async def test_without_a_refresh_token_the_consent_is_asked_for_once_more(
    tmp_path,
) -> None:
    profile = Profile(with_refresh_token=False, oauth="force_consent_params: {prompt: consent}")
    async with FakeOAuthProvider(profile) as provider, staged(f"sqlite:///{tmp_path / 'a.db'}", provider) as stage:
        await stage.integration()
        browser = Browser(stage.url)
        view = await stage.start()
        first = await browser.to_provider(view.connect_url)
        assert "prompt" not in query_of(first)
        second = (await browser.open(await browser.consent(first))).headers["location"]
        assert query_of(second)["prompt"] == "consent"
        assert query_of(second)["state"] != query_of(first)["state"]
        # It brings none again: then the connection lasts as long as its token.
        answer = await browser.open(await browser.consent(second))
        code = code_on(await browser.open(answer.headers["location"]))
        _, connection = await stage.sessions.confirm(stage.alice, view.session.session_id, code)
        assert connection.state is ConnectionState.ACTIVE
        assert connection.grant_expire_time == connection.expire_time
        assert await stage.stored_paths() == [connection.secret_path]
        await browser.close()


async def test_a_refresh_token_that_does_not_come_again_is_kept(stage: Stage, browser: Browser) -> None:
    view = await stage.start()
    code = code_on(await browser.complete(view.connect_url))
    _, first = await stage.sessions.confirm(stage.alice, view.session.session_id, code)
    old = stage.provider.grants[-1]
    stage.provider.profile = replace(stage.provider.profile, with_refresh_token=False)
    again = await stage.start()
    code = code_on(await browser.complete(again.connect_url))
    _, second = await stage.sessions.confirm(stage.alice, again.session.session_id, code)
    assert second.secret_path is not None
    stored = await stage.secrets.get(second.secret_path)
    assert stored is not None
    assert old.refresh_token is not None
    assert old.refresh_token in stored.secret.reveal()
    assert (second.token_version, stored.version) == (2, 2)
    assert second.refresh_time is not None
    assert old.is_alive
    assert first.connection_id == second.connection_id


async def test_a_forged_identity_ends_the_session(stage: Stage, browser: Browser) -> None:
    app = stage.provider.with_openid()
    await stage.integration("openid", app)
    stage.provider.id_token_changes = {"aud": "another"}
    view = await stage.start("openid", scopes=("openid",))
    await browser.complete(view.connect_url)
    assert await state_of(stage, view.session.session_id) == (SessionState.FAILED, "account_unknown")
    assert await stage.stored_paths() == []
    stage.provider.id_token_changes = {}
    view = await stage.start("openid", scopes=("openid",))
    page = await browser.complete(view.connect_url)
    assert "ada@example.com" in page.text
