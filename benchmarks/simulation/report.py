"""The results as tables in Markdown and as one plot in SVG, without a library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from benchmarks.simulation.scenarios import Result, percentile

_WIDTH: Final = 860
_PANEL: Final = 250
_LEFT: Final = 70
_TOP: Final = 40
_COLOURS: Final = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1")
# Buckets of a curve.
_STEP: Final = 0.25


def tables(results: Sequence[Result]) -> str:
    """Returns the figures of all scenarios, then what their store functions cost."""
    lines = ["| scenario | figure | value |", "|---|---|---:|"]
    for result in results:
        for name, value in result.figures.items():
            lines.append(f"| {result.name} | {name} | {_number(value)} |")
    lines += ["", "| scenario | function | calls/s | busiest s | statements per call | ms per call (SQLite) |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for result in results:
        for name, cost in result.costs.items():
            busiest = max((cost_in_second(cost.at).values()), default=0)
            lines.append(
                f"| {result.name} | `{name}` | {_number(cost.calls / result.seconds)} | {busiest} "
                f"| {_number(cost.statements / cost.calls)} | {1e3 * cost.seconds / cost.calls:.2f} |"
            )
    return "\n".join(lines)


def cost_in_second(at: Sequence[float]) -> dict[int, int]:
    """Returns how many calls there were in each second."""
    seconds: dict[int, int] = {}
    for moment in at:
        seconds[int(moment)] = seconds.get(int(moment), 0) + 1
    return seconds


def _number(value: float) -> str:
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}" if value < 1 else f"{value:,.1f}"


def plot(results: Sequence[Result]) -> str:
    """Returns a panel for each scenario: events per second over the time."""
    height = _TOP + len(results) * _PANEL
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    for number, result in enumerate(results):
        parts += _panel(result, _TOP + number * _PANEL)
    return "\n".join([*parts, "</svg>", ""])


def _panel(result: Result, top: int) -> list[str]:
    width, height = _WIDTH - _LEFT - 30, _PANEL - 80
    curves = {name: _rates(moments, result.seconds) for name, moments in result.series.items()}
    # A single spike, such as the first claims of an idle world, is cut off.
    highest = max((percentile(rates, 0.98) for rates in curves.values()), default=1.0) * 1.15 or 1.0
    parts = [
        f'<text x="{_LEFT}" y="{top - 12}" font-size="14" font-weight="bold">{escape(result.name)}: '
        "events per second</text>",
        f'<rect x="{_LEFT}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#a0aec0"/>',
    ]
    for part in (0.0, 0.5, 1.0):
        y = top + height * (1 - part)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{highest * part:,.0f}</text>')
    for second in range(0, int(result.seconds) + 1, max(1, int(result.seconds) // 10)):
        x = _LEFT + width * second / result.seconds
        parts.append(f'<text x="{x:.0f}" y="{top + height + 16}" text-anchor="middle">{second} s</text>')
    for number, (name, rates) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(
            f"{_LEFT + width * (index + 0.5) * _STEP / result.seconds:.1f},"
            f"{top + height * (1 - min(1.0, rate / highest)):.1f}"
            for index, rate in enumerate(rates)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        x = _LEFT + 10 + 200 * number
        parts.append(f'<rect x="{x}" y="{top + height + 26}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{top + height + 32}">{escape(name)}</text>')
    return parts


def _rates(moments: Sequence[float], seconds: float) -> list[float]:
    rates = [0.0] * int(seconds / _STEP)
    for moment in moments:
        if 0 <= moment < len(rates) * _STEP:
            rates[int(moment / _STEP)] += 1 / _STEP
    return rates
