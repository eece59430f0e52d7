"""Run grants: only auth makes them, for a caller who shows a credential; an altered or foreign one is worth nothing."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from datetime import timedelta

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from holdfast.api.auth.v1 import grant_service_pb2 as pb
from holdfast.errors import InvalidArgument, PermissionDenied, Reason, Unauthenticated
from holdfast.ids import new_uuid7
from services.auth.grants import GRANT_LIFETIME, GrantedConnection, RunGrant, RunGrants
from services.auth.keyring import Keyring
from services.auth.sealing import MasterKey
from services.shared.identity import Identity
from tests.auth.support import RUN, Auth, failure, make_key
from tests.fakes.clock import FakeClock

WORKSPACE = "0198c0de-0000-7000-8000-00000000000a"
CALLER = Identity("api_key", workspace_id=WORKSPACE, key_id="k1", scopes=frozenset({"runs:write"}))
GITHUB = GrantedConnection("github", ("repo",))


def _keyring(grant_key: bytes = b"g" * 32) -> Keyring:
    kept = defaultdict(lambda: b"x" * 32, {"run-grants": grant_key})
    return Keyring(MasterKey.generate(), "store", 1, kept)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def grants(clock: FakeClock) -> RunGrants:
    return RunGrants(_keyring(), clock)


def _issue(grants: RunGrants, caller: Identity = CALLER, **changes: object) -> str:
    arguments: dict = {"run_id": RUN, "user_id": "u1", "agent": "support", "connections": [GITHUB], **changes}
    return grants.issue(caller, **arguments)[0]


def test_grant_says_what_was_granted(grants: RunGrants) -> None:
    found = grants.verify(_issue(grants), workspace_id=WORKSPACE, run_id=RUN)
    assert (found.user_id, found.agent, found.connections, found.issued_to) == ("u1", "support", (GITHUB,), "key:k1")
    assert found.connection("github") == GITHUB
    assert found.connection("gitlab") is None


def test_grant_of_another_run_workspace_or_key_is_refused(grants: RunGrants, clock: FakeClock) -> None:
    grant = _issue(grants)
    for where in ({"run_id": new_uuid7()}, {"workspace_id": new_uuid7(), "run_id": RUN}):
        with pytest.raises(PermissionDenied) as caught:
            grants.verify(grant, **{"workspace_id": WORKSPACE, **where})
        assert caught.value.reason == Reason.RUN_GRANT_INVALID
    with pytest.raises(PermissionDenied):
        RunGrants(_keyring(b"h" * 32), clock).verify(grant, workspace_id=WORKSPACE)


def test_altered_grant_is_refused(grants: RunGrants) -> None:
    header, payload, signature = _issue(grants).split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims["sub"] = "u2"
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"run-grant+jwt"}').rstrip(b"=").decode()
    other_type = jwt.encode({"alg": "HS256", "typ": "JWT"}, claims, OctKey.import_key(b"g" * 32), ["HS256"])
    for grant in (f"{header}.{forged}.{signature}", f"{unsigned}.{payload}.", other_type, "", "a.b.c", "é"):
        with pytest.raises(PermissionDenied):
            grants.verify(grant, workspace_id=WORKSPACE)


async def test_expired_grant_is_refused(grants: RunGrants, clock: FakeClock) -> None:
    grant = _issue(grants)
    await clock.advance((GRANT_LIFETIME + timedelta(seconds=1)).total_seconds())
    with pytest.raises(PermissionDenied):
        grants.verify(grant, workspace_id=WORKSPACE)


def test_caller_that_may_start_no_runs_gets_no_grant(grants: RunGrants) -> None:
    reader = Identity("api_key", workspace_id=WORKSPACE, key_id="k2", scopes=frozenset({"runs:read"}))
    service = Identity("service", service="executor")
    for caller in (reader, service):
        with pytest.raises(PermissionDenied):
            _issue(grants, caller)


def test_person_gets_a_grant_for_themselves_alone(grants: RunGrants) -> None:
    scopes = frozenset({"runs:write"})
    person = Identity("person", workspace_id=WORKSPACE, user_id="u1", scopes=scopes)
    assert grants.verify(_issue(grants, person), workspace_id=WORKSPACE).issued_to == "user:u1"
    for user_id in ("u2", ""):
        with pytest.raises(PermissionDenied):
            _issue(grants, person, user_id=user_id)
    helper = Identity("person", workspace_id=WORKSPACE, user_id="u3", scopes=scopes | {"connections:impersonate"})
    assert _issue(grants, helper)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("run_id", {"run_id": "run"}),
        ("user_id", {"user_id": "u" * 257}),
        ("agent", {"agent": "No Name"}),
        ("connections", {"connections": []}),
        ("connections", {"connections": [GITHUB] * 201}),
        ("connections[0].name", {"connections": [GrantedConnection("../x")]}),
        ("connections[0].scopes", {"connections": [GrantedConnection("github", ("two words",))]}),
    ],
)
def test_bad_field_is_named(grants: RunGrants, field: str, changes: dict) -> None:
    with pytest.raises(InvalidArgument) as caught:
        _issue(grants, **changes)
    assert [violation.field for violation in caught.value.field_violations] == [field]


CHILD = new_uuid7()


def _derive(grants: RunGrants, *wanted: GrantedConnection, **changes: object) -> RunGrant | None:
    arguments: dict = {"workspace_id": WORKSPACE, "parent_run_id": RUN, "run_id": CHILD, "agent": "helper", **changes}
    parent = arguments.pop("parent", None) or _issue(grants)
    derived = grants.derive(parent, connections=wanted, **arguments)
    return None if derived is None else grants.verify(derived[0], workspace_id=WORKSPACE, run_id=CHILD)


async def test_derived_grant_is_of_the_same_user_and_ends_with_the_other(grants: RunGrants, clock: FakeClock) -> None:
    parent = _issue(grants)
    await clock.advance(3_600)
    found = _derive(grants, GITHUB, parent=parent)
    assert found is not None
    before = grants.verify(parent, workspace_id=WORKSPACE)
    assert (found.run_id, found.agent, found.user_id, found.issued_to) == (CHILD, "helper", "u1", "key:k1")
    assert found.expire_time == before.expire_time


@pytest.mark.parametrize(
    ("has", "wants", "gets"),
    [
        (("read", "write"), ("write", "admin"), ("write",)),
        (("read",), ("admin",), None),
        (("read",), (), ("read",)),
        ((), ("read",), ("read",)),
        ((), (), ()),
    ],
)
def test_derived_grant_has_what_both_have(
    grants: RunGrants, has: tuple[str, ...], wants: tuple[str, ...], gets: tuple[str, ...] | None
) -> None:
    parent = _issue(grants, connections=[GrantedConnection("github", has)])
    found = _derive(grants, GrantedConnection("github", wants), GrantedConnection("gitlab"), parent=parent)
    assert (found is None) == (gets is None)
    assert found is None or found.connections == (GrantedConnection("github", gets or ()),)


def test_derived_grant_needs_the_valid_grant_of_that_run(grants: RunGrants) -> None:
    for changes in ({"parent": "a.b.c"}, {"parent_run_id": new_uuid7()}, {"workspace_id": new_uuid7()}):
        with pytest.raises(PermissionDenied) as caught:
            _derive(grants, GITHUB, **changes)
        assert caught.value.reason == Reason.RUN_GRANT_INVALID
    for field in ({"run_id": "run"}, {"agent": "No Name"}):
        with pytest.raises(InvalidArgument):
            _derive(grants, GITHUB, **field)


async def test_only_an_executor_derives_grants(auth: Auth) -> None:
    _, key = await make_key(auth.settings, "acme")
    executor = auth.as_service("executor")
    issued = await executor.grants.IssueRunGrant(
        pb.IssueRunGrantRequest(
            caller_credential=key, run_id=RUN, agent="support", connections=[pb.GrantedConnection(name="github")]
        )
    )
    request = pb.DeriveRunGrantRequest(
        workspace_id=new_uuid7(),
        parent_run_id=RUN,
        parent_run_grant=issued.run_grant,
        run_id=CHILD,
        agent="helper",
        connections=[pb.GrantedConnection(name="github")],
    )
    assert isinstance(await failure(executor.grants.DeriveRunGrant(request)), PermissionDenied)
    for other in (auth.as_service("trace"), auth.as_bearer(key)):
        assert isinstance(await failure(other.grants.DeriveRunGrant(request)), PermissionDenied)


async def test_executor_gets_a_grant_only_with_the_callers_own_credential(auth: Auth) -> None:
    _, key = await make_key(auth.settings, "acme")
    request = pb.IssueRunGrantRequest(
        caller_credential=key,
        run_id=RUN,
        user_id="u1",
        agent="support",
        connections=[pb.GrantedConnection(name="github")],
    )
    executor = auth.as_service("executor")
    answer = await executor.grants.IssueRunGrant(request)
    assert answer.run_grant.count(".") == 2
    assert answer.HasField("expire_time")
    request.caller_credential = "hfst_somebody"
    assert isinstance(await failure(executor.grants.IssueRunGrant(request)), Unauthenticated)
    for other in (auth.as_service("trace"), auth.as_bearer(key)):
        assert isinstance(await failure(other.grants.IssueRunGrant(request)), PermissionDenied)
