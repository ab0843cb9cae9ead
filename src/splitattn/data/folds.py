"""Splits off a part of a data set for validation or cross-validation.

The `origin` in a weights file's metadata records which part was kept for validation.
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
    """The part, counted from 1, of `of` equal parts that is kept for validation.

    Raises:
        InputError: `number` is not from 1 to `of`, or `of` is less than 2.
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
        """Parse a fold such as "1/5".

        Raises:
            InputError: `text` is not a fold.
        """
        found = isinstance(text, str) and re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if not found:
            raise InputError(f"a fold must be K/N, such as 1/5, got {text!r:.60}")
        return cls(number=int(found[1]), of=int(found[2]))


def split_off(data: LabeledImages, fold: Fold, *, seed: int) -> tuple[LabeledImages, LabeledImages]:
    """Split `data` into all images but those of `fold`, and those of `fold`.

    Each fold has the same share of each class, up to one image. Each image is in exactly one fold,
    chosen by `seed`.

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
        # A seed of both numbers, so that classes are shuffled differently.
        random.Random(f"{seed} {label}").shuffle(by_class[label])
        shuffled += by_class[label]
    # Assign in turn across classes, so that folds have equal sizes.
    kept = set(shuffled[fold.number - 1 :: fold.of])
    rest = [index for index in range(len(data)) if index not in kept]
    whole = data.fingerprint()
    return (
        replace(subset(data, rest, f"all but fold {fold}"), whole=whole),
        replace(subset(data, sorted(kept), f"fold {fold}"), whole=whole),
    )


def origin_of(kept: LabeledImages) -> dict[str, str]:
    """The entries of `origin` that record the part kept for validation; empty if there is none."""
    return {"validation": kept.part, "images": kept.whole} if kept.whole else {}


def is_whole(data: LabeledImages, origin: Mapping[str, object]) -> bool:
    """Whether `data` are all images of a training that kept a part of them for validation."""
    return "images" in origin and origin["images"] == data.fingerprint()


def kept_part(data: LabeledImages, origin: Mapping[str, object], seed: object) -> LabeledImages:
    """The images of `data` that a training kept for validation.

    Args:
        data: all images, with labels that are the network's outputs.
        origin: from the metadata of the weights file.
        seed: of the training's recipe.

    Raises:
        DataError: the metadata records no such part, or a part of other images.
    """
    part = origin.get("validation")
    if not isinstance(part, str) or not isinstance(seed, int):
        raise DataError(
            "--held-out needs weights whose training kept a part of its images, these weights "
            "record none: use --split"
        )
    if not is_whole(data, origin):
        raise DataError(
            f"--held-out needs the images that were trained on, got others in {data.origin} "
            f"({len(data)} images): files or labels differ; name the same data"
        )
    return split_off(data, Fold.parse(part.removeprefix("fold ")), seed=seed)[1]


class _Chosen(Sequence[T]):
    """A lazy selection of a sequence's items."""

    def __init__(self, items: Sequence[T], indices: list[int]) -> None:
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> T:  # type: ignore[override]
        return self._items[self._indices[index]]


def subset(data: LabeledImages, indices: list[int], part: str) -> LabeledImages:
    """The images of `data` at `indices`, which must be sorted; `part` names the selection."""
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
