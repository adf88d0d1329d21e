"""Line and bar charts as inline SVG (beside all arrows); pure, no script, no font or file from elsewhere.

Units    coordinates in CSS pixels of the view box
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
WIDTH, HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 26, 40
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """A named line; `style` is the class that the page's style sheet colours."""

    name: str
    points: Sequence[tuple[float, float | None]]  # None breaks the line
    style: str
    dots: bool = False


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """An SVG element with axes; a note instead of a chart when there is nothing to draw."""
    known = [(x, y) for one in series for x, y in one.points if y is not None]
    if not known:
        return "<p>No data yet.</p>"
    x_low, x_high = _range([x for x, _y in known])
    y_low, y_high = _range([0.0, *(y for _x, y in known)])  # from zero, so that heights can be compared

    def place(point: Point) -> Point:
        x = _LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        y = HEIGHT - _BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [_axes(x_low, x_high, y_low, y_high, x_label, y_label)]
    for one in series:
        for run in _runs(one.points):
            spots = [place(point) for point in run]
            if one.dots or len(spots) == 1:
                parts += [f'<circle class="{one.style}" cx="{x}" cy="{y}" r="3"/>' for x, y in spots]
            parts.append(f'<polyline class="{one.style}" points="{" ".join(f"{x},{y}" for x, y in spots)}"/>')
    title = html.escape(f"{y_label} over {x_label}: {', '.join(one.name for one in series)}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>'
        f"{''.join(parts)}</svg>"
    )


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[Point]]:
    runs: list[list[Point]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.0 if high > low else abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _axes(x_low: float, x_high: float, y_low: float, y_high: float, x_label: str, y_label: str) -> str:
    parts = []
    for n in range(_TICKS):
        share = n / (_TICKS - 1)
        y = _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - share)
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * share
        below = f'<text class="tick" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}">'
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick end" x="{_LEFT - 6}" y="{y + 4:.1f}">{_tick(y_low + share * (y_high - y_low))}</text>'
        )
        parts.append(f"{below}{_tick(x_low + share * (x_high - x_low))}</text>")
    parts.append(f'<text class="label" x="{_LEFT}" y="{HEIGHT - 6}">{html.escape(x_label)}</text>')
    parts.append(f'<text class="label" x="6" y="14">{html.escape(y_label)}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    if value and abs(value) >= 1000:
        return f"{value:.0f}"
    digits = 3 if not value else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
