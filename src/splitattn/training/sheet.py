"""Draws a training batch: augmented images with their targets.

Shapes: B images, C channels, H and W rows and columns.
"""

from math import ceil

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from splitattn.data.labeled import LabeledImages
from splitattn.data.loading import epoch_batches, train_loader, warn_of_replaced
from splitattn.training.mixing import mix, targets_of
from splitattn.training.recipes import Recipe

_COLUMNS = 6
_LEAST_WIDTH, _LINE, _GAP = 128, 14, 8
# The most classes in a caption, and the smallest share that is shown.
_NAMED, _LEAST_SHARE = 2, 0.005


def batch_sheet(
    data: LabeledImages, recipe: Recipe, *, count: int = 24, epoch: int = 0
) -> Image.Image:
    """Draw the first images of an epoch, augmented and mixed by the recipe, with their labels.

    Unreadable images are replaced as in training, with a warning.

    Args:
        data: the training images.
        recipe: of the training.
        count: number of images, at most.
        epoch: counted from 0.

    Returns:
        An RGB image with six images in a row. Only the first three channels are shown.

    Raises:
        DataError: the images cannot be read.
    """
    count = min(count, len(data))
    batches = epoch_batches(
        len(data),
        batch_size=count,
        seed=recipe.seed,
        epoch=epoch,
        blocks=data.blocks,
        balanced=data.labels if recipe.sampling == "balanced" else None,
    )
    loader = train_loader(
        data,
        recipe.augmentation(epoch),
        batches=batches[:1],
        workers=0,
        seed=recipe.seed,
        epoch=epoch,
        white_level=recipe.white_level,
    )
    batch = next(iter(loader))
    warn_of_replaced(batch.problems)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        targets = targets_of(data, batch.labels)
        images, shares = mix(_from_0_to_255(batch.images), targets, recipe)
    return _sheet(images, [_caption(row, data.classes) for row in shares])


def _from_0_to_255(images: Tensor) -> Tensor:
    """Convert images to float32 from 0 to 255: RGB is uint8, others are floats from 0 to 1."""
    return images.float() if images.dtype == torch.uint8 else images * 255


def _caption(shares: Tensor, classes: tuple[str, ...]) -> list[str]:
    found = shares.topk(min(_NAMED, len(classes)))
    pairs = zip(found.values.tolist(), found.indices.tolist(), strict=True)
    named = [(share, classes[index]) for share, index in pairs if share > _LEAST_SHARE]
    return [name if share > 1 - _LEAST_SHARE else f"{share:.0%} {name}" for share, name in named]


def _sheet(images_BCHW: Tensor, captions: list[list[str]]) -> Image.Image:  # noqa: N803
    pixels_BHWC = images_BCHW.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()  # noqa: N806
    if pixels_BHWC.shape[3] < 3:
        pixels_BHWC = np.repeat(pixels_BHWC[..., :1], 3, axis=3)  # noqa: N806
    size = pixels_BHWC.shape[1]
    width = size * ceil(_LEAST_WIDTH / size)
    height = width + _NAMED * _LINE
    rows = ceil(len(captions) / _COLUMNS)
    sheet = Image.new(
        "RGB", (_COLUMNS * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LINE - 2)
    for index, (pixels, lines) in enumerate(zip(pixels_BHWC, captions, strict=True)):
        left = _GAP + index % _COLUMNS * (width + _GAP)
        top = _GAP + index // _COLUMNS * (height + _GAP)
        shown = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
        sheet.paste(shown.resize((width, width), Image.Resampling.NEAREST), (left, top))
        for number, line in enumerate(lines):
            while len(line) > 1 and draw.textlength(line, font) > width:
                line = f"{line[:-2]}…"
            draw.text((left, top + width + number * _LINE), line, "black", font)
    return sheet
