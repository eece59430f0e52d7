"""People with tokens of their own issuer: who is let in, as whom, and for how long."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from holdfast.api.auth.v1.api_key_service_pb2 import CreateApiKeyRequest, VerifyApiKeyRequest
from holdfast.api.auth.v1.workspace_service_pb2 import GetWorkspaceRequest
from holdfast.errors import HoldfastError, PermissionDenied, Reason, Unauthenticated, Unavailable
from services.auth.persons import KEYS_SECONDS, LEEWAY_SECONDS, REFETCH_SECONDS
from services.auth.roles import ROLES
from services.auth.settings import AuthSettings
from services.auth.store import INSTALLATION_ID
from services.shared import identity as identities
from services.shared.identity import IMPERSONATE_SCOPE, Identity, acting_user
from services.shared.settings import SettingsError, load
from tests.auth.support import TOKEN, Auth, audit_of, failure, make_key, running, settings_for, sqlite_url
from tests.fakes.clock import FakeClock
from tests.fakes.issuer import AUDIENCE, Issuer, new_key, serving


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with serving() as served:
        yield served


def settings_of(tmp_path: Path, issuer: Issuer, **changes: object) -> AuthSettings:
    return settings_for(
        sqlite_url(tmp_path),
        oidc_issuer=issuer.url,
        oidc_audience=AUDIENCE,
        egress_allow=("127.0.0.1",),
        auth_failures_per_minute=0,
        **changes,
    )


@pytest.fixture
async def auth(tmp_path: Path, issuer: Issuer) -> AsyncIterator[Auth]:
    settings = settings_of(tmp_path, issuer)
    async with running(settings) as replica:
        await make_key(settings, "acme")
        yield replica


async def refusal(auth: Auth, token: str) -> HoldfastError:
    return await failure(auth.as_bearer(token).workspaces.GetWorkspace(GetWorkspaceRequest()))


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA", "Ed25519"])
async def test_a_person_acts_in_the_workspace_and_roles_of_the_token(
    auth: Auth, issuer: Issuer, algorithm: str
) -> None:
    issuer.keys = [new_key(algorithm, "k")]
    token = issuer.token(header={"alg": algorithm}, roles=["viewer", "worker", "of-another-app"])
    answer = await auth.as_bearer(token).workspaces.GetWorkspace(GetWorkspaceRequest())
    assert answer.workspace.name == "acme"
    verified = await auth.as_service("executor").api_keys.VerifyApiKey(VerifyApiKeyRequest(secret=token))
    assert (verified.user_id, verified.api_key_id) == ("ada", "")
    assert verified.workspace_id == answer.workspace.workspace_id
    assert set(verified.scopes) == ROLES["viewer"] | ROLES["worker"]
    assert verified.expire_time.seconds == pytest.approx(time.time() + 300 + LEEWAY_SECONDS, abs=30)


async def test_a_role_bounds_what_a_person_may_do(auth: Auth, issuer: Issuer) -> None:
    request = CreateApiKeyRequest(display_name="x", scopes=["runner"])
    error = await failure(auth.as_bearer(issuer.token()).api_keys.CreateApiKey(request))
    assert (type(error), error.reason) == (PermissionDenied, Reason.SCOPE_MISSING)
    assert (await auth.as_bearer(issuer.token(roles="admin")).api_keys.CreateApiKey(request)).secret


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"},
        {"iss": None},
        {"aud": "another"},
        {"aud": ["another"]},
        {"aud": None},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": 1e300},
        {"nbf": 9_999_999_999},
        {"nbf": "now"},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a\nb"},
        {"sub": "x" * 300},
        {"roles": None},
        {"roles": []},
        {"roles": ["owner"]},
        {"roles": {"admin": True}},
        {"holdfast_workspace": None},
        {"holdfast_workspace": "elsewhere"},
        {"holdfast_workspace": ""},
        {"holdfast_workspace": ["acme"]},
    ],
    ids=str,
)
async def test_a_token_with_wrong_claims_is_not_taken(auth: Auth, issuer: Issuer, claims: dict[str, Any]) -> None:
    error = await refusal(auth, issuer.token(**claims))
    assert (type(error), error.reason) == (Unauthenticated, Reason.TOKEN_INVALID)


async def test_refused_tokens_are_counted_in_the_installations_trail_with_why(tmp_path: Path, issuer: Issuer) -> None:
    settings = settings_of(tmp_path, issuer)
    async with running(settings) as auth:
        await make_key(settings, "acme")
        tail = issuer.token().partition(".")[2]
        for token in (
            *[issuer.token(aud="another")] * 3,
            issuer.token(roles=[]),
            issuer.token(exp=int(time.time()) - 90),
            issuer.token(key=new_key("ES256", "first")),
            f"x.{tail}",
        ):
            request = VerifyApiKeyRequest(secret=token, peer="ipv4:10.0.0.7:1")
            await failure(auth.as_service("executor").api_keys.VerifyApiKey(request))
        taken = VerifyApiKeyRequest(secret=issuer.token(), peer="ipv4:10.0.0.7:1")
        await auth.as_service("executor").api_keys.VerifyApiKey(taken)
        await refusal(auth, issuer.token(iss="https://other.example"))
    found = Counter[tuple[str, str, str, str]]()
    for record in await audit_of(settings, INSTALLATION_ID):
        details = json.loads(record.details or "")
        # What is random may hold any short word.
        said = str(replace(record, record_id="", previous_hash=None, hash=None))
        assert "acme" not in said and "ada" not in said
        found[record.action, record.outcome, details["source"], details["why"]] += int(details["count"])
    assert found == {
        ("token.refuse", "TOKEN_INVALID", "10.0.0.7", "audience"): 3,
        ("token.refuse", "TOKEN_INVALID", "10.0.0.7", "role"): 1,
        ("token.refuse", "TOKEN_EXPIRED", "10.0.0.7", "expired"): 1,
        ("token.refuse", "TOKEN_INVALID", "10.0.0.7", "signature"): 1,
        ("token.refuse", "TOKEN_INVALID", "10.0.0.7", "header"): 1,
        ("token.refuse", "TOKEN_INVALID", "127.0.0.1", "issuer"): 1,
    }


async def test_times_count_within_a_minute(auth: Auth, issuer: Issuer) -> None:
    now = int(time.time())
    taken: tuple[dict[str, Any], ...] = ({"exp": now - 20}, {"nbf": now + 20}, {"aud": ["other", AUDIENCE]})
    for claims in taken:
        answer = await auth.as_bearer(issuer.token(**claims)).workspaces.GetWorkspace(GetWorkspaceRequest())
        assert answer.workspace.name == "acme"
    assert (await refusal(auth, issuer.token(exp=now - 90))).reason == Reason.TOKEN_EXPIRED


def part(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


async def test_a_token_that_is_not_signed_by_the_issuer_is_not_taken(auth: Auth, issuer: Issuer) -> None:
    good = issuer.token()
    head, body, signature = good.split(".")
    public = issuer.keys[0].as_dict(private=False)
    symmetric = new_key("HS256", "first")
    for token in (
        issuer.token(key=new_key("ES256", "first")),
        issuer.token(key=new_key("RS256", "first"), header={"alg": "RS256"}),
        issuer.token(key=symmetric, header={"alg": "HS256"}),
        issuer.token(header={"typ": "secevent+jwt"}),
        issuer.token(key=new_key("ES256", "own"), header={"jwk": public}),
        f"{part({'alg': 'none', 'kid': 'first'})}.{body}.{signature}",
        f"{part({'alg': ['ES256'], 'kid': 'first'})}.{body}.{signature}",
        f"{part('ES256')}.{body}.{signature}",
        f"{head}.{part({'sub': 'eve', 'roles': ['admin'], 'holdfast_workspace': 'acme'})}.{signature}",
        f"{head}.{body}.{signature[:-4]}AAAA",
        f"x.{body}.{signature}",
    ):
        error = await refusal(auth, token)
        assert (type(error), error.reason) == (Unauthenticated, Reason.TOKEN_INVALID), token
        assert error.message == "the token is not valid"


async def test_a_new_key_is_found_and_invented_ones_make_no_storm(tmp_path: Path, issuer: Issuer) -> None:
    clock = FakeClock(datetime.now(UTC))
    settings = settings_of(tmp_path, issuer)
    async with running(settings, clock=clock) as auth:
        await make_key(settings, "acme")

        async def works(token: str) -> bool:
            try:
                await auth.as_bearer(token).workspaces.GetWorkspace(GetWorkspaceRequest())
            except Exception:
                return False
            return True

        assert await works(issuer.token())
        assert len(issuer.asked) == 2
        for number in range(20):
            assert not await works(issuer.token(key=new_key("ES256", f"invented-{number}")))
        assert len(issuer.asked) == 2

        issuer.keys = [new_key("ES256", "second")]
        assert not await works(issuer.token())
        clock._monotonic += REFETCH_SECONDS
        assert await works(issuer.token())
        assert len(issuer.asked) == 4

        # The issuer is away: what is known serves on.
        issuer.is_broken = True
        clock._monotonic += KEYS_SECONDS
        assert await works(issuer.token())
        clock._monotonic += 86_400
        error = await refusal(auth, issuer.token())
        assert type(error) is Unavailable


async def test_metadata_of_another_issuer_are_not_used(auth: Auth, issuer: Issuer) -> None:
    issuer.metadata["issuer"] = "https://accounts.example"
    assert type(await refusal(auth, issuer.token())) is Unavailable


async def test_claims_are_where_the_settings_say(tmp_path: Path, issuer: Issuer) -> None:
    settings = settings_of(
        tmp_path,
        issuer,
        oidc_workspace="acme",
        oidc_user_claim="email",
        oidc_role_claim="realm_access.roles",
        oidc_roles=("hf-admins=admin", "hf-users=viewer"),
    )
    async with running(settings) as auth:
        await make_key(settings, "acme")
        claims: dict[str, Any] = {"holdfast_workspace": None, "roles": None, "email": "ada@acme.example"}
        token = issuer.token(**claims, realm_access={"roles": ["hf-users", "admin"]})
        verified = await auth.as_service("trace").api_keys.VerifyApiKey(VerifyApiKeyRequest(secret=token))
        assert verified.user_id == "ada@acme.example"
        assert set(verified.scopes) == ROLES["viewer"]


async def test_without_an_issuer_tokens_are_no_keys(embedded_auth: Auth, issuer: Issuer) -> None:
    assert (await refusal(embedded_auth, issuer.token())).reason == Reason.API_KEY_INVALID
    assert issuer.asked == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HOLDFAST_OIDC_ISSUER", "http://issuer.example", "https://"),
        ("HOLDFAST_OIDC_ISSUER", "https://issuer.example/?x=1", "query"),
        ("HOLDFAST_OIDC_ISSUER", "https://issuer.example", "HOLDFAST_OIDC_AUDIENCE"),
        ("HOLDFAST_OIDC_ROLES", "people=owner", "developer"),
    ],
)
def test_settings_that_would_trust_too_much_are_refused(name: str, value: str, message: str) -> None:
    environ = {
        "HOLDFAST_SERVICE_TOKEN": TOKEN,
        "HOLDFAST_DATABASE_URL": "sqlite:////tmp/none.db",
        name: value,
    }
    with pytest.raises(SettingsError, match=message):
        load(AuthSettings, environ)


def test_a_person_acts_for_themselves() -> None:
    def acting(identity: Identity, named: str) -> str:
        token = identities.caller.set(identity)
        try:
            return acting_user(named)
        finally:
            identities.caller.reset(token)

    ada = Identity("person", workspace_id="w", user_id="ada", scopes=frozenset({"runs:write"}))
    assert acting(ada, "") == acting(ada, "ada") == "ada"
    with pytest.raises(PermissionDenied) as caught:
        acting(ada, "grace")
    assert caught.value.metadata == {"scope": IMPERSONATE_SCOPE}
    for scope in (IMPERSONATE_SCOPE, "admin"):
        other = Identity("person", workspace_id="w", user_id="ada", scopes=frozenset({scope}))
        assert acting(other, "grace") == "grace"
    assert acting(Identity("api_key", workspace_id="w", scopes=frozenset({"runs:write"})), "grace") == "grace"
    assert not Identity("api_key", workspace_id="w").may_act_for("grace")
