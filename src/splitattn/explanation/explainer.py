"""Explains labels: opens the network and the image, and asks for a map.

Shapes: B batch, C channels, H and W rows and columns.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from splitattn.data.class_lists import ClassNames
from splitattn.data.class_names import normal
from splitattn.engines.engine import ACTIVATIONS, NOT_FINITE
from splitattn.engines.table import file_engine
from splitattn.errors import ImageError, InputError, check_choice, nearest
from splitattn.explanation.explanation import Box, Explanation
from splitattn.explanation.found import Map
from splitattn.explanation.networks import ExportedMaps, TrainedMaps
from splitattn.explanation.rise import CELLS
from splitattn.images.decode import (
    RGB,
    ImageSource,
    decode_planes,
    decode_reduced,
    name_of,
    read_content,
)
from splitattn.images.limits import DEFAULT_LIMITS, Limits, check_limits
from splitattn.images.loading import Decoding, check_decoding
from splitattn.images.preprocess import Pixels, normalize, preprocess_planes, preprocess_reduced
from splitattn.opening import OpenedNetwork, open_network, open_weights
from splitattn.preprocessing import Preprocessing, geometry, least_side
from splitattn.weights.download import Progress

Method = Literal["auto", "cam", "layercam", "rise"]
METHODS: tuple[str, ...] = get_args(Method)
# Shorter side of the picture, in pixels, if the image has as many.
_PICTURE_SIDE = 480
_MOST_DIGITS = 9  # of an index


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
        model, weights, device, engine, decoding, white_level, class_names, limits, progress: see
            `Classifier`.
        opened: the same network, if it is open already. Its labels are explained.

    Attributes:
        model, weights: what was chosen.
        classes: names by output index.
        preprocessing: how an image becomes the network's input.

    Raises:
        InputError, DataError, WeightsError: see `Classifier`; or the weights have changed since
            `opened` was opened.
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
        class_names: ClassNames | None = None,
        limits: Limits = DEFAULT_LIMITS,
        progress: Progress | None = None,
        opened: OpenedNetwork | None = None,
    ) -> None:
        self._limits = check_limits(limits)
        fast = check_decoding(decoding) == "fast"
        self._network: TrainedMaps | ExportedMaps
        if weights is not None and file_engine(weights):
            opened = opened or open_network(
                model, weights, engine=engine, device=device, class_names=class_names
            )
            self._activate = ACTIVATIONS[opened.metadata.activation]
            self._network = ExportedMaps(opened.engine, opened.weights, self._activate)
            self.model, self.weights = opened.model, opened.weights
            self.classes, own = opened.classes, opened.preprocessing
        else:
            unchanged = opened.file if opened else None
            trained = open_weights(
                model, weights, class_names=class_names, progress=progress, unchanged=unchanged
            )
            self._activate = ACTIVATIONS[trained.metadata.activation]
            self._network = TrainedMaps(trained, engine, device)
            self.model, self.weights = trained.metadata.model, trained.weights
            self.classes, own = trained.metadata.classes, trained.metadata.preprocessing
        self.preprocessing = own if white_level is None else replace(own, white_level=white_level)
        self._least_side = least_side(own) if fast else None

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
        """Decode an image.

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
        check_choice("method", method, METHODS)
        index = None if label is None else self._index(label)
        images = normalize(loaded.pixels[None], self.preprocessing)
        found = self._network.explain(images, index, method)
        if not (np.isfinite(found.logits).all() and np.isfinite(found.map).all()):
            raise ImageError(f"{name}: {NOT_FINITE}")
        return Explanation(
            map=found.map,
            grid=(CELLS, CELLS) if found.method == "rise" else _shape(found.map),
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

    @cached_property
    def _by_name(self) -> dict[str, int]:
        """The index of each class by its name; of equal names, the first."""
        return {normal(name): index for index, name in reversed([*enumerate(self.classes)])}

    def _index(self, label: str | int) -> int:
        if isinstance(label, str) and (found := self._by_name.get(normal(label))) is not None:
            return found
        if isinstance(label, int | np.integer) or (
            label.isdecimal() and len(label) <= _MOST_DIGITS
        ):
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
