"""Masks stay aligned with their images under every augmentation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from splitattn.data.loading import random_stream
from splitattn.dense.mask_loading import MaskAugmentation, augmented, mask_loader
from splitattn.dense.masks import MaskedImages, open_masked
from splitattn.dense.resizing import Sides
from tests.dense.datasets import VOID, class_mask, picture, write_masked

RECTANGLES = [(8, 12, 40, 52, 2), (70, 20, 118, 60, 0)]
AUGMENTATION = MaskAugmentation(
    sides=Sides(short=48, long=96), crop=40, fill=(124, 116, 104), zoom=1.8
)


def test_classes_stay_on_their_pixels_through_zoom_crop_and_flip() -> None:
    image, mask = picture(RECTANGLES, (128, 80), 3), class_mask(RECTANGLES, (128, 80))
    shares, flipped = [], set()
    for seed in range(40):
        with random_stream(seed):
            pixels, classes = augmented(image, mask, AUGMENTATION)
        assert pixels.shape == (3, 40, 40)
        assert classes.shape == (40, 40)
        assert pixels.dtype == classes.dtype == torch.uint8
        values = pixels.float()
        for number, channel in ((3, 0), (1, 2)):
            others = [c for c in range(3) if c != channel]
            inside = values[channel] - values[others].amax(0) > 70
            # Color and class may differ only at the edge, where colors blend.
            there = (classes == number).float()[None]
            near = F.max_pool2d(there, 3, 1, 1)[0] > 0
            within = F.max_pool2d(1 - there, 3, 1, 1)[0] == 0
            assert not (inside & ~near).any(), seed
            assert inside[within].all(), seed
            shares.append(inside.float().mean().item())
        columns = [torch.nonzero(classes == number)[:, 1].float().mean() for number in (3, 1)]
        if not any(torch.isnan(column) for column in columns):
            flipped.add(bool(columns[0] > columns[1]))
    assert max(shares) > 3 * (min(share for share in shares if share) + 0.01)
    assert flipped == {True, False}


def test_a_crop_larger_than_the_image_is_padded_with_no_class() -> None:
    image, mask = picture(RECTANGLES, (128, 80), 3), np.ones((80, 128), np.uint8)
    wide = replace(AUGMENTATION, crop=120, zoom=1.0)
    with random_stream(0):
        pixels, classes = augmented(image, mask, wide)
    inside = classes != VOID
    assert inside.sum() == 48 * 77
    assert (pixels[:, ~inside] == torch.tensor(wide.fill)[:, None]).all()
    assert (pixels[:, inside].float().mean() - 128).abs() < 10


def test_without_zoom_images_are_resized_as_for_measuring() -> None:
    """Without zoom, every crop is a window of the image as it is resized for measuring."""
    image, mask = picture([], (60, 30), 3), np.zeros((30, 60), np.uint8)
    same = MaskAugmentation(sides=Sides(short=32, long=64), crop=32, fill=(0, 0, 0))
    crops = []
    for seed in range(8):
        with random_stream(seed):
            crops.append(augmented(image, mask, same)[0])
    small = np.asarray(image.resize((64, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    windows = {small[:, :, left : left + 32].tobytes() for left in range(33)}
    windows |= {small[:, :, left : left + 32][:, :, ::-1].tobytes() for left in range(33)}
    assert all(crop.numpy().tobytes() in windows for crop in crops)


def loaded(data: MaskedImages, epoch: int = 0) -> list[torch.Tensor]:
    loader = mask_loader(
        data,
        replace(AUGMENTATION, color_jitter=0.3),
        batches=[[0, 1], [2, 3]],
        workers=0,
        seed=5,
        epoch=epoch,
    )
    return [tensor for batch in loader for tensor in (batch.images, batch.masks)]


def test_unreadable_images_are_replaced_and_named(tmp_path: Path) -> None:
    data = open_masked(write_masked(tmp_path, "train", 4), "train")
    before = loaded(data)
    assert [tuple(each.shape) for each in before[:2]] == [(2, 3, 40, 40), (2, 40, 40)]
    assert all(torch.equal(a, b) for a, b in zip(before, loaded(data), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, loaded(data, 1), strict=True))
    data.images[1].write_bytes(b"damaged")
    data.masks[2].unlink()
    batches = [
        *mask_loader(data, AUGMENTATION, batches=[[0, 1], [2, 3]], workers=0, seed=5, epoch=0)
    ]
    assert [len(batch.images) for batch in batches] == [2, 2]
    (first,), (second,) = (batch.problems for batch in batches)
    assert "1.png" in first
    assert "2.png: no such file" in second
