"""The simulation in small: it is deterministic, and shows fairness, take-over and prompt timers."""

from __future__ import annotations

import pytest

from benchmarks.simulation.report import plot, tables
from benchmarks.simulation.scenarios import Result, Size, executor_loss, tenant_burst, thundering_timers

SMALL = Size(executors=10, runs=1_000, replicas=2, tenants=10)


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    return {}


async def test_burst_of_one_tenant_delays_nobody(results: dict[str, Result]) -> None:
    result = results["burst"] = await tenant_burst(SMALL, seed=1)
    figures = result.figures
    assert figures["wait of a trickling tenant, worst ms"] < 5_000
    assert 0 < figures["runs of the limited tenant at once, most"] <= figures["its limit"]
    # So few runs are a few turns each: far from equal only if one of them had everything.
    assert figures["Jain index of the ten with a backlog, by weight"] > 0.7


async def test_runs_of_lost_executors_are_taken_over(results: dict[str, Result]) -> None:
    result = results["loss"] = await executor_loss(SMALL, seed=1)
    assert result.figures["runs lost"] > 0
    assert result.figures["not taken over"] == 0
    assert result.figures["take-over after a kill, p99 s"] < 3
    assert result.figures["take-over after silence, p99 s"] < 10


async def test_timers_of_one_second_fire_in_time(results: dict[str, Result]) -> None:
    result = results["timers"] = await thundering_timers(SMALL, seed=1)
    assert result.figures["fired"] == SMALL.crowd
    assert result.figures["late, worst ms"] < 200


async def test_same_seed_gives_the_same_figures_and_another_gives_others() -> None:
    first, again, other = [await executor_loss(SMALL, seed) for seed in (5, 5, 6)]
    assert (first.figures, first.series) == (again.figures, again.series)
    assert first.series != other.series
    calls = [{name: (cost.calls, cost.statements) for name, cost in one.costs.items()} for one in (first, again)]
    assert calls[0] == calls[1]


def test_report_shows_every_scenario(results: dict[str, Result]) -> None:
    shown = list(results.values()) or [Result("nothing", 1.0)]
    text, picture = tables(shown), plot(shown)
    for result in shown:
        assert result.name in text
        assert result.name in picture
    assert picture.startswith("<svg ")
