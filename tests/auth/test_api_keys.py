"""The form of an API key, and who it is taken for."""

from __future__ import annotations

import string
import zlib
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from holdfast.api.auth.v1.api_key_service_pb2 import (
    CreateApiKeyRequest,
    ListApiKeysRequest,
    RevokeApiKeyRequest,
    VerifyApiKeyRequest,
)
from holdfast.api.auth.v1.workspace_service_pb2 import GetWorkspaceRequest
from holdfast.errors import (
    HoldfastError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    Unauthenticated,
)
from services.auth.api_keys import generate_key, parse_key
from services.auth.roles import ROLES, SCOPES
from services.auth.settings import AuthSettings
from tests.auth.support import Auth, failure, make_key, running, settings_for, sqlite_url
from tests.fakes.clock import FakeClock

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase


def checksum(body: str) -> str:
    """The checksum as it is documented, computed a second way."""
    number = zlib.crc32(body.encode())
    return "".join(ALPHABET[number // 62**power % 62] for power in reversed(range(6)))


def with_another_secret(key: str) -> str:
    """A well-formed key with the same id."""
    body = f"hfst_{key.split('_')[1]}_{generate_key()[0].secret.reveal()}"
    return body + checksum(body)


# ---------------------------------------------------------------------------------------------------------------- form


def test_a_key_has_the_documented_form_and_parses_into_its_parts() -> None:
    parsed, whole = generate_key()
    text = whole.reveal()
    prefix, key_id, rest = text.split("_")
    assert (prefix, len(key_id), len(rest)) == ("hfst", 12, 43 + 6)
    assert set(key_id + rest) <= set(ALPHABET)
    assert text[-6:] == checksum(text[:-6])
    again = parse_key(text)
    assert again is not None
    assert (again.api_key_id, again.secret.reveal()) == (parsed.api_key_id, parsed.secret.reveal())


def test_keys_differ() -> None:
    assert len({generate_key()[1].reveal() for _ in range(200)}) == 200


@given(st.data())
def test_a_mistyped_key_is_noticed_by_its_checksum(data: st.DataObject) -> None:
    text = generate_key()[1].reveal()
    position = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(ALPHABET + "_ ").filter(lambda character: character != text[position]))
    assert parse_key(text[:position] + other + text[position + 1 :]) is None


@given(st.text(max_size=100))
def test_any_text_is_either_a_key_or_none(text: str) -> None:
    assert parse_key(text) is None


def test_what_surrounds_a_key_is_not_ignored() -> None:
    text = generate_key()[1].reveal()
    for other in (f" {text}", f"{text}\n", f"{text}0", text[:-1], text.upper(), ""):
        assert parse_key(other) is None


# ---------------------------------------------------------------------------------------------------------------- RPCs


async def create(client, *scopes: str, **fields):
    return await client.api_keys.CreateApiKey(
        CreateApiKeyRequest(**{"display_name": "ci", "scopes": scopes or ["admin"], **fields})
    )


async def verify(auth: Auth, key: str, service: str = "executor"):
    return await auth.as_service(service).api_keys.VerifyApiKey(VerifyApiKeyRequest(secret=key))


def in_seconds(seconds: float, now: datetime | None = None) -> Timestamp:
    message = Timestamp()
    message.FromDatetime((now or datetime.now(UTC)) + timedelta(seconds=seconds))
    return message


async def test_a_created_key_is_known_to_every_service_that_asks(auth: Auth) -> None:
    admin, workspace_id = await auth.workspace("acme")
    created = await create(admin, "runs:write", "runs:read", "runs:read", expire_time=in_seconds(60))
    assert list(created.api_key.scopes) == ["runs:read", "runs:write"]
    assert created.secret.startswith(f"hfst_{created.api_key.api_key_id}_")
    for service in ("executor", "trace"):
        answer = await verify(auth, created.secret, service)
        assert answer.workspace_id == workspace_id
        assert answer.api_key_id == created.api_key.api_key_id
        assert list(answer.scopes) == ["runs:read", "runs:write"]
        assert answer.expire_time == created.api_key.expire_time


async def test_a_key_knows_its_workspace_whatever_its_scopes(auth: Auth) -> None:
    admin, workspace_id = await auth.workspace("acme")
    worker = auth.as_bearer((await create(admin, "workers")).secret)
    response = await worker.workspaces.GetWorkspace(GetWorkspaceRequest())
    assert (response.workspace.workspace_id, response.workspace.name) == (workspace_id, "acme")
    assert response.workspace.create_time.seconds > 0


async def test_every_scope_of_the_reference_can_be_given(auth: Auth) -> None:
    admin, _ = await auth.workspace("acme")
    assert list((await create(admin, *SCOPES)).api_key.scopes) == sorted(SCOPES)


def shown(error: HoldfastError) -> tuple:
    return type(error), error.reason, error.message, error.metadata


async def test_keys_that_are_not_valid_are_refused_alike(auth: Auth) -> None:
    admin, _ = await auth.workspace("acme")
    right = (await create(admin)).secret
    revoked = await create(admin)
    await admin.api_keys.RevokeApiKey(RevokeApiKeyRequest(api_key_id=revoked.api_key.api_key_id))
    unknown = generate_key()[1].reveal()
    wrong_secret = with_another_secret(right)
    refusals = [
        await failure(verify(auth, key))
        for key in (unknown, wrong_secret, revoked.secret, right[:-1], "", "x" * 10_000, "hfst_ключ")
    ]
    assert {type(refusal) for refusal in refusals} == {Unauthenticated}
    assert {refusal.reason for refusal in refusals} == {Reason.API_KEY_INVALID}
    assert len({str(shown(refusal)) for refusal in refusals}) == 1
    direct = [
        await failure(auth.as_bearer(key).workspaces.GetWorkspace(GetWorkspaceRequest()))
        for key in (unknown, wrong_secret, revoked.secret, right[:-1])
    ]
    assert {(type(error), error.reason) for error in direct} == {(Unauthenticated, Reason.API_KEY_INVALID)}


async def test_a_key_of_another_installation_is_refused(auth: Auth, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    _, foreign = await make_key(settings_for(sqlite_url(tmp_path / "other")), "acme")
    assert (await failure(verify(auth, foreign))).reason == Reason.API_KEY_INVALID


async def test_a_key_ends_at_its_time(tmp_path) -> None:
    clock = FakeClock(datetime.now(UTC))
    settings = settings_for(sqlite_url(tmp_path))
    _, admin_key = await make_key(settings, "acme", clock=clock)
    async with running(settings, clock=clock) as auth:
        admin = auth.as_bearer(admin_key)
        key = (await create(admin, expire_time=in_seconds(60, clock.now()))).secret
        await verify(auth, key)
        await clock.advance(61)
        assert (await failure(verify(auth, key))).reason == Reason.API_KEY_EXPIRED
        error = await failure(auth.as_bearer(key).workspaces.GetWorkspace(GetWorkspaceRequest()))
        assert (type(error), error.reason) == (Unauthenticated, Reason.API_KEY_EXPIRED)
        # Whoever has only the id learns nothing about the key.
        assert (await failure(verify(auth, with_another_secret(key)))).reason == Reason.API_KEY_INVALID


async def test_a_revoked_key_is_refused_at_once_and_says_when(auth: Auth) -> None:
    admin, _ = await auth.workspace("acme")
    created = await create(admin)
    client = auth.as_bearer(created.secret)
    await client.workspaces.GetWorkspace(GetWorkspaceRequest())
    request = RevokeApiKeyRequest(api_key_id=created.api_key.api_key_id)
    first = await admin.api_keys.RevokeApiKey(request)
    again = await admin.api_keys.RevokeApiKey(request)
    assert first.api_key.revoke_time.seconds > 0
    assert again.api_key.revoke_time == first.api_key.revoke_time
    error = await failure(client.workspaces.GetWorkspace(GetWorkspaceRequest()))
    assert error.reason == Reason.API_KEY_INVALID


@pytest.mark.parametrize("key_id", ["", "AAAAAAAAAAAA", "x", "\x00" * 12, "ключ" * 3, "A" * 500])
async def test_revoking_what_is_not_there_is_not_found(auth: Auth, key_id: str) -> None:
    admin, _ = await auth.workspace("acme")
    error = await failure(admin.api_keys.RevokeApiKey(RevokeApiKeyRequest(api_key_id=key_id, request_id="r1")))
    assert (type(error), error.reason) == (NotFound, Reason.API_KEY_NOT_FOUND)


async def test_a_caller_gives_no_scope_that_it_lacks(auth: Auth) -> None:
    admin, _ = await auth.workspace("acme")
    manager = auth.as_bearer((await create(admin, "keys:write", "runs:read")).secret)
    assert list((await create(manager, "runs:read")).api_key.scopes) == ["runs:read"]
    for scope in ("runs:write", "admin"):
        error = await failure(create(manager, "runs:read", scope))
        assert (type(error), error.reason) == (PermissionDenied, Reason.SCOPE_MISSING)


async def test_methods_need_their_scope(auth: Auth) -> None:
    admin, _ = await auth.workspace("acme")
    reader = auth.as_bearer((await create(admin, "runs:read", "connections:read")).secret)
    for call in (
        create(reader, "runs:read"),
        reader.api_keys.ListApiKeys(ListApiKeysRequest()),
        reader.api_keys.RevokeApiKey(RevokeApiKeyRequest(api_key_id="AAAAAAAAAAAA")),
    ):
        error = await failure(call)
        assert (type(error), error.reason) == (PermissionDenied, Reason.SCOPE_MISSING)


async def test_only_services_may_ask_who_a_key_is(auth: Auth) -> None:
    admin, _ = await auth.workspace("acme")
    request = VerifyApiKeyRequest(secret=(await create(admin)).secret)
    refused = await failure(admin.api_keys.VerifyApiKey(request))
    assert (type(refused), refused.reason) == (PermissionDenied, Reason.METHOD_NOT_ALLOWED)
    assert type(await failure(auth.as_service("worker").api_keys.VerifyApiKey(request))) is PermissionDenied
    assert type(await failure(auth.as_nobody().api_keys.VerifyApiKey(request))) is Unauthenticated


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["runs:delete"]}, "scopes"),
        ({"scopes": ["Admin"]}, "scopes"),
        ({"scopes": ["workspace:read"]}, "scopes"),
        ({"display_name": "x" * 101}, "display_name"),
        ({"display_name": "two\nlines"}, "display_name"),
        ({"expire_time": in_seconds(-1)}, "expire_time"),
        ({"expire_time": Timestamp(seconds=10**15)}, "expire_time"),
        ({"expire_time": Timestamp(seconds=1, nanos=-1)}, "expire_time"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"request_id": "a\x00b"}, "request_id"),
    ],
)
async def test_a_wrong_field_is_named_and_makes_no_key(embedded_auth: Auth, fields, field: str) -> None:
    admin, _ = await embedded_auth.workspace("acme")
    error = await failure(
        admin.api_keys.CreateApiKey(CreateApiKeyRequest(**{"display_name": "ci", "scopes": ["admin"], **fields}))
    )
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.field_violations] == [field]
    assert len((await admin.api_keys.ListApiKeys(ListApiKeysRequest())).api_keys) == 1


async def test_a_repeated_request_gets_the_same_key_without_its_secret(auth: Auth) -> None:
    admin, _ = await auth.workspace("acme")
    expire_time = in_seconds(3600)
    first = await create(admin, "runs:read", request_id="r1", expire_time=expire_time)
    again = await create(admin, "runs:read", request_id="r1", expire_time=expire_time)
    assert first.secret
    assert again.secret == ""
    assert again.api_key == first.api_key
    assert len((await admin.api_keys.ListApiKeys(ListApiKeysRequest())).api_keys) == 2


async def test_a_request_id_with_other_content_is_refused(auth: Auth) -> None:
    admin, _ = await auth.workspace("acme")
    created = await create(admin, "runs:read", request_id="r1")
    revoke = RevokeApiKeyRequest(api_key_id=created.api_key.api_key_id, request_id="r1")
    for call in (create(admin, "runs:write", request_id="r1"), admin.api_keys.RevokeApiKey(revoke)):
        error = await failure(call)
        assert (type(error), error.reason) == (InvalidArgument, Reason.REQUEST_ID_REUSED)


async def test_request_ids_of_workspaces_are_apart(auth: Auth) -> None:
    acme, _ = await auth.workspace("acme")
    other, _ = await auth.workspace("other")
    assert (await create(acme, "runs:read", request_id="r1")).secret
    assert (await create(other, "runs:write", request_id="r1")).secret


async def test_keys_are_listed_newest_first_in_pages(auth: Auth) -> None:
    admin, _ = await auth.workspace("acme")
    made = [(await create(admin, "runs:read", display_name=f"key {n}")).api_key.api_key_id for n in range(5)]
    listed, token, pages = [], "", 0
    while True:
        page = await admin.api_keys.ListApiKeys(ListApiKeysRequest(page_size=2, page_token=token))
        assert len(page.api_keys) <= 2
        listed += [key.api_key_id for key in page.api_keys]
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
    assert listed[:5] == made[::-1]
    assert (len(listed), pages) == (6, 3)


async def test_a_page_token_of_elsewhere_is_refused(auth: Auth) -> None:
    acme, _ = await auth.workspace("acme")
    other, _ = await auth.workspace("other")
    for _ in range(2):
        await create(acme)
    token = (await acme.api_keys.ListApiKeys(ListApiKeysRequest(page_size=1))).next_page_token
    for client, wrong in ((acme, "nonsense"), (acme, token[:-2] + "xx"), (other, token), (acme, "\x00")):
        error = await failure(client.api_keys.ListApiKeys(ListApiKeysRequest(page_token=wrong)))
        assert (type(error), error.reason) == (InvalidArgument, Reason.INVALID_PAGE_TOKEN)
    error = await failure(acme.api_keys.ListApiKeys(ListApiKeysRequest(page_size=-1)))
    assert isinstance(error, InvalidArgument)


async def test_the_last_use_is_kept_to_the_minute(settings: AuthSettings) -> None:
    async with running(settings) as auth:
        admin, _ = await auth.workspace("acme")
        used = await create(admin)
        unused = await create(admin)
        await verify(auth, used.secret)
    async with running(settings) as auth:
        admin, _ = await auth.workspace("acme")
        keys = {key.api_key_id: key for key in (await admin.api_keys.ListApiKeys(ListApiKeysRequest())).api_keys}
        last = keys[used.api_key.api_key_id].last_use_time
        assert (last.seconds % 60, last.nanos) == (0, 0)
        assert last.seconds >= used.api_key.create_time.seconds - 60
        assert not keys[unused.api_key.api_key_id].HasField("last_use_time")


# ------------------------------------------------------------------------------------------------- roles and networks


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_becomes_its_scopes(embedded_auth: Auth, role: str) -> None:
    admin, _ = await embedded_auth.workspace("acme")
    created = await create(admin, role)
    assert set(created.api_key.scopes) == ROLES[role]
    assert set((await verify(embedded_auth, created.secret)).scopes) == ROLES[role]


async def test_roles_and_scopes_add_up_and_unknown_ones_are_refused(embedded_auth: Auth) -> None:
    admin, _ = await embedded_auth.workspace("acme")
    created = await create(admin, "worker", "runs:read")
    assert list(created.api_key.scopes) == ["runs:read", "workers"]
    error = await failure(create(admin, "owner"))
    assert isinstance(error, InvalidArgument)
    assert error.field_violations[0].field == "scopes"


async def test_a_role_cannot_be_given_by_a_key_that_lacks_one_of_its_scopes(embedded_auth: Auth) -> None:
    admin, _ = await embedded_auth.workspace("acme")
    lesser = embedded_auth.as_bearer((await create(admin, "keys:write", "runner")).secret)
    assert (await create(lesser, "runner")).secret
    for role in ("developer", "admin", "worker"):
        assert (await failure(create(lesser, role))).reason == Reason.SCOPE_MISSING


async def test_a_key_with_networks_is_good_inside_them_and_told_to_every_service(auth: Auth) -> None:
    admin, _ = await auth.workspace("acme")
    here = await create(admin, "admin", networks=["127.0.0.1", "10.1.2.3/8", "127.0.0.1/32"])
    assert list(here.api_key.networks) == ["127.0.0.1/32", "10.0.0.0/8"]
    assert list((await verify(auth, here.secret)).networks) == ["127.0.0.1/32", "10.0.0.0/8"]
    listed = await auth.as_bearer(here.secret).api_keys.ListApiKeys(ListApiKeysRequest())
    assert list(listed.api_keys[0].networks) == ["127.0.0.1/32", "10.0.0.0/8"]

    elsewhere = await create(admin, "admin", networks=["2001:db8::/32"])
    error = await failure(auth.as_bearer(elsewhere.secret).api_keys.ListApiKeys(ListApiKeysRequest()))
    assert isinstance(error, PermissionDenied)
    assert error.reason == Reason.ADDRESS_NOT_ALLOWED


async def test_networks_that_are_none_are_refused(embedded_auth: Auth) -> None:
    admin, _ = await embedded_auth.workspace("acme")
    for networks in (["10.0.0.0/33"], ["localhost"], [""], ["10.0.0.1"] * 51):
        error = await failure(create(admin, "admin", networks=networks))
        assert isinstance(error, InvalidArgument)
        assert error.field_violations[0].field == "networks"


async def test_a_repeated_request_with_other_networks_is_another_one(embedded_auth: Auth) -> None:
    admin, _ = await embedded_auth.workspace("acme")
    first = await create(admin, "admin", networks=["10.0.0.0/8"], request_id="r1")
    again = await create(admin, "admin", networks=["10.0.0.0/8"], request_id="r1")
    assert again.api_key == first.api_key
    other = await failure(create(admin, "admin", request_id="r1"))
    assert other.reason == Reason.REQUEST_ID_REUSED


async def test_two_keys_are_good_at_once_while_one_takes_the_place_of_the_other(embedded_auth: Auth) -> None:
    admin, _ = await embedded_auth.workspace("acme")
    old, new = await create(admin, "runner"), await create(admin, "runner")
    for key in (old, new):
        assert (await verify(embedded_auth, key.secret)).workspace_id
    await admin.api_keys.RevokeApiKey(RevokeApiKeyRequest(api_key_id=old.api_key.api_key_id))
    assert (await failure(verify(embedded_auth, old.secret))).reason == Reason.API_KEY_INVALID
    assert (await verify(embedded_auth, new.secret)).workspace_id
