"""Charts: axes end at round numbers around the data, and points fit the axes."""

import math
import re

import pytest

from splitattn.training.charts import Curve, draw, round_ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.31, 1.78, [0, 0.5, 1, 1.5, 2]),
        (0.0, 90.0, [0, 20, 40, 60, 80, 100]),
        (-3.0, 4.0, [-4, -2, 0, 2, 4]),
        (0.0, 0.6, [0, 0.2, 0.4, 0.6]),
        (0.5, 0.5, [0.5, 0.6]),
        (0.0, 0.0, [0, 0.2]),
        (0.1, math.nextafter(0.1, 1), [0.1, 0.12]),
    ],
)
def test_ticks_are_round_and_enclose_the_data(
    low: float, high: float, expected: list[float]
) -> None:
    assert round_ticks(low, high) == pytest.approx(expected)


def pixels(svg: str, style: str) -> list[tuple[float, float]]:
    found = re.search(rf'<g class="{style}"><polyline points="([^"]*)"', svg)
    assert found
    return [(float(x), float(y)) for x, y in (p.split(",") for p in found[1].split())]


def labels(svg: str, anchor: str) -> dict[str, tuple[float, float]]:
    """Positions of an axis's labels by text; `anchor` "end" is the vertical axis."""
    found = re.findall(rf'<text x="([\d.]+)" y="([\d.]+)"[^>]*anchor="{anchor}">([\d.]+)<', svg)
    return {text: (float(x), float(y)) for x, y, text in found}


def test_points_lie_where_the_axes_say() -> None:
    curve = Curve(style="val", points=[(1.0, 0.5), (2.0, 1.0), (4.0, 0.0)])
    svg = draw([curve], title="Loss", x_label="epochs")
    x, y = labels(svg, "middle"), labels(svg, "end")
    assert list(x) == ["0", "1", "2", "3", "4"]
    assert list(y) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    middle = (y["0.4"][1] + y["0.6"][1]) / 2
    assert pixels(svg, "val") == [
        (x["1"][0], pytest.approx(middle, abs=0.1)),
        (x["2"][0], y["1.0"][1]),
        (x["4"][0], y["0.0"][1]),
    ]


def test_small_figures_have_as_many_decimals_as_they_need() -> None:
    def axis(high: float) -> list[str]:
        points = [(0.0, 0.0), (1.0, high)]
        return list(
            labels(draw([Curve(style="train", points=points)], title="", x_label=""), "end")
        )

    assert axis(0.1)[1] == "0.02"
    assert axis(1e-4)[1] == "0.00002"
    assert "2e-07" in draw(
        [Curve(style="train", points=[(0.0, 0.0), (1.0, 1e-6)])], title="", x_label=""
    )


def test_figures_that_are_not_finite_are_left_out() -> None:
    points = [(1.0, 2.0), (2.0, math.inf), (3.0, math.nan), (4.0, 1.0)]
    svg = draw([Curve(style="val", points=points)], title="Loss", x_label="epochs")
    assert len(pixels(svg, "val")) == 2
    assert "nan" not in svg
    assert "inf" not in svg
    broken = Curve(style="val", points=[(1.0, math.nan)])
    assert draw([broken], title="Loss", x_label="epochs") == ""


def test_a_long_curve_is_thinned_by_means() -> None:
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    curve = Curve(style="train", points=points, dotted=True)
    drawn = pixels(draw([curve], title="", x_label=""), "train")
    assert 200 < len(drawn) <= 300
    # Every mean is a half, so the curve is flat.
    assert len({y for _, y in drawn}) == 1


def test_points_are_marked_where_there_are_few_or_only_one() -> None:
    def dots(count: int, *, dotted: bool) -> int:
        points = [(float(i), float(i)) for i in range(count)]
        curve = Curve(style="val", points=points, dotted=dotted)
        return draw([curve], title="", x_label="").count("<circle")

    assert dots(10, dotted=True) == 10
    assert dots(100, dotted=True) == 0
    assert dots(10, dotted=False) == 0
    assert dots(1, dotted=False) == 1
