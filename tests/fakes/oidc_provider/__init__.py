"""Runs npm's `oidc-provider`, a certified OpenID provider, and plays the browser of a user who agrees to everything."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx2

from services.auth.oauth.tokens import DeviceAuthorization, OAuthApp
from services.auth.providers import load_provider
from services.auth.providers.schema import ClientAuth, Provider
from services.auth.secrets import Secret
from tests.fakes import node_packages
from tests.fakes.node_packages import NodeUnavailable
from tests.fakes.oauth_provider import with_oauth

__all__ = ["REDIRECT_URI", "NodeUnavailable", "OidcProvider", "running"]

FOLDER: Final = Path(__file__).parent
REDIRECT_URI: Final = "http://127.0.0.1/oauth/callback/i1"

_SECRETS: Final = {"holdfast-basic": "client-secret-canary-basic", "holdfast-post": "client-secret-canary-post"}

# As `oidc-provider` is: single-use refresh tokens, and offline access only after a consent screen.
DATA: Final = """
slug: panva
display_name: oidc-provider
documentation_url: https://github.com/panva/node-oidc-provider
variables:
  base: {words: the issuer, is_url: true}
oauth:
  authorize_url: "{base}/auth"
  token_url: "{base}/token"
  device_url: "{base}/device/auth"
  revoke_url: "{base}/token/revocation"
  jwks_url: "{base}/jwks"
  issuer: "{base}"
  iss_in_callback: true
  flows: [authorization_code, device, client_credentials]
  extra_authorize_params: {prompt: consent}
  rotation: strict
  refresh_ttl_seconds: 1209600
account:
  from: id_token
  id: [/sub]
  label: [/email]
inject:
  - {header: Authorization, value: "Bearer {access_token}"}
hosts:
  - {host: "*", from: base}
scopes:
  openid: {words: know who this is, mandatory: true}
  offline_access: {words: stay signed in, mandatory: true}
  email: {words: see the e-mail address, default: true}
"""


@dataclass(frozen=True, slots=True)
class OidcProvider:
    """A running provider."""

    url: str

    @property
    def data(self) -> Provider:
        """The provider as data."""
        return load_provider(DATA, "panva")

    def app(self, client_id: str = "holdfast-post") -> OAuthApp:
        """Returns one of its apps: `holdfast-post`, `holdfast-basic` or `holdfast-public`."""
        auth = {"holdfast-post": ClientAuth.POST, "holdfast-basic": ClientAuth.BASIC}.get(client_id, ClientAuth.NONE)
        secrets = (Secret(_SECRETS[client_id]),) if client_id in _SECRETS else ()
        return OAuthApp(with_oauth(self.data, client_auth=auth), client_id, secrets, {"base": self.url})

    async def sign_in(self, authorization_url: str) -> dict[str, str]:
        """Follows an authorization URL as a browser does; returns the parameters of the callback."""
        async with _browser() as browser:
            url = authorization_url
            for _ in range(12):
                answer = await browser.get(url)
                assert answer.is_redirect, f"{answer.status_code} at {urlsplit(url).path}: {answer.text[:500]}"
                url = str(answer.url.join(answer.headers["location"]))
                if url.startswith(REDIRECT_URI):
                    return dict(parse_qsl(urlsplit(url).query))
        raise AssertionError("the sign-in goes round and round")

    async def approve_device(self, device: DeviceAuthorization) -> None:
        """Enters the user's code and agrees."""
        async with _browser() as browser:
            page = await browser.get(device.verification_uri)
            for _ in range(12):
                if page.is_redirect:
                    page = await browser.get(str(page.url.join(page.headers["location"])))
                    continue
                form = _form(page.text)
                if form is None:
                    return
                action, fields = form
                if "user_code" in fields:
                    fields["user_code"] = device.user_code
                else:
                    fields |= {"user_code": device.user_code, "confirm": "yes"}
                page = await browser.post(str(page.url.join(action)), data=fields)
        raise AssertionError("the sign-in goes round and round")

    async def state(self) -> dict[str, Any]:
        """Returns what the provider has counted: token_calls, refreshed, refused, grants_revoked."""
        async with _browser() as browser:
            counted: dict[str, Any] = (await browser.get(f"{self.url}/state")).json()
            return counted


@contextmanager
def running(*, access_token_seconds: int = 300, rotate: bool = True) -> Iterator[OidcProvider]:
    """Runs the provider on a free port of loopback.

    Raises:
        NodeUnavailable: It cannot be had here.
    """
    package = node_packages.install(FOLDER, "oidc-provider")
    node, _ = node_packages.node()
    options = {"redirect_uris": [REDIRECT_URI], "access_token_seconds": access_token_seconds, "rotate": rotate}
    process = subprocess.Popen(
        [node, FOLDER / "server.mjs", package, json.dumps(options)],
        env=node_packages.ENVIRONMENT,
        stdout=subprocess.PIPE,
        # Its warnings are about what is right for tests: keys of its own, a store in memory.
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        match = re.search(r"listening on (http://\S+)", said)
        assert match is not None, f"oidc-provider did not start: {said}"
        yield OidcProvider(match[1])
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _browser() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=20)


def _form(page: str) -> tuple[str, dict[str, str]] | None:
    """Returns where a page's form goes, and its hidden fields with the code's field."""
    found = re.search(r"<form[^>]*action=\"([^\"]+)\"", page)
    if found is None:
        return None
    fields = {}
    for tag in re.findall(r"<input[^>]*>", page):
        name = re.search(r"name=\"([^\"]+)\"", tag)
        value = re.search(r"value=\"([^\"]*)\"", tag)
        if name is not None and name[1] != "abort":
            fields[name[1]] = unescape(value[1]) if value is not None else ""
    return unescape(found[1]), fields
