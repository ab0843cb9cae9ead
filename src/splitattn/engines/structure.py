"""Checks that are common to all formats of exported files, before an engine opens one.

Engines read files in C++, where a hostile operation or number can crash the process, loop forever
or use all memory. So a file is first read in Python: `onnx_structure` and `open_vino_structure`
refuse every operation, attribute and type that our writers do not write. They compute all shapes
with the functions here, which refuse geometry that no ResNeSt has.

Shapes are tuples: (B, C, H, W) for maps, (B, N) for features and logits, (B, N, C) for boxes and
scores, (M, 3) for the boxes that are kept, where M is the largest possible number.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from splitattn.errors import WeightsError
from splitattn.graph import segmentation
from splitattn.graph.detection import IOU, LEAST_SCORE, MOST_OBJECTS, MULTIPLE, STRIDES, places
from splitattn.weights.metadata import ModelMetadata

_CLASSIFICATION = "classification"
_REDUCTION = 32  # stride of the class maps, in pixels of the image

Shape = tuple[int, ...]

# Limits. ResNeSt-269 in int8 has a tenth of these nodes, and at 416 pixels half of these products;
# as a detector it has a quarter of those for detection at 800 x 1333 pixels.
MOST_NODES = 50_000
MOST_PRODUCTS = {"classification": 2**37, "detection": 2**42, "segmentation": 2**42}
# How often constants may be used: a detector's head reads every map of its pyramid, and a segmenter
# enlarges all maps but the largest by the same factors.
MOST_USES = {
    "classification": 1,
    "detection": len(STRIDES),
    "segmentation": len(segmentation.STAGES) - 1,
}
# Limit for one tensor, for the batch that shapes are computed for: 512 MiB in float32.
MOST_NUMBERS = 2**27
_LARGEST_KERNEL = 7
_LARGEST_SIDE = 8192
_LARGEST_STRIDE = 2
_LARGEST_DILATION = 4
# Shapes of a file that takes any batch are computed for this many images.
TRIED_BATCH = 2


class StructureError(Exception):
    """A file has something that our writers do not write. The message says what."""


def expect(fact: object, otherwise: str) -> None:
    """Raise a `StructureError` with the message `otherwise` unless `fact` is true."""
    if not fact:
        raise StructureError(otherwise)


def checked(path: Path, check: Callable[[], Any]) -> Any:
    """The result of `check`, which checks the file at `path`.

    Raises:
        WeightsError: the file has something that our writers do not write.
    """
    try:
        return check()
    except StructureError as error:
        raise WeightsError(
            f"{path} is damaged, or splitattn export did not write it: {error}; export it again"
        ) from error


def read_metadata(text: str | None) -> ModelMetadata:
    """Parse the metadata inside a file.

    Raises:
        StructureError: there is none, or it is malformed.
    """
    if text is None:
        raise StructureError("it has no splitattn metadata")
    try:
        metadata = ModelMetadata.from_json(text)
    except WeightsError as error:
        raise StructureError(str(error)) from error
    expect(metadata.task in MOST_USES, f"its task is {metadata.task!r:.40}")
    return metadata


def image_shape(
    batch: int | None, channels: int | None, sides: Sequence[int | None], metadata: ModelMetadata
) -> Shape:
    """The shape of images for which a file's shapes are computed; None stands for any length."""
    preprocessing = metadata.preprocessing
    expect(channels == len(preprocessing.mean), f"its images have {channels} channels")
    expect(len(sides) == 2, "its input is not a batch of images")
    if metadata.task != "classification":
        expect(sides == [None, None], f"{metadata.task} with a fixed image size")
        return _affordable((batch or TRIED_BATCH, channels or 0, *_dense_sides(metadata)))
    for side in sides:
        expect(
            side in (None, preprocessing.size),
            f"it does not take images of {preprocessing.size} pixels, as its metadata says",
        )
    shape = (batch or TRIED_BATCH, len(preprocessing.mean), *[preprocessing.size] * 2)
    return _affordable(shape)


def _dense_sides(metadata: ModelMetadata) -> list[int]:
    """The largest image sides of a detector or segmenter, rounded up to a multiple of 32."""
    found = []
    for name in ("short_side", "long_side"):
        side = metadata.head.get(name)
        expect(type(side) is int and 1 <= side <= _LARGEST_SIDE, f"{name} of {side!r:.40}")
        assert isinstance(side, int)
        found.append(-(-side // MULTIPLE) * MULTIPLE)
    return found


def output_names(metadata: ModelMetadata, count: int) -> tuple[str, ...]:
    """Names of the outputs, in order.

    Args:
        count: number of outputs; a classifier may have class maps or not.
    """
    if metadata.task == "detection":
        return ("boxes", "scores", "selected")
    return (
        ("logits", "class_maps") if metadata.task == _CLASSIFICATION and count > 1 else ("logits",)
    )


def check_outputs(shapes: Sequence[Shape], images: Shape, metadata: ModelMetadata) -> None:
    """Raise unless the outputs have the shapes of the task, with all classes and images."""
    if metadata.task == "detection":
        batch, _, height, width = images
        found = sum(places(height, width, str(metadata.head.get("name"))))
        classes = len(metadata.classes)
        most = batch * classes * MOST_OBJECTS
        expected = [(batch, found, 4), (batch, found, classes), (most, 3)]
        expect([*shapes] == expected, f"boxes and scores of {expected}, it gives {shapes}")
        return
    shape, *maps = shapes
    if maps:
        lengths = [-(-side // _REDUCTION) for side in images[2:]]
        expected_maps = [(images[0], len(metadata.classes), *lengths)]
        expect(maps == expected_maps, f"class maps of {expected_maps}, it gives {maps}")
    sides = (
        [side // segmentation.STRIDE for side in images[2:]]
        if metadata.task == "segmentation"
        else []
    )
    expect(
        shape == (images[0], len(metadata.classes), *sides),
        f"its metadata has {len(metadata.classes)} classes, but its output is {shape} for "
        f"{images[0]} images",
    )


class Products:
    """Counts the multiplications for one image, and raises if they exceed the task's limit.

    Args:
        task: of the network.
    """

    def __init__(self, task: str) -> None:
        self._total = 0
        self._most = MOST_PRODUCTS[task]

    def add(self, batch: int, count: int) -> None:
        """Add the multiplications of one operation for a whole batch."""
        self._total += count // batch
        expect(self._total <= self._most, "it computes more than any ResNeSt")


def convolution(
    x: Shape,
    weight: Shape,
    products: Products,
    *,
    strides: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> Shape:
    """The shape of a convolution of x (B, C, H, W) by weight (outputs, C / groups, k, k)."""
    expect(len(x) == len(weight) == 4, "a convolution of another tensor than a map")
    outputs, inputs, *kernel = weight
    expect(
        1 <= groups <= x[1] and inputs * groups == x[1] and outputs >= 1 and outputs % groups == 0,
        "a convolution whose weights do not fit its input",
    )
    sides = _windows(x, kernel, strides, before, after, dilations, ceil=False)
    out = _affordable((x[0], outputs, *sides))
    products.add(x[0], math.prod(out) * inputs * math.prod(kernel))
    return out


def pooling(
    x: Shape,
    kernel: Sequence[int],
    *,
    strides: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    ceil: bool = False,
) -> Shape:
    """The shape of a max or average pooling of x (B, C, H, W)."""
    expect(len(x) == 4, "pooling of another tensor than a map")
    expect(
        all(pad < side for pad, side in zip((*before, *after), (*kernel, *kernel), strict=False)),
        "pooling whose padding is as large as its windows",
    )
    return _affordable((*x[:2], *_windows(x, kernel, strides, before, after, (1, 1), ceil=ceil)))


def mean(x: Shape) -> Shape:
    """The shape of the mean over pixels of x (B, C, H, W)."""
    expect(len(x) == 4, "a mean of another tensor than a map")
    return (*x[:2], 1, 1)


def dense(x: Shape, weight: Shape, products: Products) -> Shape:
    """The shape of a dense layer with weight (outputs, inputs)."""
    expect(
        len(x) == len(weight) == 2 and x[1] == weight[1] and weight[0] >= 1,
        "a dense layer whose weights do not fit its input",
    )
    products.add(x[0], x[0] * math.prod(weight))
    return _affordable((x[0], weight[0]))


def together(*shapes: Shape) -> Shape:
    """The shape of an elementwise operation; one input has the full shape, others broadcast."""
    expect(len({len(shape) for shape in shapes}) == 1, "shapes that do not fit each other")
    out = tuple(max(lengths) for lengths in zip(*shapes, strict=True))
    expect(
        out in shapes
        and all(a in (1, b) for shape in shapes for a, b in zip(shape, out, strict=True)),
        "shapes that do not fit each other",
    )
    return out


def concatenated(*shapes: Shape, axis: int = 1) -> Shape:
    """The shape of maps (B, C, H, W) concatenated along C, or of (B, C, N) along N."""
    rank = {1: 4, 2: 3}.get(axis)
    expect(
        all(len(shape) == rank for shape in shapes)
        and len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) == 1,
        "shapes that do not fit each other",
    )
    first = shapes[0]
    length = sum(shape[axis] for shape in shapes)
    return _affordable((*first[:axis], length, *first[axis + 1 :]))


def reshaped(x: Shape, target: Sequence[int]) -> Shape:
    """The shape of x (B, C, H, W) as features, as groups of channels, or as (B, C, N)."""
    expect(len(x) == 4, "a reshape of another tensor than a map")
    batch, channels, height, width = x
    if tuple(target) == (0, -1):
        expect(height == width == 1, "features from a map larger than 1 x 1")
        return batch, channels
    expect(
        len(target) in (3, 4) and target[0] == 0 and target[1] >= 1 and target[2] == -1,
        "a reshape that no detector has",
    )
    expect(len(target) == 3 or target[3] == 0, "a reshape that no detector has")
    rest = channels * height * (width if len(target) == 3 else 1)
    expect(rest % target[1] == 0, "a reshape into unequal parts")
    out = (batch, target[1], rest // target[1])
    return out if len(target) == 3 else (*out, width)


def normalized(x: Shape) -> Shape:
    """The shape of an instance norm of x (B, C, H, W)."""
    expect(len(x) == 4, "a norm of another tensor than a map")
    return x


def doubled(x: Shape) -> Shape:
    """The shape of x (B, C, H, W) at twice its height and width."""
    expect(len(x) == 4, "a resize of another tensor than a map")
    return _affordable((*x[:2], 2 * x[2], 2 * x[3]))


def counted(x: Shape, axis: int) -> Shape:
    """The shape of cumulative sums along rows or columns of x (B, C, H, W)."""
    expect(len(x) == 4 and axis in (2, 3), "sums along an axis that is not height or width")
    return x


def transposed(x: Shape, order: Sequence[int]) -> Shape:
    """The shape of x (B, C, N) as (B, N, C)."""
    expect(len(x) == 3 and tuple(order) == (0, 2, 1), "a transpose that no detector has")
    return x[0], x[2], x[1]


def selected(
    boxes: Shape,
    scores: Shape,
    *,
    most: Sequence[int],
    iou: Sequence[float],
    least: Sequence[float],
) -> Shape:
    """The largest shape of the selection from boxes (B, N, 4) with scores (B, K, N)."""
    expect(
        len(boxes) == len(scores) == 3
        and boxes[2] == 4
        and (boxes[0], boxes[1]) == (scores[0], scores[2]),
        "scores that do not fit their boxes",
    )
    limits = [*most, *iou, *least]
    ours = (MOST_OBJECTS, IOU, LEAST_SCORE)
    expect(
        len(limits) == len(ours)
        and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(limits, ours, strict=True)),
        "a box selection with other limits",
    )
    return _affordable((boxes[0] * scores[1] * MOST_OBJECTS, 3))


def _windows(
    x: Shape,
    kernel: Sequence[int],
    strides: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    dilations: Sequence[int],
    *,
    ceil: bool,
) -> list[int]:
    """How many windows there are in each direction."""
    geometry = (kernel, strides, before, after, dilations)
    expect(all(len(values) == 2 for values in geometry), "windows that are not two-dimensional")
    sides = []
    for length, size, stride, pad, end, dilation in zip(x[2:], *geometry, strict=True):
        expect(
            1 <= size <= _LARGEST_KERNEL
            and 1 <= stride <= _LARGEST_STRIDE
            and 1 <= dilation <= _LARGEST_DILATION
            and 0 <= pad <= dilation * (size - 1)
            and 0 <= end <= dilation * (size - 1),
            "windows that no ResNeSt has",
        )
        places = length + pad + end - dilation * (size - 1) - 1
        expect(places >= 0, "windows larger than the map")
        sides.append((places + (stride - 1 if ceil else 0)) // stride + 1)
    return sides


def _affordable(shape: Shape) -> Shape:
    expect(
        math.prod(shape) <= MOST_NUMBERS,
        f"a tensor of {math.prod(shape):,} numbers, more than {MOST_NUMBERS:,}",
    )
    return shape
