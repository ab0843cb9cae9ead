"""Held-out validation images for data without such a split, and folds of cross-validation."""

from collections import Counter

import pytest

from splitattn.data.folds import Fold, split_off
from splitattn.data.labeled import Blocks, LabeledImages
from splitattn.errors import DataError, InputError

# 20 images of class 0, 11 of class 1 and 2 of class 2, in descending order of class.
LABELS = sorted([0] * 20 + [1] * 11 + [2] * 2, key=lambda label: -label)


def data(labels: list[int] = LABELS) -> LabeledImages:
    images = [f"{index}.png" for index in range(len(labels))]
    return LabeledImages(
        origin="data",
        classes=("a", "b", "c"),
        images=images,
        labels=labels,
        names=images,
        blocks=Blocks(starts=(0, 10, 20, 30), at_once=2),
    )


def test_each_image_is_in_one_fold_and_each_class_in_all() -> None:
    seen: Counter[str] = Counter()
    for number in range(1, 6):
        train, val = split_off(data(), Fold(number=number, of=5), seed=0)
        seen.update(map(str, val.images))
        assert sorted([*train.images, *val.images]) == sorted(data().images)
        assert len(val) in (6, 7)
        counts = Counter(val.labels)
        assert counts[0] == 4
        assert counts[1] in (2, 3)
        assert train.origin != val.origin
        assert (train.part, val.part) == (f"all but fold {number}/5", f"fold {number}/5")
        for part in (train, val):
            assert [part.labels[i] for i in range(len(part))] == [
                LABELS[int(name.split(".")[0])] for name in part.names
            ]
    assert set(seen.values()) == {1}
    assert len(seen) == len(LABELS)


def test_the_seed_decides() -> None:
    first, again, other = (
        list(split_off(data(), Fold(number=1, of=5), seed=seed)[1].images) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_each_part_keeps_the_blocks_of_its_images() -> None:
    train, val = split_off(data(), Fold(number=1, of=2), seed=0)
    for part in (train, val):
        numbers = [int(str(image).split(".")[0]) for image in part.images]
        assert part.blocks is not None
        first = [numbers.index(next(n for n in numbers if n >= start)) for start in (0, 10, 20, 30)]
        assert list(part.blocks.starts) == first


@pytest.mark.parametrize("text", ["5", "0/5", "6/5", "1/1", "1/5 ", "-1/5", "1/x", "", "1/2/3"])
def test_text_that_is_not_a_fold_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"a fold must be"):
        Fold.parse(text)


def test_there_are_no_more_folds_than_images() -> None:
    with pytest.raises(DataError, match="5 parts need as many images, got 4 in data"):
        split_off(data(LABELS[:4]), Fold(number=1, of=5), seed=0)
