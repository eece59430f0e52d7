"""Values that whoever connects an account gives, such as the name of a shop: from the caller, or from the page."""

from __future__ import annotations

import re

import pytest

from holdfast.errors import InvalidArgument
from services.auth.connect.store import ConnectMode, SessionState
from services.auth.connection_store import ConnectionState
from services.auth.oauth.tokens import OAuthApp
from services.auth.providers import load_provider
from services.auth.refresh.documents import TokenDocument
from services.auth.secrets import Secret
from tests.auth.connect.support import Browser, Stage, code_on
from tests.fakes.oauth_provider import CLIENT_ID, DATA, FakeOAuthProvider

# The whole address is the connection's: whatever is asked without it reaches nobody.
OWN_ADDRESS = DATA.replace(
    "is_url: true}",
    """is_url: true, owner: connection}
  region: {words: a region, owner: connection, pattern: '[a-z]{2}', default: eu}""",
)


@pytest.fixture(autouse=True)
async def each(stage: Stage, provider: FakeOAuthProvider) -> None:
    """An integration whose accounts are at addresses of their own."""
    app = OAuthApp(load_provider(OWN_ADDRESS, "fake"), CLIENT_ID, tuple(map(Secret, provider.client_secrets)))
    await stage.integration("each", app)


async def test_what_the_caller_gives_leads_to_the_provider_and_stays_with_the_connection(
    stage: Stage, browser: Browser
) -> None:
    base = stage.provider.url
    view = await stage.start("each", variables={"base": base})
    assert view.session.variables == {"base": base, "region": "eu"}
    page = await browser.open(view.connect_url)
    assert '<input type="text"' not in page.text
    assert base in page.text
    done = await browser.complete(view.connect_url)
    _, connection = await stage.sessions.confirm(stage.alice, view.session.session_id, code_on(done))
    assert (connection.account_id, connection.variables) == ("ada", {"base": base, "region": "eu"})
    assert connection.secret_path is not None
    stored = await stage.secrets.get(connection.secret_path)
    assert stored is not None
    # Sealed with the tokens: where they may be sent is not what a row says.
    assert TokenDocument.from_secret(stored.secret, connection).tokens.extra["base"] == base


async def test_a_reconnect_goes_where_the_connection_is(stage: Stage, browser: Browser) -> None:
    view = await stage.start("each", variables={"base": stage.provider.url, "region": "us"})
    await stage.sessions.confirm(
        stage.alice, view.session.session_id, code_on(await browser.complete(view.connect_url))
    )
    again = await stage.start("each")
    assert again.session.variables == {"base": stage.provider.url, "region": "us"}
    _, connection = await stage.sessions.confirm(
        stage.alice, again.session.session_id, code_on(await browser.complete(again.connect_url))
    )
    assert (connection.state, connection.variables) == (ConnectionState.ACTIVE, again.session.variables)


async def test_the_page_asks_for_what_nobody_gave(stage: Stage, browser: Browser) -> None:
    view = await stage.start("each")
    page = await browser.open(view.connect_url)
    assert 'name="variable.base"' in page.text
    assert 'name="variable.region"' not in page.text
    token = re.search(r'name="form_token" value="([^"]+)"', page.text)
    assert token is not None
    for typed in ({}, {"variable.base": "http://example.com/"}):
        refused = await browser.http.post(view.connect_url, data={"form_token": token[1], **typed})
        assert (refused.status_code, "expected" in refused.text) == (400, True)
    assert (await stage.session(view.session.session_id)).state is SessionState.PENDING
    typed = {"variable.base": f" {stage.provider.url} ", "variable.region": "us"}
    onward = await browser.http.post(view.connect_url, data={"form_token": token[1], **typed})
    assert onward.status_code == 303
    callback = await browser.consent(onward.headers["location"])
    done = await browser.open((await browser.open(callback)).headers["location"])
    _, connection = await stage.sessions.confirm(stage.alice, view.session.session_id, code_on(done))
    # What has a value already is not the page's to change.
    assert connection.variables == {"base": stage.provider.url, "region": "eu"}


async def test_an_abandoned_sign_in_is_given_back_where_it_was_granted(stage: Stage, browser: Browser) -> None:
    view = await stage.start("each", variables={"base": stage.provider.url})
    await browser.complete(view.connect_url)
    await stage.sessions.cancel(stage.alice, view.session.session_id)
    assert not stage.provider.grants[-1].is_alive
    assert await stage.stored_paths() == []


async def test_a_device_is_given_all_at_the_start(stage: Stage) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await stage.start("each", mode=ConnectMode.DEVICE)
    assert [item.field for item in refused.value.field_violations] == ["variables.base"]
    view = await stage.start("each", mode=ConnectMode.DEVICE, variables={"base": stage.provider.url})
    stage.provider.decide_device(view.session.user_code)
    await stage.store.set_poll(view.session.session_id, in_seconds=-1)
    await stage.background.step()
    _, connection = await stage.sessions.confirm(stage.alice, view.session.session_id, "")
    assert connection.variables["base"] == stage.provider.url


@pytest.mark.parametrize(
    ("variables", "field"),
    [
        ({"shop": "acme"}, "variables.shop"),
        ({"region": "EU"}, "variables.region"),
        ({"region": "eu\n"}, "variables.region"),
        ({"base": "http://provider.example"}, "variables.base"),
        ({"base": "https://provider.example?x=1"}, "variables.base"),
        ({"base": "https://" + "a" * 2048}, "variables.base"),
    ],
)
async def test_what_does_not_fit_is_named_and_begins_nothing(
    stage: Stage, variables: dict[str, str], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await stage.start("each", variables=variables)
    assert [item.field for item in refused.value.field_violations] == [field]
