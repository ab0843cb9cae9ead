"""Draws the losses of a range test over learning rates, on a logarithmic scale."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from splitattn.training.charts import round_ticks

Point = tuple[float, float]

# Sizes in pixels. The picture is drawn larger by this scale and reduced, for smooth lines.
_WIDTH, _HEIGHT, _SCALE = 720, 440, 3
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 40, 52
_FONT_SIZE = 14
_GROUND, _TEXT, _GRID, _POINTS, _CURVE, _MARK = (
    *("#ffffff", "#1f2933", "#e4e7eb", "#b8c2cc", "#2f6fb3", "#c2410c"),
)
# The plot ends above the first loss by this share of the decrease; larger losses are clipped.
_HEADROOM = 0.5


def draw_range(losses: Sequence[Point], smoothed: Sequence[Point], *, mark: float) -> Image.Image:
    """A picture of 720 x 440 pixels, RGB.

    Args:
        losses: learning rate and loss of each step, by ascending rate.
        smoothed: the same, smoothed.
        mark: the suggested learning rate.
    """
    first, low = smoothed[0][1], min(loss for _, loss in losses)
    ticks = round_ticks(low, first + _HEADROOM * (first - low))
    left, right = math.log10(losses[0][0]), math.log10(losses[-1][0])

    def place(point: Point) -> Point:
        rate, loss = point
        across = (math.log10(rate) - left) / ((right - left) or 1.0)
        up = (min(loss, ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0])
        x = _LEFT + across * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - max(up, 0.0) * (_HEIGHT - _TOP - _BOTTOM)
        return x * _SCALE, y * _SCALE

    picture = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), _GROUND)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_FONT_SIZE * _SCALE)
    edge, bottom = (_WIDTH - _RIGHT) * _SCALE, (_HEIGHT - _BOTTOM) * _SCALE
    for tick in ticks:
        x, y = place((losses[0][0], tick))
        pen.line((x, y, edge, y), _GRID, _SCALE)
        pen.text((x - 8 * _SCALE, y), f"{tick:.4g}", _TEXT, font, anchor="rm")
    for power in range(math.ceil(left), math.floor(right) + 1):
        x, _ = place((10.0**power, ticks[0]))
        pen.line((x, bottom, x, bottom + 5 * _SCALE), _TEXT, _SCALE)
        pen.text((x, bottom + 8 * _SCALE), f"{10.0**power:g}", _TEXT, font, anchor="ma")
    x, _ = place((mark, ticks[0]))
    pen.line((x, _TOP * _SCALE, x, bottom), _MARK, 2 * _SCALE)
    pen.line([place(point) for point in losses], _POINTS, _SCALE)
    pen.line([place(point) for point in smoothed], _CURVE, 3 * _SCALE, joint="curve")
    pen.text((_LEFT * _SCALE, 12 * _SCALE), "loss, smoothed", _CURVE, font)
    pen.text((edge, 12 * _SCALE), f"suggested: {mark:.2g}", _MARK, font, anchor="ra")
    pen.text((edge, (_HEIGHT - 22) * _SCALE), "learning_rate", _TEXT, font, anchor="ra")
    return picture.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
