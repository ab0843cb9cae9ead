"""Decodes and preprocesses any number of images in threads, in batches and in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice, repeat
from typing import Literal, TypeVar, get_args

import numpy as np

from splitattn.errors import ImageError, InputError
from splitattn.images.decode import ImageSource, Reduced, name_of
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.images.preprocess import Pixels, load_pixels
from splitattn.preprocessing import Preprocessing, least_side

Decoding = Literal["exact", "fast"]
LazySource = ImageSource | Callable[[], ImageSource]
Loaded = Pixels | ImageError


def load_batches(
    sources: Iterable[LazySource],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    decoding: Decoding = "exact",
    names: Iterable[str] | None = None,
) -> Generator[list[Loaded], None, None]:
    """Decode and preprocess images in threads, ahead of the consumer.

    `sources` is read no further than two batches ahead, so memory does not grow with the number of
    images. Closing the generator ends its threads.

    Args:
        sources: images, as `decode` takes them, or functions that return one; a function is called
            in a thread and may raise `ImageError`.
        preprocessing: how an image becomes the network's input.
        batch_size: images in each batch; the last may have fewer.
        workers: threads that decode; None for a few more than there are processors.
        limits: images beyond these limits are refused before they are decoded.
        decoding: "fast" decodes large JPEG files at reduced size (see `preprocessing.least_side`).
        names: the images' names in errors; by default their paths.

    Yields:
        Batches: for each image, in order, its pixels as `load_pixels` returns them, or the error
        that occurred.

    Raises:
        InputError: a number is less than 1, or `decoding` is neither "exact" nor "fast".
        ValueError: there are not as many names as sources.
    """
    for name, number in (("batch_size", batch_size), ("workers", workers)):
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")
    least = least_side(preprocessing) if check_decoding(decoding) == "fast" else None

    def load(source: LazySource, name: str | None) -> Loaded:
        try:
            image = source() if callable(source) else source
            return load_pixels(image, preprocessing, least_side=least, limits=limits, name=name)
        except ImageError as error:
            return error

    named = zip(sources, repeat(None)) if names is None else zip(sources, names, strict=True)
    return _batches(load, named, batch_size, workers)


T = TypeVar("T")
Source = TypeVar("Source")
Name = TypeVar("Name")


def map_images(
    compute: Callable[[Pixels], Sequence[T]],
    sources: Iterable[LazySource],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int | None,
    limits: Limits,
    decoding: Decoding,
    names: Iterable[str] | None = None,
) -> Generator[T | ImageError, None, None]:
    """Compute something for each image, in batches, while the next ones are decoded.

    Args:
        compute: maps the pixels (B, C, size, size) of readable images to one result for each.
        sources, preprocessing, batch_size, workers, limits, decoding, names: see `load_batches`.

    Yields:
        For each image, in order, its result or the error that occurred.

    Raises:
        InputError: see `load_batches`.
    """
    batches = load_batches(
        sources,
        preprocessing,
        batch_size=batch_size,
        workers=workers,
        limits=limits,
        decoding=decoding,
        names=names,
    )
    return _computed(compute, batches)


def _computed(
    compute: Callable[[Pixels], Sequence[T]], batches: Generator[list[Loaded], None, None]
) -> Generator[T | ImageError, None, None]:
    with closing(batches):
        for batch in batches:
            pixels = [item for item in batch if not isinstance(item, ImageError)]
            results = iter(compute(np.stack(pixels)) if pixels else ())
            for item in batch:
                yield item if isinstance(item, ImageError) else next(results)


def check_decoding(decoding: Decoding) -> Decoding:
    """Return `decoding` unchanged.

    Raises:
        InputError: it is neither "exact" nor "fast".
    """
    if decoding not in get_args(Decoding):
        raise InputError(f"decoding must be 'exact' or 'fast', got {decoding!r}")
    return decoding


def map_decoded(
    compute: Callable[[Reduced], T],
    load: Callable[[ImageSource], Reduced],
    sources: Iterable[ImageSource],
) -> Generator[T | ImageError, None, None]:
    """Compute something for each image of any size, while the next ones are decoded.

    Args:
        compute: takes a decoded image, and may raise `ImageError`.
        load: decodes an image in a thread, and may raise `ImageError`.
        sources: images, as `load` takes them; they are read at most two images ahead.

    Yields:
        For each image, in order, its result or the error that occurred.
    """

    def loaded(source: ImageSource, name: str) -> tuple[str, Reduced | ImageError]:
        try:
            return name, load(source)
        except ImageError as error:
            return name, error

    named = ((source, name_of(source)) for source in sources)
    with closing(_batches(loaded, named, 1, None)) as batches:
        for ((name, image),) in batches:
            if isinstance(image, ImageError):
                yield image
                continue
            try:
                result = compute(image)
            except ImageError as error:
                yield ImageError(f"{name}: {error}")
                continue
            yield result


def _batches(
    load: Callable[[Source, Name], T],
    named: Iterable[tuple[Source, Name]],
    batch_size: int,
    workers: int | None,
) -> Generator[list[T], None, None]:
    remaining = iter(named)
    loading: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers, "splitattn-decode")
    try:
        while True:
            ahead = islice(remaining, 2 * batch_size - len(loading))
            loading.extend(pool.submit(load, source, name) for source, name in ahead)
            if not loading:
                return
            now = min(batch_size, len(loading))
            yield [loading.popleft().result() for _ in range(now)]
    finally:
        pool.shutdown(cancel_futures=True)
