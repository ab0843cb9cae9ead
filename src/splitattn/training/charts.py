"""Curves as inline SVG: axes with round numbers, and colors that the page's style decides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

# Of one chart, in pixels where it is as wide as on a phone or in a column of three.
_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 8, 34

# More points than this are no finer to the eye.
_MOST_POINTS = 300
_MOST_DOTS = 40

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart.

    Attributes:
        style: its class in the style sheet.
        points: (x, y), with x from 0 and rising; a y that is not finite is left out.
        dotted: mark the points themselves, which say their y when pointed at.
    """

    style: str
    points: Sequence[Point]
    dotted: bool = False


def draw(curves: Sequence[Curve], *, title: str, x_label: str) -> str:
    """An SVG element with all `curves`, or an empty string where there is no point to draw."""
    curves = [_drawable(curve) for curve in curves]
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    right = max(x for x, _ in points) or 1.0
    ys = round_ticks(min(y for _, y in points), max(y for _, y in points))
    xs = [x for x in round_ticks(0.0, right) if x <= right * 1.001]
    plane = _Plane(right=right, low=ys[0], high=ys[-1])
    parts = [
        *(plane.horizontal(y, label) for y, label in zip(ys, _labels(ys), strict=True)),
        *(plane.mark(x, label) for x, label in zip(xs, _labels(xs), strict=True)),
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>',
        *(plane.line(curve) for curve in curves),
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def round_ticks(low: float, high: float) -> list[float]:
    """About five round numbers, evenly spaced: the first at most `low`, the last at least `high`.

    There are two at least, also where `low` is `high` or differs by rounding alone.
    """
    span = high - low if high - low > 1e-9 * abs(high) else abs(high) or 1.0
    coarse = span / 5
    power = 10.0 ** math.floor(math.log10(coarse))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= coarse * 0.999)
    # Less a little, or else 0.6 / 0.2, which is not quite 3, would add a tick.
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [number * step for number in range(first, last + 1)]


def _labels(ticks: Sequence[float]) -> list[str]:
    """Each of `ticks` with as many decimals as the others."""
    decimals = max(-math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9), 0)
    if decimals > 5 or max(map(abs, ticks)) >= 1e6:
        return [f"{tick:.2g}" for tick in ticks]
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _drawable(curve: Curve) -> Curve:
    """`curve` without what is not finite, its neighbors averaged where there are too many."""
    points = [(x, y) for x, y in curve.points if math.isfinite(y)]
    together = max(math.ceil(len(points) / _MOST_POINTS), 1)
    groups = [points[i : i + together] for i in range(0, len(points), together)]
    means = [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]
    return Curve(style=curve.style, points=means, dotted=curve.dotted)


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """From figures, x from 0 to `right` and y from `low` to `high`, to pixels and elements."""

    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return _LEFT + value / self.right * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def horizontal(self, value: float, label: str) -> str:
        y = f"{self.y(value):.1f}"
        return (
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
            f'<text x="{_LEFT - 8}" y="{y}" dy=".35em" text-anchor="end">{label}</text>'
        )

    def mark(self, value: float, label: str) -> str:
        x, bottom = f"{self.x(value):.1f}", _HEIGHT - _BOTTOM
        return (
            f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{label}</text>'
        )

    def line(self, curve: Curve) -> str:
        pixels = [(f"{self.x(x):.1f}", f"{self.y(y):.1f}") for x, y in curve.points]
        corners = " ".join(f"{x},{y}" for x, y in pixels)
        dots = ""
        if len(pixels) == 1 or (curve.dotted and len(pixels) <= _MOST_DOTS):
            dots = "".join(
                f'<circle cx="{x}" cy="{y}" r="2.5"><title>{a:.6g}: {b:.6g}</title></circle>'
                for (x, y), (a, b) in zip(pixels, curve.points, strict=True)
            )
        return f'<g class="{curve.style}"><polyline points="{corners}"/>{dots}</g>'
