"""Parts of a data set: a validation split where there is none, and cross-validation.

A weights file says in its metadata's `origin` which part its training kept for validation.
"""

import random
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from splitattn.data.labeled import LabeledImages
from splitattn.errors import DataError, InputError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Which of `of` equal parts is kept for validation, counted from 1.

    Raises:
        InputError: there is no such part.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not (self.of >= 2 and 1 <= self.number <= self.of):
            raise InputError(f"a fold must be 1/N to N/N, N being at least 2, got {self}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: object) -> "Fold":
        """The fold that `text` means, such as "1/5".

        Raises:
            InputError: it means none.
        """
        found = isinstance(text, str) and re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if not found:
            raise InputError(f"a fold must be K/N, such as 1/5, got {text!r:.60}")
        return cls(number=int(found[1]), of=int(found[2]))


def split_off(data: LabeledImages, fold: Fold, *, seed: int) -> tuple[LabeledImages, LabeledImages]:
    """All images but those of `fold`, and those of `fold`.

    Each fold has the same share of each class, up to one image. `seed` decides which images these
    are, and an image is in one fold only.

    Raises:
        DataError: there are fewer images than folds.
    """
    if len(data) < fold.of:
        raise DataError(
            f"{fold.of} parts need as many images, got {len(data)} in {data.origin}; add images "
            "or a split for validation"
        )
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(data.labels):
        by_class[label].append(index)
    shuffled: list[int] = []
    for label in sorted(by_class):
        # As text, which takes both numbers: classes must not all have the same order.
        random.Random(f"{seed} {label}").shuffle(by_class[label])
        shuffled += by_class[label]
    # Dealt in turn over all classes, so that folds are as large as each other.
    kept = set(shuffled[fold.number - 1 :: fold.of])
    rest = [index for index in range(len(data)) if index not in kept]
    whole = data.fingerprint()
    return (
        replace(subset(data, rest, f"all but fold {fold}"), whole=whole),
        replace(subset(data, sorted(kept), f"fold {fold}"), whole=whole),
    )


def origin_of(kept: LabeledImages) -> dict[str, str]:
    """What a weights file says of the part that its training kept: nothing, if it kept none."""
    return {"validation": kept.part, "images": kept.whole} if kept.whole else {}


def is_whole(data: LabeledImages, origin: Mapping[str, object]) -> bool:
    """Whether `data` are all images, of which a training with this `origin` kept a part."""
    return "images" in origin and origin["images"] == data.fingerprint()


def kept_part(data: LabeledImages, origin: Mapping[str, object], seed: object) -> LabeledImages:
    """The images of `data` that a training kept for validation.

    Args:
        data: all images, with labels that are the network's outputs.
        origin: as the weights file says it.
        seed: of the training's recipe.

    Raises:
        DataError: the weights file says of no such part, or that it was one of other images.
    """
    part = origin.get("validation")
    if not isinstance(part, str) or not isinstance(seed, int):
        raise DataError(
            "--held-out needs weights whose training kept a part of its images, got weights that "
            "say nothing of one: use --split"
        )
    if not is_whole(data, origin):
        raise DataError(
            f"--held-out needs the images that were trained on, got others in {data.origin} "
            f"({len(data)} images): files or labels differ; name the same data"
        )
    return split_off(data, Fold.parse(part.removeprefix("fold ")), seed=seed)[1]


class _Chosen(Sequence[T]):
    """Some items of a sequence, looked up when they are asked for."""

    def __init__(self, items: Sequence[T], indices: list[int]) -> None:
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> T:  # type: ignore[override]
        return self._items[self._indices[index]]


def subset(data: LabeledImages, indices: list[int], part: str) -> LabeledImages:
    """The images of `data` at `indices`, which must be sorted. `part` says which these are."""
    blocks = data.blocks
    if blocks is not None:
        starts = tuple(bisect_left(indices, start) for start in blocks.starts)  # some are empty
        blocks = replace(blocks, starts=starts)
    return replace(
        data,
        origin=f"{data.origin}, {part}",
        part=part,
        images=_Chosen(data.images, indices),
        labels=[data.labels[index] for index in indices],
        names=_Chosen(data.names, indices),
        blocks=blocks,
    )
