"""Photographs with their labels beneath them."""

import numpy as np
import pytest
from PIL import Image

from splitattn.images import drawing
from splitattn.images.drawing import WIDTH, draw_labels

BLUE = np.array([0x38, 0xBD, 0xF8])


@pytest.mark.parametrize("size", [(40, 90), (3000, 20), (640, 480)])
def test_the_photograph_is_whole_and_in_the_middle(size: tuple[int, int]) -> None:
    drawn = draw_labels(Image.new("RGB", size, "red"), [("a", 0.5)])
    assert drawn.width == WIDTH
    red = (np.asarray(drawn) == (255, 0, 0)).all(2)
    rows, columns = (np.flatnonzero(red.any(axis)) for axis in (1, 0))
    assert rows[0] == 0
    assert abs((columns[0] + columns[-1]) - (WIDTH - 1)) <= 1
    assert len(columns) / len(rows) == pytest.approx(size[0] / size[1], rel=0.1)


def test_bars_are_as_long_as_the_probabilities() -> None:
    labels = [("first", 0.75), ("second", 0.25), ("third", 0.0)]
    pixels = np.asarray(draw_labels(Image.new("RGB", (640, 10)), labels))
    lengths = {int(row.sum()) for row in (pixels == BLUE).all(2)} - {0}
    assert lengths == {round(0.75 * (WIDTH - 32)), round(0.25 * (WIDTH - 32))}


def test_a_label_below_the_least_probability_is_gray_and_not_sure() -> None:
    labels = [("first", 0.5), ("second", 0.1)]
    sure, unsure = (
        np.asarray(draw_labels(Image.new("RGB", (640, 10)), labels, min_probability=least))
        for least in (0.5, 0.51)
    )
    assert (sure == BLUE).all(2).any()
    assert not (unsure == BLUE).all(2).any()
    # The words are left of the first percentage only; the letters of the label have turned gray.
    line, middle = slice(10, 50), slice(WIDTH // 2, WIDTH - 100)
    assert (unsure[line, middle] > 0x80).any()
    assert not (sure[line, middle] > 0x80).any()
    assert sure[line].max() > unsure[line].max()


def ink(label: str) -> np.ndarray:
    """A mask of the bright pixels in the line of a label: the text."""
    pixels = np.asarray(draw_labels(Image.new("RGB", (640, 10)), [(label, 0.5)]))
    bright: np.ndarray = (pixels[10:40] > 0x80).all(2)
    return bright


def test_text_is_written_and_cut_off_if_it_is_too_long() -> None:
    assert ink("maillot").sum() > ink("").sum() + 50
    np.testing.assert_array_equal(ink("long " * 100), ink("long " * 200))
    percent = np.flatnonzero(ink("").any(0))[0]
    assert not ink("W" * 300)[:, percent - 8 : percent].any()
    np.testing.assert_array_equal(ink("a\nb\x1b"), ink(r"a\nb\x1b"))


def test_letters_that_no_font_has_are_written_without_accents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing, "_other_font", lambda _: None)
    for label, plain in (("gr\u00f6\u00dfe", "gro?e"), ("\u65e5\u672c", "??")):
        np.testing.assert_array_equal(ink(label), ink(plain))
