"""Training batches of annotated images: decoded and augmented in worker processes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from splitattn.data.loading import Packed, first_readable
from splitattn.dense.annotated import AnnotatedImages, Objects, read_image
from splitattn.dense.examples import Examples, example_loader
from splitattn.dense.outlines import resized_mask
from splitattn.dense.resizing import SHORTEST, Sides, resized
from splitattn.errors import DataError
from splitattn.libraries import torchvision_imported

with torchvision_imported("loading boxes"):
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F

# After a crop, objects are dropped of which a smaller share of the area or a smaller side, in
# pixels, is left.
_LEAST_VISIBLE = 0.2
_LEAST_SIDE = 1.0


@dataclass(frozen=True, kw_only=True)
class DenseAugmentation:
    """What happens to training images.

    Attributes:
        sides: see `Sides`; larger images are cut to these, at a random place.
        smallest: the shorter side is drawn from this share of `sides.short` up to it.
        zoom: images are scaled by a factor from 1 / zoom to zoom, on top of `sides`.
        color_jitter: how much brightness, contrast and saturation change, as a share.
        mosaic: share of the images that are composed of four, each at half its size.
        fill: the color between these.
    """

    sides: Sides
    smallest: float = 1.0
    zoom: float = 1.0
    color_jitter: float = 0.0
    mosaic: float = 0.0
    fill: tuple[int, ...] = (124, 116, 104)


@dataclass(frozen=True, kw_only=True)
class DenseBatch:
    """What a loader yields.

    Attributes:
        images: each (3, H, W), uint8, of their own sizes.
        boxes: of each image (N, 4), float32, in its pixels.
        labels: of each image (N,), int64.
        masks: of each image (N, H, W), uint8, 1 on the object; None if they were not asked for.
        problems: a line for each image that could not be read; the next readable one is in its
            place.
    """

    images: list[Tensor]
    boxes: list[Tensor]
    labels: list[Tensor]
    masks: list[Tensor] | None
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Packed(Packed[DenseBatch]):
    images: list[NDArray[np.uint8]]
    boxes: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]
    masks: list[NDArray[np.uint8]] | None  # eight pixels of a row in a byte
    problems: tuple[str, ...]

    def tensors(self) -> DenseBatch:
        return DenseBatch(
            images=[torch.from_numpy(each) for each in self.images],
            boxes=[torch.from_numpy(each) for each in self.boxes],
            labels=[torch.from_numpy(each) for each in self.labels],
            masks=None if self.masks is None else [*map(self._unpacked, self.images, self.masks)],
            problems=self.problems,
        )

    @staticmethod
    def _unpacked(image: NDArray[np.uint8], masks: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(np.unpackbits(masks, axis=-1, count=image.shape[-1]))


@dataclass(frozen=True, kw_only=True)
class TrainingImage:
    """One image as a training sees it; see `DenseBatch`."""

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None


def augmented(
    image: Image.Image, objects: Objects, augmentation: DenseAugmentation, *, masks: bool = False
) -> TrainingImage:
    """An image augmented by torch's global random generator. Crowds are left out.

    Args:
        masks: whether the objects' pixels are wanted; each object then has an outline.
    """
    sides, zoom = _drawn(augmentation), augmentation.zoom
    width, height = sides.size(*image.size)
    factor = zoom ** (2 * torch.rand(()).item() - 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    scale = torch.tensor([size[0] / image.width, size[1] / image.height]).repeat(2)
    own = torch.from_numpy(~objects.crowd)
    boxes: Any = tv_tensors.BoundingBoxes(
        torch.from_numpy(objects.boxes).float()[own] * scale,
        format="XYXY",
        canvas_size=size[::-1],
    )
    area = _areas(boxes)
    drawn: list[Any] = [tv_tensors.Mask(_masks(objects, image.size, size))] if masks else []
    pixels: Any = F.to_image(resized(image, size))
    crop = v2.RandomCrop((min(height, size[1]), min(width, size[0])))
    pixels, boxes, *drawn = crop(pixels, boxes, *drawn)
    boxes = F.clamp_bounding_boxes(boxes)
    kept = (_areas(boxes) >= _LEAST_VISIBLE * area) & (_sides(boxes) >= _LEAST_SIDE).all(1)
    boxes, *drawn = (tv_tensors.wrap(each[kept], like=each) for each in (boxes, *drawn))
    pixels, boxes, *drawn = v2.RandomHorizontalFlip()(pixels, boxes, *drawn)
    if jitter := augmentation.color_jitter:
        pixels = v2.ColorJitter(jitter, jitter, jitter)(pixels)
    return TrainingImage(
        pixels=pixels.as_subclass(Tensor),
        boxes=boxes.as_subclass(Tensor),
        labels=torch.from_numpy(objects.labels)[own][kept],
        masks=drawn[0].as_subclass(Tensor) if masks else None,
    )


def mosaic(parts: Sequence[TrainingImage], fill: tuple[int, ...]) -> TrainingImage:
    """Four images as one: they meet at a point, and `fill` is around those that are smaller."""
    heights = torch.tensor([part.pixels.shape[1] for part in parts]).view(2, 2)
    widths = torch.tensor([part.pixels.shape[2] for part in parts]).view(2, 2)
    (above, below), (left, right) = heights.amax(1).tolist(), widths.amax(0).tolist()
    size = (above + below, left + right)
    pixels = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, *size)
    boxes, masks = [], []
    for place, part in enumerate(parts):
        height, width = part.pixels.shape[1:]
        top = above if place // 2 else above - height
        start = left if place % 2 else left - width
        rows, columns = slice(top, top + height), slice(start, start + width)
        pixels[:, rows, columns] = part.pixels
        boxes.append(part.boxes + torch.tensor([start, top, start, top]))
        if part.masks is not None:
            whole = torch.zeros(len(part.masks), *size, dtype=torch.uint8)
            whole[:, rows, columns] = part.masks
            masks.append(whole)
    return TrainingImage(
        pixels=pixels,
        boxes=torch.cat(boxes),
        labels=torch.cat([part.labels for part in parts]),
        masks=torch.cat(masks) if masks else None,
    )


def _drawn(augmentation: DenseAugmentation) -> Sides:
    sides, smallest = augmentation.sides, augmentation.smallest
    if smallest == 1:
        return sides
    share = smallest + (1 - smallest) * torch.rand(()).item()
    return replace(sides, short=max(round(share * sides.short), SHORTEST))


def _masks(objects: Objects, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """The pixels of each object that is no crowd, (N, new height, new width)."""
    drawn = [
        resized_mask(outline, size, new_size)
        for outline, crowd in zip(objects.outlines, objects.crowd, strict=True)
        if outline is not None and not crowd
    ]
    found = np.array(drawn, dtype=np.uint8).reshape(-1, *new_size[::-1])
    return torch.from_numpy(found)


def _sides(boxes: Tensor) -> Tensor:
    plain = boxes.as_subclass(Tensor)
    return plain[:, 2:] - plain[:, :2]


def _areas(boxes: Tensor) -> Tensor:
    return _sides(boxes).prod(1)


@dataclass(frozen=True, kw_only=True)
class _Examples(Examples[tuple[Image.Image, Objects], TrainingImage]):
    data: AnnotatedImages
    augmentation: DenseAugmentation
    masks: bool

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> tuple[Image.Image, Objects]:
        return read_image(self.data, index), self.data.objects[index]

    def augmented(self, content: tuple[Image.Image, Objects]) -> TrainingImage:
        one = self.augmentation
        if not one.mosaic or torch.rand(()).item() >= one.mosaic:
            return augmented(*content, one, masks=self.masks)
        contents = [content]
        for drawn in torch.randint(len(self), (3,)).tolist():
            # An unreadable image is not reported here, but in the batch for which it is drawn.
            found = first_readable(len(self), drawn, self.read)
            contents.append(content if isinstance(found, DataError) else found.content)
        half = replace(one, sides=one.sides.halved())
        return mosaic([augmented(*each, half, masks=self.masks) for each in contents], one.fill)


def dense_loader(
    data: AnnotatedImages,
    augmentation: DenseAugmentation,
    *,
    batches: Iterable[list[int]],
    workers: int,
    seed: int,
    epoch: int,
    masks: bool = False,
) -> DataLoader[DenseBatch]:
    """The images of each of `batches`, augmented at random; see `data.loading.train_loader`.

    Args:
        masks: whether batches have the objects' pixels; see `with_outlines`.
    """
    examples = _Examples(data=data, augmentation=augmentation, seed=seed, epoch=epoch, masks=masks)
    return example_loader(examples, _pack, batches=batches, workers=workers)


def _pack(items: Sequence[TrainingImage], problems: tuple[str, ...]) -> _Packed:
    masks = [np.packbits(item.masks.numpy(), axis=-1) for item in items if item.masks is not None]
    return _Packed(
        images=[item.pixels.numpy() for item in items],
        boxes=[item.boxes.numpy() for item in items],
        labels=[item.labels.numpy() for item in items],
        masks=masks or None,
        problems=problems,
    )
