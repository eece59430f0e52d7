"""Refused keys and tokens are in the audit of their workspace, or of the installation, and no guessing fills it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast.api.auth.v1 import audit_service_pb2 as audit_pb2
from holdfast.api.auth.v1.api_key_service_pb2 import CreateApiKeyRequest, RevokeApiKeyRequest, VerifyApiKeyRequest
from holdfast.api.auth.v1.workspace_service_pb2 import CloseWorkspaceRequest, DeleteWorkspaceRequest
from holdfast.audit_chain import ChainCheck
from holdfast.errors import FailedPrecondition, NotFound, PermissionDenied, Unauthenticated, Unavailable
from services.auth.api_keys import generate_key
from services.auth.app import open_core
from services.auth.callers import ADMIN, Caller
from services.auth.refusals import MAX_SOURCES, MAX_STRANGERS_SOURCES, OTHER_SOURCES, RefusalCounter
from services.auth.settings import AuthSettings
from services.auth.store import INSTALLATION_ID, ApiKey, AuditRecord, Refusals
from services.auth.tables import audit_records
from services.shared.clock import SystemClock
from services.shared.key_form import checksum
from tests.auth.support import TOKEN, Auth, audit_of, failure, key_of, running, settings_for, sqlite_url
from tests.auth.test_audit import database
from tests.fakes.clock import FakeClock
from tests.repository.tree import ROOT


class Records:
    """Takes records, unless it is away; may lose its answers."""

    def __init__(self) -> None:
        self.stored: dict[str, Refusals] = {}
        self.is_away = False
        self.loses_answers = False

    async def append_refusals(self, refusals: Sequence[Refusals]) -> None:
        """See `AuthStore.append_refusals`."""
        if self.is_away:
            raise Unavailable("away")
        self.stored |= {item.record_id: item for item in refusals}
        if self.loses_answers:
            raise Unavailable("the answer was lost")

    def counts(self) -> dict[tuple[str, str], int]:
        """Attempts by key, or kind, and source."""
        found: Counter[tuple[str, str]] = Counter()
        for item in self.stored.values():
            found[item.api_key_id or item.action, item.details["source"]] += int(item.details["count"])
        return dict(found)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def counter(records: Records, clock: FakeClock) -> RefusalCounter:
    return RefusalCounter(records, clock)  # type: ignore[arg-type]


def key(clock: FakeClock, number: int = 1) -> ApiKey:
    return ApiKey(workspace_id="w1", api_key_id=f"k{number}", display_name="", scopes=(), create_time=clock.now())


def note(counter: RefusalCounter, of: ApiKey, peer: str) -> None:
    counter.note_key(of, peer=peer, outcome="API_KEY_INVALID", why="wrong_secret")


async def test_a_minute_of_guesses_from_one_place_is_one_record(
    counter: RefusalCounter, records: Records, clock: FakeClock
) -> None:
    for port in range(1_000):
        note(counter, key(clock), f"ipv4:10.0.0.1:{port + 1}")
    await counter.write()
    assert not records.stored, "the minute is not over"
    await clock.advance(60)
    note(counter, key(clock), "ipv4:10.0.0.1:1")
    await counter.write()
    [record] = records.stored.values()
    assert record.details == {"count": "1000", "source": "10.0.0.1", "why": "wrong_secret"}
    assert (record.outcome, record.time) == ("API_KEY_INVALID", clock.now() - timedelta(minutes=1))
    await counter.write(is_last=True)
    assert records.counts() == {("k1", "10.0.0.1"): 1_001}


async def test_places_beyond_the_first_few_are_one(counter: RefusalCounter, records: Records, clock: FakeClock) -> None:
    for host in range(200):
        note(counter, key(clock), f"ipv4:10.0.0.{host}:1")
        note(counter, key(clock), f"ipv6:[2001:db8::{host:x}]:1")
    note(counter, key(clock, 2), "ipv4:10.0.0.9:1")
    await counter.write(is_last=True)
    of_first = {source: count for (name, source), count in records.counts().items() if name == "k1"}
    assert len(of_first) == MAX_SOURCES + 1
    assert sum(of_first.values()) == 400
    # All of a network that one customer is given is one place.
    assert of_first["2001:db8::/64"] == 200
    assert OTHER_SOURCES in of_first
    assert records.counts()["k2", "10.0.0.9"] == 1


async def test_a_flood_of_strangers_from_everywhere_is_a_few_records(
    counter: RefusalCounter, records: Records, clock: FakeClock
) -> None:
    for number in range(5_000):
        peer = f"ipv4:10.{number % 250}.{number // 250}.1:1"
        counter.note_nobodys_key(peer=peer, outcome="API_KEY_INVALID", why="unknown")
        counter.note_token(peer=peer, outcome="TOKEN_INVALID", why="signature")
    note(counter, key(clock), "ipv4:10.0.0.1:1")
    await counter.write(is_last=True)
    assert len(records.stored) == 2 * (MAX_STRANGERS_SOURCES + 1) + 1
    for action in ("api_key.refuse", "token.refuse"):
        of_action = {source: count for (name, source), count in records.counts().items() if name == action}
        assert sum(of_action.values()) == 5_000
        assert OTHER_SOURCES in of_action
    of_strangers = [item for item in records.stored.values() if item.api_key_id is None]
    assert {item.workspace_id for item in of_strangers} == {INSTALLATION_ID}


async def test_a_record_is_kept_while_the_storage_is_away_and_written_once(
    counter: RefusalCounter, records: Records, clock: FakeClock
) -> None:
    note(counter, key(clock), "ipv4:10.0.0.1:1")
    await clock.advance(60)
    records.is_away = True
    with pytest.raises(Unavailable):
        await counter.write()
    records.is_away, records.loses_answers = False, True
    with pytest.raises(Unavailable):
        await counter.write()
    records.loses_answers = False
    await counter.write()
    assert records.counts() == {("k1", "10.0.0.1"): 1}


def refusals(records: Sequence[AuditRecord]) -> Counter[tuple[str, str]]:
    """Attempts by outcome and details, whatever the minute."""
    found: Counter[tuple[str, str]] = Counter()
    for record in records:
        if record.action in ("api_key.refuse", "token.refuse"):
            assert record.actor == "nobody"
            details = json.loads(record.details or "")
            found[record.outcome, f"{record.api_key_id} {details['source']} {details['why']}"] += int(details["count"])
    return found


async def test_refused_keys_are_in_their_workspaces_trail_and_others_in_the_installations(
    settings: AuthSettings,
) -> None:
    async with running(replace(settings, auth_failures_per_minute=0)) as auth:
        admin, workspace_id = await auth.workspace("acme")
        executor = auth.as_service("executor")
        made = await admin.api_keys.CreateApiKey(CreateApiKeyRequest(scopes=["runs:read"], networks=["10.1.0.0/16"]))
        key_id = made.api_key.api_key_id
        body = made.secret[:-7] + ("A" if made.secret[-7] != "A" else "B")
        wrong = body + checksum(body)

        async def shown(secret: str, peer: str) -> None:
            request = VerifyApiKeyRequest(secret=secret, peer=peer)
            assert type(await failure(executor.api_keys.VerifyApiKey(request))) is Unauthenticated

        for port in (1, 2):
            await shown(wrong, f"ipv4:10.0.0.7:{port}")
        await shown(generate_key()[1].reveal(), "ipv4:10.0.0.7:3")
        await executor.api_keys.VerifyApiKey(VerifyApiKeyRequest(secret=made.secret, peer="ipv4:10.2.0.1:1"))
        await executor.api_keys.VerifyApiKey(VerifyApiKeyRequest(secret=made.secret, peer="ipv4:10.1.0.1:1"))
        await admin.api_keys.RevokeApiKey(RevokeApiKeyRequest(api_key_id=key_id))
        await shown(made.secret, "")
        # Auth's own callers are seen by auth itself.
        assert (
            type(await failure(auth.as_bearer(wrong).api_keys.CreateApiKey(CreateApiKeyRequest()))) is Unauthenticated
        )
    found = refusals(await audit_of(settings, workspace_id))
    assert found == {
        ("API_KEY_INVALID", f"{key_id} 10.0.0.7 wrong_secret"): 2,
        ("API_KEY_INVALID", f"{key_id} 127.0.0.1 wrong_secret"): 1,
        ("API_KEY_INVALID", f"{key_id} unknown revoked"): 1,
        ("ADDRESS_NOT_ALLOWED", f"{key_id} 10.2.0.1 address"): 1,
    }
    found = refusals(await audit_of(settings, INSTALLATION_ID))
    assert found == {("API_KEY_INVALID", "None 10.0.0.7 unknown"): 1}


async def strangers_key(auth: Auth) -> None:
    """Somebody shows a key that no workspace has."""
    request = VerifyApiKeyRequest(secret=generate_key()[1].reveal(), peer="ipv4:10.0.0.7:1")
    assert type(await failure(auth.as_service("executor").api_keys.VerifyApiKey(request))) is Unauthenticated


async def test_the_operator_reads_and_checks_the_installations_trail_and_nobody_else_does(
    settings: AuthSettings,
) -> None:
    async with running(settings) as auth:
        admin, workspace_id = await auth.workspace("acme")
        await strangers_key(auth)
    async with running(settings) as auth:
        operator, admin = auth.as_service("operator"), auth.as_bearer(key_of(workspace_id))

        async def verdicts() -> dict[str, str]:
            answers = operator.audit.CheckAuditTrails(audit_pb2.CheckAuditTrailsRequest())
            return {item.workspace: audit_pb2.AuditFlaw.Name(item.verdict.flaw) async for item in answers}

        [record] = (await operator.audit.ListAuditRecords(audit_pb2.ListAuditRecordsRequest())).records
        assert (record.actor, record.action, record.outcome) == ("nobody", "api_key.refuse", "API_KEY_INVALID")
        assert dict(record.details) == {"count": "1", "source": "10.0.0.7", "why": "unknown"}
        seen = (await admin.audit.ListAuditRecords(audit_pb2.ListAuditRecordsRequest())).records
        assert record.record_id not in {item.record_id for item in seen}
        error = await failure(auth.as_service("executor").audit.ListAuditRecords(audit_pb2.ListAuditRecordsRequest()))
        assert type(error) is PermissionDenied
        verdict = await operator.audit.VerifyAuditTrail(audit_pb2.VerifyAuditTrailRequest())
        assert (verdict.record_count, verdict.flaw) == (1, 0)
        pieces = operator.audit.ExportAuditRecords(audit_pb2.ExportAuditRecordsRequest())
        check = ChainCheck(anchor=bytes.fromhex(verdict.head_hash))
        async for piece in pieces:
            for line in piece.lines:
                check.take_line(line)
        exported = check.finish(last_seq=2)
        assert (exported.problem, exported.anchor_seq) == (None, 1)
        assert await verdicts() == {"": "AUDIT_FLAW_UNSPECIFIED", "acme": "AUDIT_FLAW_UNSPECIFIED"}
        async with database(settings) as db:
            is_it = audit_records.c.workspace_id == INSTALLATION_ID, audit_records.c.seq == 1
            edit = audit_records.update().where(*is_it).values(details="{}")
            await db.write(lambda connection: connection.execute(edit))
        assert await verdicts() == {"": "AUDIT_FLAW_EDITED", "acme": "AUDIT_FLAW_UNSPECIFIED"}
        verdict = await operator.audit.VerifyAuditTrail(audit_pb2.VerifyAuditTrailRequest())
        assert (audit_pb2.AuditFlaw.Name(verdict.flaw), verdict.flaw_seq) == ("AUDIT_FLAW_EDITED", 1)


async def test_a_trail_with_nothing_on_it_is_intact_and_begins_with_its_export(embedded_auth: Auth) -> None:
    operator = embedded_auth.as_service("operator")
    verdict = await operator.audit.VerifyAuditTrail(audit_pb2.VerifyAuditTrailRequest())
    assert (verdict.record_count, verdict.flaw) == (0, 0)
    pieces = operator.audit.ExportAuditRecords(audit_pb2.ExportAuditRecordsRequest())
    [line] = [line async for piece in pieces for line in piece.lines]
    assert json.loads(line)["actor"] == "service:operator"


async def test_replicas_that_begin_the_installations_trail_at_once_write_one(settings: AuthSettings) -> None:
    async with AsyncExitStack() as stack:
        cores = [
            await stack.enter_async_context(open_core(settings, asyncio.Event(), clock=SystemClock())) for _ in range(3)
        ]
        for number, core in enumerate(cores):
            core.refusals.note_nobodys_key(peer=f"ipv4:10.0.0.{number}:1", outcome="API_KEY_INVALID", why="unknown")
        await asyncio.gather(*(core.refusals.write(is_last=True) for core in cores))
    assert len(await audit_of(settings, INSTALLATION_ID)) == 3


async def test_the_installation_is_no_workspace_that_anybody_could_be_in(auth: Auth) -> None:
    operator = auth.as_service("operator")
    async for _ in operator.audit.ExportAuditRecords(audit_pb2.ExportAuditRecordsRequest()):
        """Its trail begins."""
    for name in ("", INSTALLATION_ID):
        for call in (
            operator.workspaces.CloseWorkspace(CloseWorkspaceRequest(name=name)),
            operator.workspaces.DeleteWorkspace(DeleteWorkspaceRequest(name=name)),
        ):
            assert type(await failure(call)) is NotFound
    async with open_core(auth.settings, asyncio.Event(), clock=SystemClock()) as core:
        assert await core.workspaces.find("") is None
        with pytest.raises(FailedPrecondition):
            await core.api_keys.create(
                Caller(INSTALLATION_ID, "test", frozenset({ADMIN})), display_name="", scopes=[ADMIN]
            )


async def holdfast(auth: Auth, *arguments: str) -> tuple[int, str]:
    """Runs the operator's command beside a running auth."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "HOLDFAST_AUTH_ADDRESS": auth.address,
        "HOLDFAST_SERVICE_TOKEN": TOKEN,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "holdfast.cli", *arguments, env=environ, cwd=ROOT, stdout=PIPE, stderr=STDOUT
    )
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()


async def test_the_operators_command_lists_checks_and_exports_it(tmp_path: Path) -> None:
    settings = settings_for(sqlite_url(tmp_path))
    async with running(settings) as auth:
        await strangers_key(auth)
    out = str(tmp_path / "audit.ndjson")
    async with asyncio.timeout(60), running(settings) as auth:
        code, printed = await holdfast(auth, "audit", "list", "--installation", "--refused", "--json")
        assert code == 0, printed
        assert [record["action"] for record in json.loads(printed)] == ["api_key.refuse"]
        code, printed = await holdfast(auth, "audit", "verify", "--installation", "--json")
        assert (code, json.loads(printed)["result"]) == (0, "OK")
        anchor = json.loads(printed)["head_hash"]
        code, printed = await holdfast(auth, "audit", "export", "--installation", "--out", out)
        assert code == 0, printed
        code, printed = await holdfast(auth, "audit", "verify", "--file", out, "--anchor", anchor, "--json")
        assert (code, json.loads(printed)["records"]) == (0, 2)
        async with database(settings) as db:
            edit = audit_records.update().where(audit_records.c.seq == 1).values(outcome="OK")
            await db.write(lambda connection: connection.execute(edit))
        code, printed = await holdfast(auth, "audit", "verify", "--installation", "--json")
        assert (code, json.loads(printed)["flaw"]["kind"]) == (1, "EDITED")
