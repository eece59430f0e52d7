"""The life of a connection, over gRPC."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.api.auth.v1.connection_service_pb2 import (
    CONNECTION_STATE_ACTIVE,
    CONNECTION_STATE_REVOKED,
    GetConnectionRequest,
    ListConnectionsRequest,
    RevokeConnectionRequest,
)
from holdfast.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    ResourceExhausted,
    Unavailable,
)
from services.auth.settings import AuthSettings
from tests.auth.support import Auth, Client, audit_of, failure, make_key, new_connection, running, use_of
from tests.fakes.secret_store import MemorySecretStore


async def resolve(auth: Auth, workspace_id: str, name: str = "openai"):
    return await auth.resolve(workspace_id, name)


async def names(client: Client) -> list[str]:
    listed = await client.connections.ListConnections(ListConnectionsRequest())
    return [connection.name for connection in listed.connections]


async def test_a_stored_key_comes_out_for_the_executor_only(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    request = new_connection(key="sk-one", base_url="https://models.example/v1")
    created = (await client.connections.CreateConnection(request)).connection
    assert (created.name, created.provider, created.state) == ("openai", "openai", CONNECTION_STATE_ACTIVE)
    assert created.base_url == "https://models.example/v1"
    assert len(created.fingerprint) == 12
    got = await client.connections.GetConnection(GetConnectionRequest(name="openai"))
    assert got.connection == created
    credential = await resolve(auth, workspace_id)
    assert credential.secret == "sk-one"
    assert credential.connection_id == created.connection_id
    assert (credential.provider, credential.base_url, credential.version) == ("openai", created.base_url, 1)
    for service in ("trace", "state", "auth"):
        refused = await failure(auth.as_service(service).credentials.ResolveCredential(use_of(workspace_id)))
        assert (type(refused), refused.reason) == (PermissionDenied, Reason.METHOD_NOT_ALLOWED)
    refused = await failure(client.credentials.ResolveCredential(use_of(workspace_id)))
    assert (type(refused), refused.reason) == (PermissionDenied, Reason.METHOD_NOT_ALLOWED)


async def test_the_name_is_the_providers_unless_given(auth: Auth) -> None:
    client, _ = await auth.workspace("acme")
    created = await client.connections.CreateConnection(new_connection(name="", provider="anthropic"))
    assert created.connection.name == "anthropic"


async def test_a_server_that_wants_no_key_has_a_connection_without_one(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    request = new_connection(name="local", provider="ollama", key="", base_url="http://127.0.0.1:11434/v1")
    assert (await client.connections.CreateConnection(request)).connection.fingerprint == ""
    credential = await resolve(auth, workspace_id, "local")
    assert (credential.secret, credential.base_url) == ("", "http://127.0.0.1:11434/v1")


async def test_a_second_one_of_the_name_is_refused_and_changes_nothing(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    await client.connections.CreateConnection(new_connection(key="sk-one"))
    error = await failure(client.connections.CreateConnection(new_connection(key="sk-two")))
    assert (type(error), error.reason) == (AlreadyExists, Reason.CONNECTION_EXISTS)
    assert (await resolve(auth, workspace_id)).secret == "sk-one"


async def test_a_replacement_keeps_the_id_and_is_used_at_once(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    first = (await client.connections.CreateConnection(new_connection(key="sk-one"))).connection
    assert (await resolve(auth, workspace_id)).secret == "sk-one"
    second = (await client.connections.CreateConnection(new_connection(key="sk-two", replace=True))).connection
    assert second.connection_id == first.connection_id
    assert second.create_time == first.create_time
    assert second.fingerprint != first.fingerprint
    credential = await resolve(auth, workspace_id)
    assert (credential.secret, credential.version) == ("sk-two", 2)


async def test_replacing_what_is_not_there_makes_it(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    await client.connections.CreateConnection(new_connection(replace=True))
    assert (await resolve(auth, workspace_id)).version == 1


async def test_a_revoked_connection_has_no_secret_any_more(settings: AuthSettings) -> None:
    secrets = MemorySecretStore()
    async with running(settings, secrets=secrets) as auth:
        client, workspace_id = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection())
        await resolve(auth, workspace_id)
        assert len(secrets.secrets) == 1
        request = RevokeConnectionRequest(name="openai")
        revoked = (await client.connections.RevokeConnection(request)).connection
        assert revoked.state == CONNECTION_STATE_REVOKED
        assert secrets.secrets == {}
        error = await failure(resolve(auth, workspace_id))
        assert (type(error), error.reason) == (NotFound, Reason.CONNECTION_NOT_FOUND)
        assert (await client.connections.RevokeConnection(request)).connection == revoked
        assert (await client.connections.GetConnection(GetConnectionRequest(name="openai"))).connection == revoked


async def test_the_name_of_a_revoked_connection_is_free_again(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    first = (await client.connections.CreateConnection(new_connection(key="sk-one"))).connection
    await client.connections.RevokeConnection(RevokeConnectionRequest(name="openai"))
    second = (await client.connections.CreateConnection(new_connection(key="sk-two"))).connection
    assert second.connection_id != first.connection_id
    assert second.state == CONNECTION_STATE_ACTIVE
    credential = await resolve(auth, workspace_id)
    assert (credential.secret, credential.version) == ("sk-two", 1)


async def test_connections_are_listed_by_name_in_pages(auth: Auth) -> None:
    client, _ = await auth.workspace("acme")
    made = ["b", "a-1", "a", "ab", "z", "a0"]
    for name in made:
        await client.connections.CreateConnection(new_connection(name=name))
    listed, token = [], ""
    while True:
        page = await client.connections.ListConnections(ListConnectionsRequest(page_size=4, page_token=token))
        listed += [connection.name for connection in page.connections]
        token = page.next_page_token
        if not token:
            break
    assert listed == sorted(made)
    keys = await failure(client.connections.ListConnections(ListConnectionsRequest(page_token="x")))
    assert keys.reason == Reason.INVALID_PAGE_TOKEN


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"provider": ""}, "provider"),
        ({"provider": "Open AI"}, "provider"),
        ({"name": "Main"}, "name"),
        ({"name": "1st"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"name": "a\x00"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"key": ""}, "api_key"),
        ({"key": "sk-canary one"}, "api_key"),
        ({"key": "sk-canary\n"}, "api_key"),
        ({"key": "sk-canary\x00"}, "api_key"),
        ({"key": "sk-cänary"}, "api_key"),
        ({"key": "sk-canary" + "x" * 9000}, "api_key"),
        ({"provider": "acme", "name": "acme"}, "base_url"),
        ({"base_url": "models.example"}, "base_url"),
        ({"base_url": "ftp://models.example"}, "base_url"),
        ({"base_url": "https://"}, "base_url"),
        ({"base_url": "https:///v1"}, "base_url"),
        ({"base_url": "https://user:sk-canary@models.example"}, "base_url"),
        ({"base_url": "https://models.example/v1?key=sk-canary"}, "base_url"),
        ({"base_url": "https://models.example/#sk-canary"}, "base_url"),
        ({"base_url": "https://models.example:0/"}, "base_url"),
        ({"base_url": "https://models.example:99999/"}, "base_url"),
        ({"base_url": "https://models.example\\@evil.example/"}, "base_url"),
        ({"base_url": "https://models.example/\nHost: evil"}, "base_url"),
        ({"base_url": "https://mödels.example/"}, "base_url"),
        ({"base_url": "https://[::1/"}, "base_url"),
        ({"base_url": "https://models.example/" + "x" * 2048}, "base_url"),
        ({"request_id": "x" * 129}, "request_id"),
    ],
)
async def test_a_wrong_field_is_named_without_the_secret_and_makes_nothing(
    embedded_auth: Auth, fields, field: str
) -> None:
    client, _ = await embedded_auth.workspace("acme")
    error = await failure(client.connections.CreateConnection(new_connection(**fields)))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.field_violations] == [field]
    assert "canary" not in f"{error.message} {error.metadata} {error.field_violations}"
    assert await names(client) == []


@pytest.mark.parametrize("url", ["http://localhost:8000", "https://[::1]:8080/v1", "HTTPS://models.example/a/b/"])
async def test_an_address_is_kept_as_given(embedded_auth: Auth, url: str) -> None:
    client, _ = await embedded_auth.workspace("acme")
    created = await client.connections.CreateConnection(new_connection(provider="acme", base_url=url))
    assert created.connection.base_url == url


@pytest.mark.parametrize("name", ["", "absent", "Not A Name", "a\x00", "x" * 1000])
async def test_a_connection_that_is_not_there_is_not_found(auth: Auth, name: str) -> None:
    client, _ = await auth.workspace("acme")
    for call in (
        client.connections.GetConnection(GetConnectionRequest(name=name)),
        client.connections.RevokeConnection(RevokeConnectionRequest(name=name, request_id="r1")),
    ):
        error = await failure(call)
        assert (type(error), error.reason) == (NotFound, Reason.CONNECTION_NOT_FOUND)


async def test_a_granted_connection_that_is_not_there_is_not_found(auth: Auth) -> None:
    _, workspace_id = await auth.workspace("acme")
    error = await failure(resolve(auth, workspace_id, "absent"))
    assert (type(error), error.reason) == (NotFound, Reason.CONNECTION_NOT_FOUND)
    # The grant is of one workspace: whoever shows it for another one has no right there, whatever is there.
    grant = await auth.grant(workspace_id, "absent")
    request = use_of("0198c0de-0000-7000-8000-000000000009", "absent", run_grant=grant)
    error = await failure(auth.as_service("executor").credentials.ResolveCredential(request))
    assert (type(error), error.reason) == (PermissionDenied, Reason.RUN_GRANT_INVALID)


async def test_a_repeated_request_is_answered_the_same_and_done_once(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    request = new_connection(key="sk-one", request_id="r1", replace=True)
    first = await client.connections.CreateConnection(request)
    assert await client.connections.CreateConnection(request) == first
    assert (await resolve(auth, workspace_id)).version == 1
    await client.connections.CreateConnection(new_connection(key="sk-two", replace=True))
    # Late repetition: the answer of then, and nothing happens to what is there now.
    assert await client.connections.CreateConnection(request) == first
    assert (await resolve(auth, workspace_id)).secret == "sk-two"


async def test_a_repeated_revocation_spares_what_was_made_since(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    await client.connections.CreateConnection(new_connection(key="sk-one"))
    request = RevokeConnectionRequest(name="openai", request_id="r1")
    first = await client.connections.RevokeConnection(request)
    await client.connections.CreateConnection(new_connection(key="sk-two"))
    assert await client.connections.RevokeConnection(request) == first
    assert (await resolve(auth, workspace_id)).secret == "sk-two"


@pytest.mark.parametrize(
    "other", [{"key": "sk-two"}, {"replace": True}, {"base_url": "https://a.example"}, {"name": "b"}]
)
async def test_a_request_id_with_other_content_is_refused(auth: Auth, other) -> None:
    client, workspace_id = await auth.workspace("acme")
    await client.connections.CreateConnection(new_connection(key="sk-one", request_id="r1"))
    error = await failure(client.connections.CreateConnection(new_connection(request_id="r1", **other)))
    assert (type(error), error.reason) == (InvalidArgument, Reason.REQUEST_ID_REUSED)
    assert (await resolve(auth, workspace_id)).secret == "sk-one"


async def test_of_several_with_one_name_one_is_made_across_replicas(settings: AuthSettings) -> None:
    async with running(settings) as one, running(settings) as two:
        workspace_id, key = await make_key(settings, "acme")
        clients = [one.as_bearer(key), two.as_bearer(key)]
        outcomes = await asyncio.gather(
            *(
                clients[n % 2].connections.CreateConnection(new_connection(key=f"sk-{n}", base_url=f"https://{n}.test"))
                for n in range(12)
            ),
            return_exceptions=True,
        )
        made = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert len(made) == 1
        for replica in (one, two):
            credential = await resolve(replica, workspace_id)
            assert credential.base_url == made[0].connection.base_url == f"https://{credential.secret[3:]}.test"


async def test_the_same_request_at_the_same_time_is_done_once_across_replicas(settings: AuthSettings) -> None:
    async with running(settings) as one, running(settings) as two:
        workspace_id, key = await make_key(settings, "acme")
        clients = [one.as_bearer(key), two.as_bearer(key)]
        request = new_connection(request_id="r1")
        answers = await asyncio.gather(*(clients[n % 2].connections.CreateConnection(request) for n in range(8)))
        assert all(answer == answers[0] for answer in answers)
        assert (await resolve(one, workspace_id)).version == 1
        created = [record for record in await audit_of(settings, workspace_id) if record.action == "connection.create"]
        assert len(created) == 1


async def test_replacements_at_the_same_time_leave_one_whole_connection(settings: AuthSettings) -> None:
    async with running(settings) as one, running(settings) as two:
        workspace_id, key = await make_key(settings, "acme")
        clients = [one.as_bearer(key), two.as_bearer(key)]
        await asyncio.gather(
            *(
                clients[n % 2].connections.CreateConnection(
                    new_connection(key=f"sk-{n}", base_url=f"https://{n}.test", replace=True)
                )
                for n in range(12)
            )
        )
    async with running(settings) as fresh:
        credential = await resolve(fresh, workspace_id)
        assert credential.version == 12
        assert credential.base_url == f"https://{credential.secret[3:]}.test"


@pytest.mark.parametrize(
    "error",
    [Unavailable("the store is away"), ResourceExhausted("the store is full", reason=Reason.STORAGE_FULL)],
    ids=["away", "full"],
)
async def test_a_secret_that_cannot_be_stored_leaves_no_connection(settings: AuthSettings, error) -> None:
    secrets = MemorySecretStore()
    async with running(settings, secrets=secrets) as auth:
        client, workspace_id = await auth.workspace("acme")
        secrets.fail_before = error
        refused = await failure(client.connections.CreateConnection(new_connection(request_id="r1")))
        assert (type(refused), refused.reason) == (type(error), error.reason)
        assert await names(client) == []
        secrets.fail_before = None
        await client.connections.CreateConnection(new_connection(request_id="r1"))
        assert (await resolve(auth, workspace_id)).secret == "sk-test-1"


async def test_a_lost_answer_of_the_store_leaves_neither_connection_nor_secret(settings: AuthSettings) -> None:
    secrets = MemorySecretStore()
    async with running(settings, secrets=secrets) as auth:
        client, _ = await auth.workspace("acme")
        secrets.fail_after = Unavailable("the answer is lost")
        assert type(await failure(client.connections.CreateConnection(new_connection()))) is Unavailable
        assert await names(client) == []
        assert secrets.secrets == {}


async def test_a_secret_that_cannot_be_deleted_now_is_swept_later(settings: AuthSettings) -> None:
    secrets = MemorySecretStore()
    async with running(settings, secrets=secrets) as auth:
        client, workspace_id = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection())
        secrets.fail_before = Unavailable("the store is away")
        await client.connections.RevokeConnection(RevokeConnectionRequest(name="openai"))
        assert type(await failure(resolve(auth, workspace_id))) is NotFound
        assert len(secrets.secrets) == 1
    secrets.fail_before = None
    swept = asyncio.Event()
    delete = secrets.delete

    class Watched(MemorySecretStore):
        async def delete(self, path: str) -> None:
            await delete(path)
            swept.set()

    async with running(settings, secrets=Watched()), asyncio.timeout(10):
        await swept.wait()
    assert secrets.secrets == {}
