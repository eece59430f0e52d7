"""The whole way at a certified OpenID provider that nobody here wrote: PKCE, `iss`, nonce, ID token, rotation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from services.auth.connect.store import SessionState
from services.auth.oauth.client import OAuthClient
from services.auth.refresh.documents import TokenDocument
from tests.auth.connect.support import Browser, code_on, query_of, staged
from tests.fakes.oauth_provider import FakeOAuthProvider
from tests.fakes.oidc_provider import REDIRECT_URI, NodeUnavailable, OidcProvider, running


@pytest.fixture(scope="module")
def panva() -> Iterator[OidcProvider]:
    try:
        with running() as provider:
            yield provider
    except NodeUnavailable as error:
        pytest.skip(f"oidc-provider cannot run here: {error}")


async def test_an_account_is_connected_and_its_tokens_can_be_renewed(
    tmp_path: Path, panva: OidcProvider, provider: FakeOAuthProvider
) -> None:
    public_url, _, integration_id = REDIRECT_URI.replace("/oauth/callback/", " ").partition(" ")
    async with staged(f"sqlite:///{tmp_path / 'auth.db'}", provider, public_url=public_url) as stage:
        app = panva.app()
        await stage.integration("panva", app, integration_id=integration_id)
        view = await stage.start("panva", user_id="u1", scopes=("email", "read"))
        browser = Browser(stage.url)
        asked = await browser.to_provider(view.connect_url.removeprefix(public_url))
        assert query_of(asked)["code_challenge_method"] == "S256"
        back = await panva.sign_in(asked)
        assert "iss" in back
        forged = {**back, "iss": "https://evil.example"}
        other = Browser(stage.url)
        assert (await other.open(f"/oauth/callback/{integration_id}?{urlencode(forged)}")).status_code == 400
        await other.close()
        answer = await browser.open(f"/oauth/callback/{integration_id}?{urlencode(back)}")
        page = await browser.open(answer.headers["location"])
        assert "ada@example.com" in page.text, (await stage.session(view.session.session_id)).failure_reason
        _, connection = await stage.sessions.confirm(stage.alice, view.session.session_id, code_on(page))
        assert (connection.account_id, connection.account_label) == ("ada", "ada@example.com")
        assert connection.secret_path is not None
        stored = await stage.secrets.get(connection.secret_path)
        assert stored is not None
        document = TokenDocument.from_secret(stored.secret, connection)
        assert document.tokens.refresh_token is not None
        assert document.redirect_uri == REDIRECT_URI
        egress = provider.egress()
        renewed = await OAuthClient(egress, stage.clock).refresh(app, document.tokens)
        await egress.close()
        assert renewed.refresh_token is not None
        await browser.close()


async def test_a_forged_issuer_ends_the_session(
    tmp_path: Path, panva: OidcProvider, provider: FakeOAuthProvider
) -> None:
    public_url, _, integration_id = REDIRECT_URI.replace("/oauth/callback/", " ").partition(" ")
    async with staged(f"sqlite:///{tmp_path / 'auth.db'}", provider, public_url=public_url) as stage:
        await stage.integration("panva", panva.app(), integration_id=integration_id)
        view = await stage.start("panva")
        browser = Browser(stage.url)
        back = await panva.sign_in(await browser.to_provider(view.connect_url.removeprefix(public_url)))
        query = urlencode({**back, "iss": "https://evil.example"})
        await browser.open(f"/oauth/callback/{integration_id}?{query}")
        session = await stage.session(view.session.session_id)
        assert (session.state, session.failure_reason) == (SessionState.FAILED, "iss_mismatch")
        await browser.close()
