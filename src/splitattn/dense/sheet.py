"""A picture of the first training images, augmented, with their boxes or masks."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from PIL import Image
from torch import Tensor

from splitattn.data.loading import epoch_batches, warn_of_replaced
from splitattn.dense.annotated import AnnotatedImages
from splitattn.dense.drawing import draw_boxes
from splitattn.dense.loading import DenseAugmentation, dense_loader
from splitattn.dense.mask_drawing import draw_classes
from splitattn.dense.mask_loading import MaskAugmentation, mask_loader
from splitattn.dense.masks import MaskedImages
from splitattn.dense.task import sides
from splitattn.graph.segmentation import MULTIPLE
from splitattn.libraries import torchvision_imported
from splitattn.training.recipes import Recipe

with torchvision_imported("data show"):
    from torchvision.transforms.v2 import functional as F

_COLUMNS, _GAP = 4, 8
# Smaller images are enlarged to this longer side in pixels, or captions would hide the boxes.
_LEAST_LONG = 400


def augmentation_in(recipe: Recipe, epoch: int) -> DenseAugmentation:
    """What happens to training images in an epoch, counted from 0."""
    return DenseAugmentation(
        sides=sides(recipe, recipe.size_in(epoch)),
        smallest=recipe.multi_scale,
        zoom=recipe.zoom,
        color_jitter=recipe.color_jitter,
        mosaic=recipe.mosaic,
        fill=fill_of(recipe),
    )


def mask_augmentation_in(recipe: Recipe, epoch: int) -> MaskAugmentation:
    """What happens to training images and their masks in an epoch, counted from 0."""
    return MaskAugmentation(
        sides=sides(recipe, recipe.test_size, MULTIPLE),
        crop=recipe.size_in(epoch),
        fill=fill_of(recipe),
        zoom=recipe.zoom,
        color_jitter=recipe.color_jitter,
    )


def fill_of(recipe: Recipe) -> tuple[int, ...]:
    """The color that the network sees as zeros."""
    return tuple(round(255 * value) for value in recipe.preprocessing.mean)


def annotated_sheet(data: AnnotatedImages, recipe: Recipe, *, count: int) -> Image.Image:
    """The first images of the first epoch, augmented as the recipe says, with their boxes.

    If each object has an outline, its pixels are shown instead. Unreadable images are replaced as
    in training, with a warning.

    Args:
        data: the training images.
        count: images; fewer if there are fewer.

    Returns:
        An RGB image, four images a row.

    Raises:
        DataError: the images cannot be read.
    """
    outlined = all(
        outline is not None or crowd
        for objects in data.objects
        for outline, crowd in zip(objects.outlines, objects.crowd, strict=True)
    )
    batches = epoch_batches(len(data), batch_size=min(count, len(data)), seed=recipe.seed, epoch=0)
    loader = dense_loader(
        data,
        augmentation_in(recipe, 0),
        batches=batches[:1],
        workers=0,
        seed=recipe.seed,
        epoch=0,
        masks=outlined,
    )
    batch = next(iter(loader))
    warn_of_replaced(batch.problems)
    masks = batch.masks or [None] * len(batch.images)
    rows = zip(batch.images, batch.boxes, batch.labels, masks, strict=True)
    return _grid([_tile(*row, data.classes) for row in rows])


def mask_sheet(data: MaskedImages, recipe: Recipe, *, count: int) -> Image.Image:
    """The first images of the first epoch, augmented as the recipe says, with their classes.

    Args, returns, raises: see `annotated_sheet`.
    """
    batches = epoch_batches(len(data), batch_size=min(count, len(data)), seed=recipe.seed, epoch=0)
    loader = mask_loader(
        data,
        mask_augmentation_in(recipe, 0),
        batches=batches[:1],
        workers=0,
        seed=recipe.seed,
        epoch=0,
    )
    batch = next(iter(loader))
    warn_of_replaced(batch.problems)
    tiles = []
    for image, mask in zip(batch.images, batch.masks, strict=True):
        picture = _enlarged(F.to_pil_image(image))
        numbers = Image.fromarray(mask.numpy()).resize(picture.size, Image.Resampling.NEAREST)
        tiles.append(draw_classes(picture, np.asarray(numbers), data.classes))
    return _grid(tiles)


def _grid(tiles: Sequence[Image.Image]) -> Image.Image:
    width, height = (max(tile.size[axis] for tile in tiles) for axis in (0, 1))
    columns = min(_COLUMNS, len(tiles))
    rows = ceil(len(tiles) / columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return sheet


def _tile(
    image: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor | None, classes: tuple[str, ...]
) -> Image.Image:
    picture = F.to_pil_image(image)
    larger = _enlarged(picture)
    factor = larger.width // picture.width
    return draw_boxes(
        larger,
        (boxes * factor).tolist(),
        labels.tolist(),
        [classes[label] for label in labels],
        None
        if masks is None
        else (mask.numpy().astype(bool).repeat(factor, 0).repeat(factor, 1) for mask in masks),
    )


def _enlarged(picture: Image.Image) -> Image.Image:
    """Enlarge a small picture by a whole factor; see `_LEAST_LONG`."""
    factor = max(ceil(_LEAST_LONG / max(picture.size)), 1)
    return picture.resize((picture.width * factor, picture.height * factor))
