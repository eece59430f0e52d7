"""The tables of a comparison: ratios are formed inside one round, and what is missing stays missing."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.figures import Column, limit_table, median_table, ratio_table, ratios, spread

RATE = Column("steps_per_s", "steps/s", 0, more_is_better=True)
TIME = Column("step_p50_ms", "step p50 ms", 1)


def row(system: str, round_: int, rate: float, time: float | None = None, concurrency: int = 32) -> dict[str, Any]:
    return {
        "system": system,
        "round": round_,
        "concurrency": concurrency,
        "steps_per_s": rate,
        "step_p50_ms": time,
    }


def test_a_spread_is_the_median_with_its_range() -> None:
    found = spread([3.0, None, 1.0, 8.0])
    assert found is not None
    assert (found.median, found.smallest, found.largest, found.count) == (3.0, 1.0, 8.0, 3)
    assert found.text(1) == "3.0 (1.0–8.0)"
    assert spread([None]) is None


def test_ratios_compare_only_inside_a_round() -> None:
    # Rounds differ by a factor of ten, as on a machine that others use; the ratio is 4 in one and 2 in the other.
    rows = [row("holdfast", 0, 4000), row("dbos", 0, 1000), row("holdfast", 1, 200), row("dbos", 1, 100)]
    assert ratios(rows, "dbos", 32, RATE) == [4.0, 2.0]
    assert "3.00 (2.00–4.00)" in ratio_table(rows, [RATE])


def test_a_ratio_above_one_means_ahead_also_where_less_is_better() -> None:
    rows = [row("holdfast", 0, 1, time=2.0), row("dbos", 0, 1, time=6.0)]
    assert ratios(rows, "dbos", 32, TIME) == [3.0]


def test_a_round_that_one_of_the_two_missed_has_no_ratio() -> None:
    rows = [row("holdfast", 0, 400), row("holdfast", 1, 300), row("dbos", 1, 100), row("dbos", 2, 1)]
    assert ratios(rows, "dbos", 32, RATE) == [3.0]


def test_a_value_that_was_not_measured_has_no_ratio_and_an_empty_cell() -> None:
    rows = [row("holdfast", 0, 400, time=1.0), row("dbos", 0, 100, time=None)]
    assert ratios(rows, "dbos", 32, TIME) == []
    table = ratio_table(rows, [RATE, TIME])
    assert table.splitlines()[-1].split("|")[1:-1] == [" 32   ", " dbos ", " 1      ", " 4.00    ", " –           "]


def test_concurrencies_do_not_mix() -> None:
    rows = [row("holdfast", 0, 400, concurrency=1), row("dbos", 0, 100, concurrency=32)]
    assert ratios(rows, "dbos", 1, RATE) == []
    lines = median_table(rows, [RATE]).splitlines()
    assert [line.split("|")[1:3] for line in lines[2:]] == [[" 1    ", " holdfast "], [" 32   ", " dbos     "]]


def test_the_share_of_the_limit_is_taken_inside_the_round() -> None:
    rows = [row("holdfast", 0, 2_000), row("holdfast", 1, 3_000), row("dbos", 0, 10)]
    limits = [{"round": 0, "rows_per_s_of_0_bytes": 10_000}, {"round": 1, "rows_per_s_of_0_bytes": 10_000}]
    assert "0.250 (0.200–0.300)" in limit_table(rows, limits)
