"""From rows to tables: medians with their range, and the medians of ratios that were formed inside one round."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

BASE: Final = "holdfast"


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some values, and the smallest and largest of them."""

    median: float
    smallest: float
    largest: float
    count: int

    def text(self, digits: int) -> str:
        """For a table, with the range where there is more than one value."""
        shown = f"{self.median:.{digits}f}"
        if self.count == 1:
            return shown
        return f"{shown} ({self.smallest:.{digits}f}–{self.largest:.{digits}f})"


def spread(values: Iterable[float | None]) -> Spread | None:
    """The spread of what was measured; None when nothing was."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    return Spread(statistics.median(found), min(found), max(found), len(found))


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a table.

    Attributes:
        field: Its name in the rows.
        title: Its name for people.
        digits: Decimals that are shown.
        more_is_better: Whether a ratio is Holdfast's value over the peer's or the other way round; either way more than
            1 means that Holdfast is ahead.
    """

    field: str
    title: str
    digits: int
    more_is_better: bool = False


STEP_COLUMNS: Final = (
    Column("steps_per_s", "steps/s", 0, more_is_better=True),
    Column("step_p50_ms", "step p50 ms", 2),
    Column("gap_p50_ms", "gap p50 ms", 2),
    Column("run_p50_ms", "run p50 ms", 1),
    Column("run_p99_ms", "run p99 ms", 1),
    Column("cpu_s_per_1000_steps", "CPU s/1000", 3),
    Column("wal_bytes_per_step", "WAL B/step", 0),
    Column("wal_syncs_per_step", "syncs/step", 3),
    Column("transactions_per_step", "tx/step", 2),
)
_COMPARED: Final = ("steps_per_s", "step_p50_ms", "gap_p50_ms", "cpu_s_per_1000_steps")
RATIO_COLUMNS: Final = tuple(column for column in STEP_COLUMNS if column.field in _COMPARED)

Row = dict[str, Any]
_Key = tuple[int, str]


def median_table(rows: Sequence[Row], columns: Sequence[Column] = STEP_COLUMNS) -> str:
    """A row for each concurrency and system, in the order of their first appearance."""
    groups: dict[_Key, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["concurrency"], row["system"]), []).append(row)
    lines = [["runs", "system", "rounds", *(column.title for column in columns)]]
    for (concurrency, system), group in groups.items():
        cells = [_text(spread(row.get(column.field) for row in group), column.digits) for column in columns]
        lines.append([str(concurrency), system, str(len(group)), *cells])
    return _aligned(lines)


def ratio_table(rows: Sequence[Row], columns: Sequence[Column] = RATIO_COLUMNS) -> str:
    """How many times Holdfast is ahead of each peer, by concurrency."""
    lines = [["runs", "over", "rounds", *(column.title for column in columns)]]
    for concurrency, system in dict.fromkeys((row["concurrency"], row["system"]) for row in rows):
        if system == BASE:
            continue
        found = [ratios(rows, system, concurrency, column) for column in columns]
        if any(found):
            cells = [_text(spread(values), 2) for values in found]
            lines.append([str(concurrency), system, str(max(map(len, found))), *cells])
    return _aligned(lines)


def ratios(rows: Iterable[Row], system: str, concurrency: int, column: Column) -> list[float]:
    """How many times Holdfast is ahead of a peer, for each round in which both were measured.

    Formed inside a round, because what else the machine did then slowed both: a ratio of medians would compare a quiet
    minute of one with a busy minute of the other.
    """
    by_round: dict[int, dict[str, float]] = {}
    for row in rows:
        value = row.get(column.field)
        if row["concurrency"] == concurrency and value:
            by_round.setdefault(row["round"], {})[row["system"]] = value
    pairs = [(found[BASE], found[system]) for found in by_round.values() if BASE in found and system in found]
    return [ours / theirs if column.more_is_better else theirs / ours for ours, theirs in pairs]


def limit_table(rows: Sequence[Row], limits: Sequence[Row]) -> str:
    """Holdfast's steps a second as a share of the rows a second that the database takes, inside the same round."""
    fields = list(dict.fromkeys(key for row in limits for key in row if key.startswith("rows_per_s")))
    lines = [["runs", "rounds", *fields]]
    for concurrency in dict.fromkeys(row["concurrency"] for row in rows):
        shares = {
            field: [
                row["steps_per_s"] / limit[field]
                for row in rows
                for limit in limits
                if row["system"] == BASE and row["concurrency"] == concurrency and row["round"] == limit["round"]
            ]
            for field in fields
        }
        count = max(map(len, shares.values()), default=0)
        lines.append([str(concurrency), str(count), *(_text(spread(values), 3) for values in shares.values())])
    return _aligned(lines)


def _text(found: Spread | None, digits: int) -> str:
    return found.text(digits) if found else "–"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """As a Markdown table whose columns stand under each other in a terminal too."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    rendered = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rendered.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(rendered)
