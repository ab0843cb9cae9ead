"""Curves as inline SVG, with round numbers on the axes; the page's style sheet sets the colors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

# Size of a chart, in pixels at the width of a phone or of one of three columns.
_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 8, 34

# More points than this make no visible difference.
_MOST_POINTS = 300
_MOST_DOTS = 40

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart.

    Attributes:
        style: its class in the style sheet.
        points: (x, y), with x ascending from 0; points whose y is not finite are left out.
        dotted: mark the points, with their values as tooltips.
    """

    style: str
    points: Sequence[Point]
    dotted: bool = False


def draw(curves: Sequence[Curve], *, title: str, x_label: str) -> str:
    """An SVG element with all `curves`, or an empty string if there is no point to draw."""
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

    There are at least two, even if `low` and `high` are equal up to rounding.
    """
    span = high - low if high - low > 1e-9 * abs(high) else abs(high) or 1.0
    coarse = span / 5
    power = 10.0 ** math.floor(math.log10(coarse))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= coarse * 0.999)
    # With a small tolerance, so that 0.6 / 0.2, which is not exactly 3, adds no tick.
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [number * step for number in range(first, last + 1)]


def _labels(ticks: Sequence[float]) -> list[str]:
    """Labels of `ticks`, all with the same number of decimals."""
    decimals = max(-math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9), 0)
    if decimals > 5 or max(map(abs, ticks)) >= 1e6:
        return [f"{tick:.2g}" for tick in ticks]
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _drawable(curve: Curve) -> Curve:
    """`curve` without points that are not finite; if there are too many, neighbors are averaged."""
    points = [(x, y) for x, y in curve.points if math.isfinite(y)]
    together = max(math.ceil(len(points) / _MOST_POINTS), 1)
    groups = [points[i : i + together] for i in range(0, len(points), together)]
    means = [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]
    return Curve(style=curve.style, points=means, dotted=curve.dotted)


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """Maps x from 0 to `right` and y from `low` to `high` to pixels, and makes SVG elements."""

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
