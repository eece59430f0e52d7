"""Refused attempts to use a key are in the audit, and whoever guesses cannot fill it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from holdfast.api.auth.v1.api_key_service_pb2 import CreateApiKeyRequest, RevokeApiKeyRequest, VerifyApiKeyRequest
from holdfast.errors import Unauthenticated, Unavailable
from services.auth.api_keys import generate_key
from services.auth.key_failures import MAX_SOURCES, OTHER_SOURCES, KeyFailureCounter
from services.auth.settings import AuthSettings
from services.auth.store import ApiKey, AuditRecord, KeyFailures
from services.shared.key_form import checksum
from tests.auth.support import audit_of, failure, running
from tests.fakes.clock import FakeClock


class Records:
    """Takes records, unless it is away; may lose its answers."""

    def __init__(self) -> None:
        self.stored: dict[str, KeyFailures] = {}
        self.is_away = False
        self.loses_answers = False

    async def append_key_failures(self, failures: Sequence[KeyFailures]) -> None:
        """See `AuthStore.append_key_failures`."""
        if self.is_away:
            raise Unavailable("away")
        self.stored |= {item.record_id: item for item in failures}
        if self.loses_answers:
            raise Unavailable("the answer was lost")

    def counts(self) -> dict[tuple[str, str], int]:
        """Attempts by key and source."""
        found: Counter[tuple[str, str]] = Counter()
        for item in self.stored.values():
            found[item.api_key_id, item.details["source"]] += int(item.details["count"])
        return dict(found)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def counter(records: Records, clock: FakeClock) -> KeyFailureCounter:
    return KeyFailureCounter(records, clock)  # type: ignore[arg-type]


def key(clock: FakeClock, number: int = 1) -> ApiKey:
    return ApiKey(workspace_id="w1", api_key_id=f"k{number}", display_name="", scopes=(), create_time=clock.now())


def note(counter: KeyFailureCounter, of: ApiKey, peer: str) -> None:
    counter.note(of, peer=peer, outcome="API_KEY_INVALID", why="wrong_secret")


async def test_a_minute_of_guesses_from_one_place_is_one_record(
    counter: KeyFailureCounter, records: Records, clock: FakeClock
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


async def test_places_beyond_the_first_few_are_one(
    counter: KeyFailureCounter, records: Records, clock: FakeClock
) -> None:
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


async def test_a_record_is_kept_while_the_storage_is_away_and_written_once(
    counter: KeyFailureCounter, records: Records, clock: FakeClock
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
        if record.action == "api_key.refuse":
            assert record.actor == "nobody"
            details = json.loads(record.details or "")
            found[record.outcome, f"{record.api_key_id} {details['source']} {details['why']}"] += int(details["count"])
    return found


async def test_refused_keys_are_in_their_workspaces_trail_and_others_in_nobodys(settings: AuthSettings) -> None:
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
