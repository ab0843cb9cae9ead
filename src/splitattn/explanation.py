"""What a label rests on: a map over the image, and the share of each split in every block.

Shapes: B batch, C channels, H and W rows and columns.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from threading import Lock
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitattn.engines.engine import ACTIVATIONS, NOT_FINITE, Array, Engine, Images
from splitattn.engines.table import file_engine
from splitattn.errors import ImageError, InputError, nearest
from splitattn.graph.folding import CLASS_MAPS, FoldedNetwork
from splitattn.graph.gradient import logit_gradient
from splitattn.images.decode import (
    RGB,
    ImageSource,
    decode_planes,
    decode_reduced,
    name_of,
    read_content,
)
from splitattn.images.heat import Scale, Shares, draw_heat, write_page
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.images.loading import Decoding
from splitattn.images.preprocess import Pixels, normalize, preprocess_planes, preprocess_reduced
from splitattn.opening import OpenedNetwork, TrainedNetwork, open_network, open_weights
from splitattn.preprocessing import Preprocessing, geometry, least_side
from splitattn.weights.download import Progress

Method = Literal["auto", "cam", "layercam", "rise"]
METHODS: tuple[str, ...] = get_args(Method)
# Where the last map has fewer places a side, it shows little, so "auto" takes an earlier one.
LEAST_GRID = 6
_LAST_STAGE, _EARLIEST_STAGE = 4, 2
# Shorter side of the picture, in pixels, if the image has as many.
_PICTURE_SIDE = 480
# RISE as in section 4 of the paper, with fewer masks: cells a side, the chance that one is seen.
_CELLS, _CHANCE, _MASKS, _MASKS_AT_ONCE = 7, 0.5, 512, 32
_ERRORS = 4  # standard errors that tell a place from chance

_MEANINGS = {
    "cam": "what each place adds to the logit; their mean plus a bias is the logit",
    "layercam": "activations times positive gradients, in logits",
    "rise": f"how much a place adds to the probability if it is seen, by {_MASKS} random masks",
}

_LEAST_PROBABILITY = 1e-6  # that a map of differences of probabilities can show
_MOST_DIGITS = 9  # of an index

Map = NDArray[np.float32]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class BlockShares:
    """How much a block keeps of each split: of channels, not of places.

    Attributes:
        block: its name, such as "layer1.0".
        shares: of each split, the mean over channels; they add up to one. With radix 1 the only
            number is the gate.
    """

    block: str
    shares: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What the probability of a label rests on.

    Attributes:
        map: float32 (H, W) over the part of the image that the network sees. What the numbers are
            depends on the method:

            - "cam": what each place adds to the logit. The mean over places plus `bias` is the
              logit (class activation mapping, arXiv 1512.04150). After the last stage Grad-CAM is
              the same up to a positive factor and its ReLU.
            - "layercam": the sum over channels of activations times positive gradients at an
              earlier stage (LayerCAM, doi 10.1109/TIP.2021.3089943), times the number of places.
            - "rise": how much more probable the label is in random masks in which the pixel is
              seen than in all of them (RISE, arXiv 1806.07421).
        grid: rows and columns that can be told apart: those of `map`, or for "rise" of the masks.
        highest: the number that the brightest color stands for: the map's highest, but at least one
            logit, or for "rise" four standard errors of the masks. So a map in which nothing stands
            out looks empty.
        label, index: the class that is explained.
        probability: of that class, from 0 to 1.
        logit: of that class.
        bias: the part of the logit that belongs to no place; None unless the method is "cam".
        method: "cam", "layercam" or "rise".
        image: the upright image, RGB. A large one is reduced.
        box: left, top, right and bottom of what the network sees, in pixels of `image`.
        shares: of the splits, block by block; empty where the network does not tell them.
    """

    map: Map
    grid: tuple[int, int]
    highest: float
    label: str
    index: int
    probability: float
    logit: float
    bias: float | None
    method: str
    image: Image.Image
    box: Box
    shares: tuple[BlockShares, ...]

    @property
    def meaning(self) -> str:
        """What the numbers of `map` are, in one line."""
        return _MEANINGS[self.method]

    def overlay(self) -> Image.Image:
        """The image with the map over it; beneath it the scale and the shares of the splits.

        Returns:
            RGB, 640 pixels wide.
        """
        rows, columns = self.grid
        scale = Scale(
            highest=self.highest,
            unit="probability" if self.method == "rise" else "logits",
            notes=(
                f"{self.method}, {rows} x {columns} places: {self.meaning}.",
                f"The map is {self.map.min():.3g} to {self.map.max():.3g}; what is not above 0 has "
                "no color. The network does not see the dark rim.",
            ),
        )
        shares = [Shares(block=each.block, values=each.shares) for each in self.shares]
        return draw_heat(
            self.image, self.map, self.box, scale, (self.label, self.probability), shares
        )

    def save_html(self, path: str | Path) -> None:
        """Write a page with the picture and its figures, which needs no other file.

        Raises:
            InputError: the file cannot be written.
        """
        write_html([("", self)], path)


def write_html(explained: Iterable[tuple[str, Explanation]], path: str | Path) -> None:
    """Write one page with several explanations, each with the name of its image.

    Raises:
        InputError: the file cannot be written.
    """
    write_page(
        Path(path),
        [(name or each.label, _figures(each), each.overlay()) for name, each in explained],
    )


def _figures(each: Explanation) -> str:
    bias = "" if each.bias is None else f", of which the bias is {each.bias:.2f}"
    return f"{each.label}: {100 * each.probability:.1f} %, logit {each.logit:.2f}{bias}"


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedImage:
    """An image as `Explainer` takes it.

    Attributes:
        pixels: the network's input (C, size, size).
        picture: what is shown, RGB.
        box: the part of it that is the input.
    """

    pixels: Pixels
    picture: Image.Image
    box: Box


class Explainer:
    """Explains labels. Threads may share it.

    It opens the network by itself, with maps as further outputs, when the first explanation needs
    it.

    Args:
        model, weights, device, engine, decoding, white_level, limits, progress: see `Classifier`.
        opened: the same network as someone has opened it, whose labels are to be explained.

    Attributes:
        model, weights: what was chosen.
        classes: names by output index.
        preprocessing: how an image becomes the network's input.

    Raises:
        InputError, WeightsError: see `Classifier`. The weights must be those of `opened` still.
    """

    def __init__(
        self,
        model: str | None = None,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        engine: str = "auto",
        decoding: Decoding = "fast",
        white_level: float | None = None,
        limits: Limits = DEFAULT_LIMITS,
        progress: Progress | None = None,
        opened: OpenedNetwork | None = None,
    ) -> None:
        self._network: _Trained | _Exported
        if weights is not None and file_engine(weights):
            opened = opened or open_network(model, weights, engine=engine, device=device)
            self._activate = ACTIVATIONS[opened.metadata.activation]
            self._network = _Exported(opened.engine, opened.weights, self._activate)
            self.model, self.weights = opened.model, opened.weights
            self.classes, own = opened.classes, opened.preprocessing
        else:
            unchanged = opened.file if opened else None
            trained = open_weights(model, weights, progress=progress, unchanged=unchanged)
            self._activate = ACTIVATIONS[trained.metadata.activation]
            self._network = _Trained(trained, engine, device)
            self.model, self.weights = trained.metadata.model, trained.weights
            self.classes, own = trained.metadata.classes, trained.metadata.preprocessing
        self.preprocessing = own if white_level is None else replace(own, white_level=white_level)
        self._limits = limits
        self._least_side = least_side(own) if decoding == "fast" else None

    def explain(
        self,
        image: ImageSource,
        label: str | int | None = None,
        method: str = "auto",
        *,
        name: str | None = None,
    ) -> Explanation:
        """See `Classifier.explain`.

        Args:
            name: what errors call the image.
        """
        return self.explain_loaded(
            self.load(image, name=name), label, method, name=name or name_of(image)
        )

    def prepare(self) -> None:
        """Compile what the method "auto" needs, now rather than with the first image."""
        self._network.prepare(self.preprocessing.size)

    def load(
        self, image: ImageSource, *, limits: Limits | None = None, name: str | None = None
    ) -> LoadedImage:
        """An image, decoded.

        Args:
            limits: None takes the explainer's.
            name: what errors call the image.

        Raises:
            ImageError: the image cannot be used.
        """
        limits, name = self._limits if limits is None else limits, name or name_of(image)
        preprocessing, white = self.preprocessing, self.preprocessing.white_level
        if preprocessing.channels != RGB:
            planes = decode_planes(
                image, preprocessing.channels, limits=limits, name=name, white_level=white
            )
            gray = (planes.mean(0) * 255).astype(np.uint8)
            picture = Image.fromarray(gray).convert("RGB")
            pixels, box = preprocess_planes(planes, preprocessing), _seen(picture, preprocessing)
            return LoadedImage(pixels=pixels, picture=picture, box=box)
        content = read_content(image, limits=limits)  # once, as it may be decoded twice
        reduced = decode_reduced(
            content, self._least_side, limits=limits, name=name, white_level=white
        )
        picture = reduced.image
        if reduced.scale > 1 and min(picture.size) < _PICTURE_SIDE:
            picture = decode_reduced(
                content, _PICTURE_SIDE, limits=limits, name=name, white_level=white
            ).image
        return LoadedImage(
            pixels=preprocess_reduced(reduced, preprocessing),
            picture=picture,
            box=_seen(picture, preprocessing, reduced.whole),
        )

    def explain_loaded(
        self,
        loaded: LoadedImage,
        label: str | int | None = None,
        method: str = "auto",
        *,
        name: str = "image",
    ) -> Explanation:
        """`explain` for an image that `load` gave."""
        if method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r:.60}")
        index = None if label is None else self._index(label)
        images = normalize(loaded.pixels[None], self.preprocessing)
        found = self._network.explain(images, index, method)
        if not (np.isfinite(found.logits).all() and np.isfinite(found.map).all()):
            raise ImageError(f"{name}: {NOT_FINITE}")
        return Explanation(
            map=found.map,
            grid=(_CELLS, _CELLS) if found.method == "rise" else _shape(found.map),
            highest=max(float(found.map.max()), found.least),
            label=self.classes[found.index],
            index=found.index,
            probability=float(self._activate(found.logits[None])[0, found.index]),
            logit=float(found.logits[found.index]),
            bias=found.bias,
            method=found.method,
            image=loaded.picture,
            box=loaded.box,
            shares=found.shares,
        )

    def _index(self, label: str | int) -> int:
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        if isinstance(label, int) or (label.isdecimal() and len(label) <= _MOST_DIGITS):
            if 0 <= int(label) < len(self.classes):
                return int(label)
            raise InputError(
                f"label must be a class or its index, 0 to {len(self.classes) - 1}, got {label}"
            )
        raise InputError(
            f"label must be one of the {len(self.classes)} classes or an index, got {label!r:.60}"
            f"{nearest(label, [*self.classes])}"
        )


def _shape(map: Map) -> tuple[int, int]:
    rows, columns = map.shape
    return rows, columns


def _seen(
    picture: Image.Image, preprocessing: Preprocessing, whole: tuple[int, int] | None = None
) -> Box:
    """What the network sees, in pixels of the picture, which may be reduced from `whole`."""
    width, height = whole or picture.size
    steps = geometry(width, height, preprocessing)
    left, top, right, bottom = steps.crop
    across = (right - left) / steps.resized[0] * picture.width / width
    down = (bottom - top) / steps.resized[1] * picture.height / height
    start_x, start_y = left * picture.width / width, top * picture.height / height
    left, top, right, bottom = steps.final_crop
    return (
        start_x + left * across,
        start_y + top * down,
        start_x + right * across,
        start_y + bottom * down,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """See `Explanation`; `logits` (classes,) are those of all classes.

    Attributes:
        least: what a place must have to be told from none.
    """

    method: str
    map: Map
    index: int
    logits: NDArray[np.float32]
    least: float = 1.0
    bias: float | None = None
    shares: tuple[BlockShares, ...] = ()


class _Trained:
    """A network whose weights are known: it gives any map."""

    def __init__(self, network: TrainedNetwork, engine: str, device: str) -> None:
        self._network, self._engine, self._device = network, engine, device
        self._engines: dict[str, Engine] = {}
        self._one_opens = Lock()

    def prepare(self, size: int) -> None:
        """Open what the method "auto" needs for images of `size` pixels."""
        self._opened(CLASS_MAPS if _shows_much(size) else f"layer{_stage(size)}")
        if not _shows_much(size):
            _ = self._folded

    def explain(self, images: Images, index: int | None, method: str) -> _Found:
        size = images.shape[2]
        if method == "auto":
            method = "cam" if _shows_much(size) else "layercam"
        if method == "rise":
            activate = ACTIVATIONS[self._network.metadata.activation]
            return _rise(self._opened(CLASS_MAPS), images, index, activate)
        if method == "cam":
            logits, class_maps, *shares = _outputs(self._opened(CLASS_MAPS), images)
            found = _cam(logits, class_maps, index)
        else:
            stage = _stage(size)
            logits, features, *shares = _outputs(self._opened(f"layer{stage}"), images)
            found = _layercam(logits, features, self._folded, stage, index)
        return replace(found, shares=self._shares(*shares))

    def _opened(self, map: str) -> Engine:
        """The network in its engine, with a map and the shares as further outputs."""
        with self._one_opens:
            if map not in self._engines:
                shares = ("shares",) if self._network.architecture.radix else ()
                outputs = ("logits", map, *shares)
                opened = self._network.load(self._engine, self._device, outputs=outputs)
                # Images come one by one: nothing is gained by a network for each size of a batch.
                opened.fix_batches([], self._network.metadata.preprocessing)
                self._engines[map] = opened
            return self._engines[map]

    @cached_property
    def _folded(self) -> FoldedNetwork:
        return self._network.fold("branches")

    def _shares(self, *shares: Array) -> tuple[BlockShares, ...]:
        """From the network's output "shares", if it has one. It leaves the last split out."""
        stages = self._network.architecture.stages()
        names = [shape.name for blocks in stages for shape in blocks]
        return tuple(
            BlockShares(block=name, shares=(*row, 1 - sum(row)) if self._several else tuple(row))
            for own in shares
            for name, row in zip(names, own.tolist(), strict=True)
        )

    @property
    def _several(self) -> bool:
        return self._network.architecture.radix > 1


class _Exported:
    """An exported file: it gives logits, and class maps if it was exported with them."""

    def __init__(self, engine: Engine, path: str, activate: Callable[[Array], Array]) -> None:
        self._activate = activate
        self._engine, self._path = engine, path

    def prepare(self, size: int) -> None:
        """Nothing: the file is open."""

    def explain(self, images: Images, index: int | None, method: str) -> _Found:
        if method in ("auto", "cam"):
            outputs = _outputs(self._engine, images)
            if len(outputs) > 1:
                return _cam(outputs[0], outputs[1], index)
        if method in ("auto", "rise"):
            return _rise(self._engine, images, index, self._activate)
        raise InputError(
            f"{self._path} is an exported file without the maps that {method} needs: take method "
            "rise, export it with --class-maps for cam, or take the weights it was exported from"
        )


def _grid(size: int, stage: int) -> int:
    """Places a side of the map that a stage gives, for images of `size` pixels."""
    return ceil(size / (2 << stage))


def _shows_much(size: int) -> bool:
    """Whether the last map is fine enough, for images of `size` pixels."""
    return _grid(size, _LAST_STAGE) >= LEAST_GRID


def _stage(size: int) -> int:
    """The latest of the earlier stages whose map is fine enough, or else the earliest."""
    earlier = range(_LAST_STAGE - 1, _EARLIEST_STAGE - 1, -1)
    return next((stage for stage in earlier if _grid(size, stage) >= LEAST_GRID), _EARLIEST_STAGE)


def _outputs(engine: Engine, images: Images) -> list[Array]:
    """What the network gives for a single image (1, C, H, W), without the axis of the batch."""
    batch = images.repeat(engine.batch or 1, axis=0)
    return [output[0] for output in engine.outputs(batch)]


def _cam(logits: Array, class_maps: Array, index: int | None) -> _Found:
    """Class activation mapping, from class maps (classes, H, W)."""
    index = int(logits.argmax()) if index is None else index
    own: Map = class_maps[index]
    return _Found(
        method="cam", map=own, index=index, logits=logits, bias=float(logits[index] - own.mean())
    )


def _layercam(
    logits: Array, features: Array, network: FoldedNetwork, stage: int, index: int | None
) -> _Found:
    """LayerCAM, from the map (C, H, W) that a stage gives."""
    index = int(logits.argmax()) if index is None else index
    positive = np.maximum(logit_gradient(network, stage, features, index), 0)
    own = ((positive * features).sum(0) * features[0].size).astype(np.float32)
    return _Found(method="layercam", map=own, index=index, logits=logits)


def _rise(
    engine: Engine, images: Images, index: int | None, activate: Callable[[Array], Array]
) -> _Found:
    """RISE: which places are seen when the label is probable."""
    logits = engine.logits(images)[0]
    index = int(logits.argmax()) if index is None else index
    total, seen = np.zeros(images.shape[2:]), np.zeros(images.shape[2:])
    found: list[float] = []
    for masks in _masks(images.shape[2]):
        # What is not seen has the mean color, which is zero after normalization.
        probabilities = activate(engine.logits(images * masks[:, None]))[:, index]
        total += np.tensordot(probabilities, masks, 1)
        seen += masks.sum(0)
        found.extend(probabilities.tolist())
    return _Found(
        method="rise",
        map=(total / seen - np.mean(found)).astype(np.float32),
        index=index,
        logits=logits,
        least=max(_ERRORS * float(np.std(found)) / len(found) ** 0.5, _LEAST_PROBABILITY),
    )


def _masks(size: int) -> Iterator[NDArray[np.float32]]:
    """Random masks (B, size, size) of soft cells, each shifted by a part of a cell."""
    rng = np.random.default_rng(0)
    cell = ceil(size / _CELLS)
    cells, side = _CELLS + 1, (_CELLS + 1) * cell
    for _ in range(0, _MASKS, _MASKS_AT_ONCE):
        masks = np.empty((_MASKS_AT_ONCE, size, size), np.float32)
        for mask in masks:
            hard = Image.fromarray((rng.random((cells, cells)) < _CHANCE).astype(np.float32))
            soft = np.asarray(hard.resize((side, side), Image.Resampling.BILINEAR))
            top, left = rng.integers(0, cell, 2)
            mask[:] = soft[top : top + size, left : left + size]
        yield masks
