"""Boxes stay on their objects under every augmentation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from splitattn.data.loading import random_stream
from splitattn.dense.annotated import AnnotatedImages, Objects
from splitattn.dense.loading import DenseAugmentation, augmented, dense_loader
from splitattn.dense.open import open_annotated
from splitattn.dense.outlines import Outline, to_run_lengths
from splitattn.dense.resizing import Sides
from tests.dense.datasets import picture, write_coco

RECTANGLES = [(8, 12, 40, 52, 2), (70, 20, 118, 60, 0)]
AUGMENTATION = DenseAugmentation(sides=Sides(short=48, long=96), zoom=1.8, color_jitter=0.0)


def objects(*, crowd: bool = False) -> Objects:
    boxes = np.array([box[:4] for box in RECTANGLES], dtype=np.float64)
    return Objects(
        boxes=boxes,
        labels=np.array([box[4] for box in RECTANGLES]),
        crowd=np.array([crowd, False]),
        areas=np.ones(2),
        outlines=outlines(),
    )


def outlines() -> tuple[Outline, ...]:
    """The outlines of the two rectangles: a polygon, and run lengths."""
    (left, top, right, bottom, _), other = RECTANGLES
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)
    mask = np.zeros((80, 128), dtype=bool)
    mask[other[1] : other[3], other[0] : other[2]] = True
    return (corners,), to_run_lengths(mask)


def test_boxes_stay_on_their_objects_through_zoom_crop_and_flip() -> None:
    image = picture(RECTANGLES, (128, 80), 3)
    sizes, flipped = set(), set()
    for seed in range(40):
        with random_stream(seed):
            found = augmented(image, objects(), AUGMENTATION, masks=True)
        pixels, boxes, labels, masks = found.pixels, found.boxes, found.labels, found.masks
        assert masks is not None
        assert masks.shape == (len(labels), *pixels.shape[1:])
        assert pixels.dtype == torch.uint8
        height, width = pixels.shape[1:]
        assert height <= 48
        assert width <= 77
        sizes.add((height, width))
        # Only on an object is the channel of its color far above the others.
        values = pixels.float()
        for label, channel in ((0, 2), (2, 0)):
            others = [c for c in range(3) if c != channel]
            on_object = values[channel] - values[others].amax(0) > 70
            ys, xs = torch.nonzero(on_object, as_tuple=True)
            mine = boxes[labels == label]
            if len(mine):
                seen = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                assert (mine[0] - torch.stack(seen)).abs().max() < 1.6, seed
                mask = masks[labels == label][0].bool()
                overlap = (mask & on_object).sum() / (mask | on_object).sum()
                assert overlap > 0.85, seed
        if len(labels) == 2:
            flipped.add(bool(boxes[0, 0] > boxes[1, 0]))
    assert len(sizes) > 5
    assert flipped == {True, False}


def test_an_object_that_a_crop_hardly_shows_is_left_out() -> None:
    """A crop shows a box of 30 pixels at the edge wholly, partly or not at all.

    The image is scaled by a half and by a factor, which is the first number drawn.
    """
    image = picture([(0, 0, 30, 64, 1)], (128, 64), 3)
    edge = replace(
        objects(),
        boxes=np.array([[0.0, 0, 30, 64]]),
        labels=np.array([1]),
        crowd=np.array([False]),
        areas=np.ones(1),
        outlines=(None,),
    )
    shares = []
    for seed in range(60):
        with random_stream(seed):
            wide = DenseAugmentation(sides=Sides(short=64, long=64), zoom=4.0)
            found = augmented(image, edge, wide)
        pixels, boxes = found.pixels, found.boxes
        with random_stream(seed):
            factor = 4.0 ** (2 * torch.rand(()).item() - 1)
        if len(boxes):
            visible = (boxes[0, 2:] - boxes[0, :2]).prod().item()
            shares.append(visible / (30 * 64 * (factor / 2) ** 2))
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= pixels.shape[2]).all()
    assert 5 < len(shares) < 60
    assert 0.19 < min(shares) < 0.5


def test_the_shorter_side_is_drawn_within_its_range() -> None:
    image = picture(RECTANGLES, (128, 80), 3)
    several = DenseAugmentation(sides=Sides(short=100, long=400), smallest=0.8)
    heights = []
    for seed in range(40):
        with random_stream(seed):
            found = augmented(image, objects(), several)
        height, width = found.pixels.shape[1:]
        assert width == round(128 * height / 80)
        assert len(found.labels) == 2
        heights.append(height)
    assert 80 <= min(heights) < 84
    assert 96 < max(heights) <= 100


def test_a_mosaic_has_four_images_at_half_their_size_with_their_boxes_and_masks(
    tmp_path: Path,
) -> None:
    write_coco(tmp_path, "train", 6, outlines=True)
    data = open_annotated(tmp_path, "train")
    sides = Sides(short=128, long=128)
    several = DenseAugmentation(sides=sides, zoom=1.2, mosaic=1.0, fill=(1, 2, 3))
    loader = dense_loader(
        data, several, batches=[[0, 1, 2, 3]], workers=0, seed=1, epoch=0, masks=True
    )
    (batch,) = loader
    assert batch.masks is not None
    counts = [len(labels) for labels in batch.labels]
    assert max(counts) > 4  # at most two objects per image
    filled = False
    for image, boxes, labels, masks in zip(
        batch.images, batch.boxes, batch.labels, batch.masks, strict=True
    ):
        assert 100 < max(image.shape[1:]) <= 128
        assert masks.shape[1:] == image.shape[1:]
        values = image.float()
        for box, label, mask in zip(boxes, labels, masks, strict=True):
            # Labels 0, 1, 2 are blue, green, red: channels 2, 1, 0.
            others = [c for c in range(3) if c != 2 - label]
            on_color = values[2 - label] - values[others].amax(0) > 60
            left, top, right, bottom = box.round().int().tolist()
            inside = torch.zeros_like(on_color)
            inside[top:bottom, left:right] = True
            mine = on_color & inside
            assert (mine & mask.bool()).sum() / (mine | mask.bool()).sum() > 0.7
            assert mine.sum() / inside.sum() > 0.7
        filled |= bool((image == torch.tensor([1, 2, 3])[:, None, None]).all(0).any())
    assert filled
    again = next(
        iter(dense_loader(data, several, batches=[[0, 1]], workers=0, seed=1, epoch=0, masks=True))
    )
    assert torch.equal(again.images[1], batch.images[1])


def test_crowds_are_not_trained_on() -> None:
    image = picture(RECTANGLES, (128, 80), 3)
    plain = DenseAugmentation(sides=Sides(short=80, long=128))
    with random_stream(0):
        found = augmented(image, objects(crowd=True), plain, masks=True)
    assert found.labels.tolist() == [0]
    assert sorted(found.boxes[0, ::2].tolist()) in ([70, 118], [10, 58])
    assert found.pixels.shape == (3, 80, 128)
    assert found.masks is not None
    assert found.masks.shape == (1, 80, 128)
    assert found.masks.sum() == 48 * 40


def loaded(data: AnnotatedImages, epoch: int = 0) -> list[torch.Tensor]:
    loader = dense_loader(
        data, AUGMENTATION, batches=[[0, 1], [2, 3]], workers=0, seed=5, epoch=epoch
    )
    return [image for batch in loader for image in batch.images]


def test_unreadable_images_are_replaced_and_named(tmp_path: Path) -> None:
    write_coco(tmp_path, "train", 4)
    data = open_annotated(tmp_path, "train")
    before = loaded(data)
    assert all(torch.equal(a, b) for a, b in zip(before, loaded(data), strict=True))
    assert any(a.shape != b.shape for a, b in zip(before, loaded(data, epoch=1), strict=True))
    data.images[1].write_bytes(b"damaged")
    picture([], (32, 64)).save(data.images[2])
    batches = [
        *dense_loader(data, AUGMENTATION, batches=[[0, 1], [2, 3]], workers=0, seed=5, epoch=0)
    ]
    assert [len(batch.images) for batch in batches] == [2, 2]
    (first,), (second,) = (batch.problems for batch in batches)
    assert "1.png" in first
    assert "must be of 64 x 64 pixels, as its annotations say, got 32 x 64 upright" in second
