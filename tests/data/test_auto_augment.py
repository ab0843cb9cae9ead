"""AutoAugment's policies have the published operations, probabilities and values."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from splitattn.data import auto_augment
from splitattn.data.auto_augment import IMAGENET_POLICIES, ImageNetPolicies

# Probabilities and levels of the paper's table; (rotate 0.8, color 1.0) has level 0 in the official
# code and 2 in the paper. Levels of operations without a value are left out.
PUBLISHED = """
posterize 4 8, rotate 6 9; solarize 6 5, autocontrast 6; equalize 8, equalize 6;
posterize 6 7, posterize 6 6; equalize 4, solarize 2 4; equalize 4, rotate 8 8;
solarize 6 3, equalize 6; posterize 8 5, equalize 10; rotate 2 3, solarize 6 8;
equalize 6, posterize 4 6; rotate 8 8, color 4 0; rotate 4 9, equalize 6;
equalize 0, equalize 8; invert 6, equalize 10; color 6 4, contrast 10 8;
rotate 8 8, color 10 0; color 8 8, solarize 8 7; sharpness 4 7, invert 6;
shear 6 5, equalize 10; color 4 0, equalize 6; equalize 4, solarize 2 4;
solarize 6 5, autocontrast 6; invert 6, equalize 10; color 6 4, contrast 10 8;
equalize 8, equalize 6
"""


def value_of(name: str, level: int) -> float:
    """The value that the official code uses for a level."""
    if name in ("color", "contrast", "sharpness"):
        return 0.1 + 1.8 * level / 10
    rules = {
        "posterize": 4 - int(4 * level / 10),
        "rotate": 30 * level / 10,
        "solarize": 256 - int(256 * level / 10),
        "shear": 0.3 * level / 10,
    }
    return rules[name]


def test_the_table_is_the_published_one() -> None:
    rows = [row.split(",") for row in PUBLISHED.split(";")]
    assert len(rows) == len(IMAGENET_POLICIES) == 25
    for policy, row in zip(IMAGENET_POLICIES, rows, strict=True):
        for (name, probability, value), published in zip(policy, row, strict=True):
            theirs, tenths, *level = published.split()
            assert (name, probability) == (theirs, int(tenths) / 10)
            assert value == pytest.approx(value_of(name, int(level[0])) if level else 0)


def test_operations_come_as_often_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[tuple[str, float]] = Counter()
    n = 4000

    def note(name: str) -> object:
        return lambda image, value: counts.update([(name, value)]) or image

    for name in auto_augment._OPERATIONS:
        monkeypatch.setitem(auto_augment._OPERATIONS, name, note(name))
    image, policy = Image.new("RGB", (1, 1)), ImageNetPolicies()
    torch.manual_seed(0)
    for _ in range(n):
        policy(image)
    expected: Counter[tuple[str, float]] = Counter()
    for name, probability, value in (operation for pair in IMAGENET_POLICIES for operation in pair):
        for signed in {value, -value} if name in ("rotate", "shear") else {value}:
            share = probability / (2 if name in ("rotate", "shear") else 1)
            expected[name, signed] += share / 25  # type: ignore[assignment]
    assert counts.keys() == expected.keys()
    for key, share in expected.items():
        # Four standard deviations: a sum of Bernoulli draws has a variance of at most n * share.
        assert abs(counts[key] - n * share) < 4 * math.sqrt(n * share), key


def test_one_image_in_ten_keeps_four_levels_of_each_color_at_most() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, levels.T, levels[::-1]], axis=-1))
    policy, n, few = ImageNetPolicies(), 800, 0
    torch.manual_seed(0)
    for _ in range(n):
        pixels = np.asarray(policy(image)).reshape(-1, 3)
        few += max(len(np.unique(channel)) for channel in pixels.T) <= 4
    # Four of 25 policies posterize, with probability 0.4, 1 - 0.4 * 0.4, 0.8 and 0.4.
    share = 2.44 / 25
    assert abs(few / n - share) < 4 * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("posterize", 1, lambda x: x & 128),
        ("posterize", 2, lambda x: x & 192),
        ("solarize", 77, lambda x: np.where(x < 77, x, 255 - x)),
        ("invert", 0, lambda x: 255 - x),
        ("color", 0.1, lambda x: np.asarray(ImageEnhance.Color(Image.fromarray(x)).enhance(0.1))),
        ("rotate", 27, lambda x: np.asarray(Image.fromarray(x).rotate(27))),
        # Row y moves left by y / 4 pixels, so row 4 moves by one.
        ("shear", 0.25, None),
    ],
)
def test_a_value_means_what_the_official_code_means(name: str, value: float, expected) -> None:  # type: ignore[no-untyped-def]
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    found = np.asarray(auto_augment._OPERATIONS[name](Image.fromarray(pixels), value))
    if expected:
        np.testing.assert_array_equal(found, expected(pixels))
    else:
        smooth = np.tile(np.arange(0, 90, 10, dtype=np.uint8)[None, :, None], (9, 1, 3))
        found = np.asarray(auto_augment._OPERATIONS[name](Image.fromarray(smooth), value))
        assert found[4, 2:6, 0] - smooth[4, 2:6, 0] == pytest.approx(11.25, abs=1.3)
