"""Batches of decoded images come in order, within limits, with errors in place of pixels."""

import io
import itertools
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from splitattn.errors import ImageError, InputError
from splitattn.images.decode import ImageSource, Reduced, decode, decode_reduced
from splitattn.images.limits import Limits
from splitattn.images.loading import LazySource, load_batches, map_decoded
from splitattn.images.preprocess import preprocess, preprocess_reduced
from splitattn.preprocessing import Preprocessing, least_side

PREPROCESSING = Preprocessing(size=32, crop_fraction=0.875)
PHOTOGRAPHS = [getattr(skimage.data, name)() for name in ("chelsea", "coffee", "rocket", "cat")]


def described(batch: list[Any]) -> list[str]:
    return [str(item) if isinstance(item, ImageError) else "pixels" for item in batch]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 99])
@pytest.mark.parametrize("workers", [1, 3, None])
def test_every_image_comes_once_and_in_order(batch_size: int, workers: int | None) -> None:
    images = PHOTOGRAPHS * 2
    batches = list(load_batches(images, PREPROCESSING, batch_size=batch_size, workers=workers))
    sizes = [len(batch) for batch in batches]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= batch_size
    found = list(itertools.chain.from_iterable(batches))
    expected = [preprocess(decode(image), PREPROCESSING) for image in images]
    np.testing.assert_array_equal(found, expected)


def test_order_is_kept_when_decoding_is_not() -> None:
    second_has_begun = threading.Event()

    def first() -> ImageSource:
        assert second_has_begun.wait(10)
        return PHOTOGRAPHS[0]

    def second() -> ImageSource:
        second_has_begun.set()
        return b"broken"

    [batch] = load_batches([first, second], PREPROCESSING, batch_size=2, workers=2)
    np.testing.assert_array_equal(batch[0], preprocess(decode(PHOTOGRAPHS[0]), PREPROCESSING))
    assert isinstance(batch[1], ImageError)


def test_sources_are_read_two_batches_ahead_and_no_further() -> None:
    read = 0

    def endless() -> Iterator[LazySource]:
        nonlocal read
        while True:
            read += 1
            yield PHOTOGRAPHS[0]

    batches = load_batches(endless(), PREPROCESSING, batch_size=3)
    assert read == 0
    next(batches)
    assert read == 6
    next(batches)
    assert read == 9
    batches.close()


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("splitattn-decode")]


def test_closing_the_generator_ends_its_threads() -> None:
    endless = itertools.repeat(PHOTOGRAPHS[0])
    batches = load_batches(endless, PREPROCESSING, batch_size=2, workers=2)
    next(batches)
    assert len(threads()) == 2
    batches.close()
    assert not threads()


def test_a_source_that_raises_ends_the_threads_too() -> None:
    def failing() -> Iterator[LazySource]:
        yield PHOTOGRAPHS[0]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(load_batches(failing(), PREPROCESSING, batch_size=2))
    assert not threads()


def test_an_image_that_cannot_be_read_is_an_error_in_its_place() -> None:
    def unreadable() -> ImageSource:
        raise ImageError("row 3 cannot be read")

    sources = [PHOTOGRAPHS[0], "missing.jpg", b"broken", unreadable, PHOTOGRAPHS[1]]
    first, second = load_batches(sources, PREPROCESSING, batch_size=3)
    assert described(first)[:2] == ["pixels", "missing.jpg: no such file; check the path"]
    assert described(first)[2].startswith("bytes: ")
    assert described(second) == ["row 3 cannot be read", "pixels"]


def test_a_mistake_in_our_own_code_is_not_taken_for_a_bad_image() -> None:
    def wrong() -> ImageSource:
        raise KeyError("wrong")

    with pytest.raises(KeyError, match="wrong"):
        next(load_batches([wrong], PREPROCESSING, batch_size=1))


def test_errors_call_images_by_the_names_given() -> None:
    [batch] = load_batches(
        [b"broken", b"bad"], PREPROCESSING, batch_size=2, names=["val[0]", "val[1]"]
    )
    assert [line.partition(": ")[0] for line in described(batch)] == ["val[0]", "val[1]"]
    with pytest.raises(ValueError, match="shorter"):
        list(load_batches([b"broken", b"bad"], PREPROCESSING, batch_size=2, names=["val[0]"]))


def test_fast_decoding_reduces_large_jpegs() -> None:
    stream = io.BytesIO()
    Image.fromarray(PHOTOGRAPHS[1]).resize((1200, 800)).save(stream, "JPEG", quality=95)
    content = stream.getvalue()
    [[exact]] = load_batches([content], PREPROCESSING, batch_size=1)
    [[fast]] = load_batches([content], PREPROCESSING, batch_size=1, decoding="fast")
    reduced = decode_reduced(content, least_side(PREPROCESSING))
    assert reduced.scale == 8
    np.testing.assert_array_equal(fast, preprocess_reduced(reduced, PREPROCESSING))
    assert not np.array_equal(exact, fast)


def test_limits_apply() -> None:
    limits = Limits(max_pixels=1000)
    [[item]] = load_batches(PHOTOGRAPHS[:1], PREPROCESSING, batch_size=1, limits=limits)
    assert "1,000 pixels" in str(item)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1, "workers": 0}, "workers must be at least 1, got 0"),
        ({"batch_size": 1, "decoding": "quick"}, "must be 'exact' or 'fast', got 'quick'"),
    ],
)
def test_arguments_are_checked_at_once(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        load_batches([], PREPROCESSING, **arguments)


def test_whole_images_are_decoded_while_another_is_computed_on() -> None:
    decoded = [threading.Event() for _ in PHOTOGRAPHS]

    def watched(source: Any) -> Reduced:
        image = decode_reduced(source, None)
        next(e for e, own in zip(decoded, PHOTOGRAPHS, strict=True) if own is source).set()
        return image

    computed: list[tuple[int, int]] = []

    def compute(image: Reduced) -> int:
        computed.append(image.whole)
        if len(computed) < len(decoded):
            assert decoded[len(computed)].wait(10)
        return len(computed)

    assert [*map_decoded(compute, watched, PHOTOGRAPHS)] == [1, 2, 3, 4]
    assert computed == [each.shape[1::-1] for each in PHOTOGRAPHS]
    assert not threads()


def test_errors_of_decoding_and_computing_take_the_place_of_results() -> None:
    def compute(image: Reduced) -> int:
        if image.whole[0] > 500:
            raise ImageError("too wide")
        return image.whole[0]

    load = partial(decode_reduced, least_side=None)
    first, second, third = map_decoded(compute, load, [b"", *PHOTOGRAPHS[:2]])
    assert (str(first)[:7], second, str(third)) == ("bytes: ", 451, "array: too wide")
