"""A picture of a training batch with its boxes: what a detector sees and is to find."""

from math import ceil

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from splitattn.data.loading import epoch_batches
from splitattn.dense.annotated import AnnotatedImages
from splitattn.dense.drawing import draw_boxes
from splitattn.dense.loading import DenseAugmentation, dense_loader
from splitattn.dense.task import sides
from splitattn.training.recipes import Recipe

_COLUMNS, _GAP = 4, 8
# Below it boxes and captions hide each other.
_LEAST_LONG = 400


def augmentation_in(recipe: Recipe, epoch: int) -> DenseAugmentation:
    """What happens to training images in an epoch, counted from 0."""
    return DenseAugmentation(
        sides=sides(recipe, recipe.size_in(epoch)),
        smallest=recipe.multi_scale,
        zoom=recipe.zoom,
        color_jitter=recipe.color_jitter,
    )


def annotated_sheet(data: AnnotatedImages, recipe: Recipe, *, count: int) -> Image.Image:
    """The first images of the first epoch, augmented as the recipe says, with their boxes.

    Args:
        data: the training images.
        count: images; fewer if there are fewer.

    Returns:
        An RGB image, four images a row.

    Raises:
        DataError: the images cannot be read.
    """
    batches = epoch_batches(len(data), batch_size=min(count, len(data)), seed=recipe.seed, epoch=0)
    loader = dense_loader(
        data,
        augmentation_in(recipe, 0),
        batches=batches[:1],
        workers=0,
        seed=recipe.seed,
        epoch=0,
    )
    batch = next(iter(loader))
    tiles = [
        _tile(image, boxes, labels.tolist(), data.classes)
        for image, boxes, labels in zip(batch.images, batch.boxes, batch.labels, strict=True)
    ]
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
    image: torch.Tensor, boxes: torch.Tensor, labels: list[int], classes: tuple[str, ...]
) -> Image.Image:
    picture = F.to_pil_image(image)
    factor = max(ceil(_LEAST_LONG / max(picture.size)), 1)
    larger = picture.resize((picture.width * factor, picture.height * factor))
    captions = [classes[label] for label in labels]
    return draw_boxes(larger, (boxes * factor).tolist(), labels, captions)
