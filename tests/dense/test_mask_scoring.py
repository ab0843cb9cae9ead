"""The figures of segmentation equal their definitions, written out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from splitattn.dense.class_maps import class_map
from splitattn.dense.mask_scoring import (
    ScoredMasks,
    SegmentationScores,
    confusion,
    score_masks,
)
from splitattn.dense.masks import open_masked, read_masked
from tests.dense.datasets import MASK_CLASSES, VOID, write_masked


def test_confusion_counts_every_pixel_of_a_class() -> None:
    random = np.random.default_rng(0)
    truth = random.choice(np.array([0, 1, 2, VOID], np.uint8), (7, 9))
    answer = random.integers(0, 3, (7, 9)).astype(np.uint8)
    found = confusion(truth, answer, 3)
    for row in range(3):
        for column in range(3):
            assert found[row, column] == ((truth == row) & (answer == column)).sum()
    assert found.sum() == (truth != VOID).sum()


def test_figures_are_those_of_their_definition() -> None:
    table = np.array([[8, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 5], [0, 0, 0, 0]])
    scores = SegmentationScores(classes=("a", "b", "c", "d"), confusion=table, images=1)
    overlaps = [8 / 11, 3 / 6, 0, 0]
    assert [each.iou for each in scores.by_class()] == pytest.approx([100 * x for x in overlaps])
    assert [each.accuracy for each in scores.by_class()] == pytest.approx([80, 75, 0, None])
    assert scores.figures["miou"] == pytest.approx(100 * sum(overlaps) / 4)
    assert scores.figures["accuracy"] == pytest.approx(100 * 11 / 19)
    assert scores.figures["mean_accuracy"] == pytest.approx((80 + 75 + 0) / 3)


def test_a_class_that_occurs_nowhere_is_left_out_of_means() -> None:
    table = np.array([[4, 0, 0], [0, 2, 0], [0, 0, 0]])
    scores = SegmentationScores(classes=("a", "b", "c"), confusion=table, images=1)
    assert scores.figures["miou"] == 100
    assert scores.by_class()[2].iou is None


def test_parts_scored_by_several_processes_add_up(tmp_path: Path) -> None:
    """Three parts give the counts, problems and worst images of a single pass."""
    data = open_masked(write_masked(tmp_path, "val", 12), "val")
    data.images[5].write_bytes(b"damaged")
    counted: list[tuple[int, int]] = []

    def answer(image: Image.Image) -> np.ndarray:
        gray = np.asarray(image.convert("L"), int)
        return (gray % 4).astype(np.uint8)

    whole = score_masks(data, answer, range(12), lambda *counts: counted.append(counts))
    assert counted == [(1, 12)] * 12
    parts = [score_masks(data, answer, range(i, 12, 3), lambda *_: None) for i in (2, 0, 1)]
    merged = ScoredMasks.merged(parts)
    np.testing.assert_array_equal(merged.confusion, whole.confusion)
    assert [each.index for each in merged.worst] == [each.index for each in whole.worst]
    assert len(whole.worst) == 8
    assert merged.problems == whole.problems
    assert len(whole.problems) == 1
    rest = [index for index in range(12) if index != 5]
    wrong = {}
    for index in rest:
        image, mask = read_masked(data, index)
        wrong[index] = (answer(image) != mask)[mask != VOID].mean()
    assert [each.index for each in whole.worst] == sorted(rest, key=lambda i: -wrong[i])[:8]
    assert whole.worst[0].wrong == pytest.approx(max(wrong.values()))
    assert whole.confusion.shape == (len(MASK_CLASSES),) * 2


@pytest.mark.parametrize("size", [(40, 28), (53, 31), (10, 7)])
def test_a_class_map_is_the_largest_of_the_enlarged_logits(size: tuple[int, int]) -> None:
    logits = torch.randn(5, 7, 10, generator=torch.Generator().manual_seed(0))
    found = class_map(logits.numpy(), size)
    large = F.interpolate(logits[None], size=size[::-1], mode="bilinear", align_corners=False)[0]
    best = large.topk(2, dim=0)
    sure = (best.values[0] - best.values[1]) > 1e-5
    assert sure.float().mean() > 0.99
    np.testing.assert_array_equal(found[sure.numpy()], best.indices[0].numpy()[sure.numpy()])
