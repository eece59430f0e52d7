"""The crash campaign in its short form; the long form is `make campaign`."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

import pytest

from holdfast.api.common.v1 import run_pb2
from tests.campaign import schedule
from tests.campaign.__main__ import plan_of
from tests.campaign.campaign import Outcome, Plan, run_campaign
from tests.campaign.fates import fate_of
from tests.campaign.load import Record
from tests.campaign.verdict import Violation

SEED = 20_284
DATABASES = ("sqlite", "postgresql")
# One of the two campaigns seals what it stores, the other does so by turns.
SEALED = random.Random(SEED).choice(DATABASES)
EXPIRED = run_pb2.RUN_STATE_EXPIRED


@pytest.mark.slow
# Longer than the campaign waits for ends, so that it says itself what has not ended.
@pytest.mark.timeout(300)
@pytest.mark.promise("P1")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
@pytest.mark.promise("P5")
@pytest.mark.promise("P7")
@pytest.mark.promise("P9")
@pytest.mark.promise("P12")
@pytest.mark.parametrize("database", DATABASES)
async def test_a_short_campaign_finds_nothing(database: str) -> None:
    seals = "always" if database == SEALED else "switching"
    plan = Plan(seed=SEED, faults=10, runs=40, window=20, database=database, longest_pause=6.0, seals=seals)
    outcome = await run_campaign(plan)
    print(outcome.report())
    assert not outcome.violations, outcome.report()
    assert sum(outcome.kinds.values()) == plan.faults
    assert len(outcome.records) >= plan.runs
    assert outcome.paused
    assert outcome.children
    # A switch that is undone before state has followed seals nothing.
    assert outcome.sealed_events or seals == "switching"
    assert bool(outcome.switches) is (seals == "switching")
    assert outcome.ends()[EXPIRED] or not any(fate_of(SEED, number).must_expire for number in range(plan.runs))
    assert not outcome.data.exists(), "nothing is kept of a campaign without a finding"


# ------------------------------------------------------------------------------------------------------- the schedule


def test_the_same_seed_gives_the_same_faults() -> None:
    options = {"executors": 2, "states": 2, "workers": 2, "has_postgres": True}
    first, again, other = (schedule.plan(seed, 200, **options) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert first == again != other
    assert {fault.kind for fault in first} == set(schedule._WEIGHTS), "every kind comes"
    assert {fault.target for fault in first} == {0, 1}
    assert any(fault.seconds > 5 for fault in first), "some pauses are longer than a lease"


def test_without_postgresql_it_is_not_crashed() -> None:
    faults = schedule.plan(1, 200, executors=1, states=1, workers=1, has_postgres=False)
    assert schedule.RESTART_POSTGRES not in {fault.kind for fault in faults}


def test_the_same_seed_gives_the_same_fates() -> None:
    first, again, other = ([fate_of(seed, number) for number in range(500)] for seed in (1, 1, 2))
    assert first == again != other
    assert any(len(fate.pauses) > 1 for fate in first)
    assert any(not pause.seconds for fate in first for pause in fate.pauses), "some are resumed at once"
    assert any(fate.cancelled_after is not None and fate.pauses for fate in first)
    assert any(fate.must_expire for fate in first)
    assert any(fate.ttl is not None and not fate.pauses for fate in first)
    assert any(fate.max_model_calls for fate in first) and any(fate.max_tool_calls for fate in first)
    assert sum(bool(fate.pauses) for fate in first) < 200, "most runs are left alone"


# ---------------------------------------------------------------------------------------------------------- the report


def test_a_finding_is_printed_with_its_seed_schedule_and_journal(tmp_path: Path) -> None:
    plan = Plan(seed=77, faults=1, runs=1, longest_pause=6.0, seals="switching", kinds=("kill auth", "kill state"))
    outcome = Outcome(plan, data=tmp_path)
    outcome.happened.append("1.0 s #1 kill executor")
    seen = Record(0, "run-1", "session-1", "agent-1", events=[event(1)])
    outcome.records.append(seen)
    assert "no violations" in outcome.report()
    outcome.violations.append(Violation("something is wrong", "run-1"))
    printed = outcome.report()
    for part in (
        "seed 77 on sqlite, sealed switching",
        "#1 kill executor",
        "run-1: something is wrong",
        "journal of run-1",
    ):
        assert part in printed
    assert printed.count('"seq"') == 1
    # What is stored counts for more than what its watcher was told.
    outcome.journals["run-1"] = [event(1), event(2)]
    assert outcome.report().count('"seq"') == 2
    assert f"kept: {tmp_path}" in printed
    again = re.search(r"python -m tests\.campaign (.*)", printed)
    assert again is not None
    assert plan_of(shlex.split(again[1])) == (plan, False)


def event(seq: int) -> run_pb2.Event:
    return run_pb2.Event(run_id="run-1", seq=seq)
