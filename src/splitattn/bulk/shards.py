"""Labels the images of one shard, and writes them as one part."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from heapq import nsmallest
from pathlib import Path, PurePosixPath
from random import Random
from shutil import copyfileobj, rmtree
from socket import gethostname
from tempfile import mkdtemp
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import finalize

import splitattn
from splitattn.bulk.listing import Entry, version_of
from splitattn.bulk.plan import (
    Plan,
    ShardReport,
    find_table,
    hash_of_weights,
    part_name,
    read_manifest,
    write_part,
)
from splitattn.bulk.stores import is_bucket, open_address, open_store, read_object
from splitattn.classifier import Classifier, Prediction
from splitattn.data.parquet import open_unlabeled_parquet
from splitattn.data.splits import split_of
from splitattn.errors import DataError, ImageError, one_line
from splitattn.features import FeatureExtractor, map_finite
from splitattn.images.decode import ImageSource
from splitattn.images.limits import DEFAULT_LIMITS
from splitattn.images.paths import is_url
from splitattn.images.preprocess import Pixels

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = 24
ERROR_PATHS = 3  # of each kind of error
_LEAST_READERS = 16
# So few errors are never too many, whatever their share.
_FEW_ERRORS = 10


class TooManyErrorsError(DataError):
    """So many images could not be labeled that something else must be wrong."""


def check_errors(images: int, errors: int, most: float, where: str) -> None:
    """Raise if more than a share of `most` of the images are errors.

    Args:
        where: the end of the message: where these images are, and what to do.

    Raises:
        TooManyErrorsError: they are.
    """
    if errors > max(_FEW_ERRORS, most * images):
        raise TooManyErrorsError(
            f"at most {most:.0%} of the images may be errors, got {errors:,} of {images:,} {where}"
        )


class ShardLabeler:
    """Labels shard after shard with one network, which it opens at the first."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @cached_property
    def _classifier(self) -> Classifier:
        run, plan = self._plan.run, self._plan
        classifier = Classifier(
            plan.model,
            plan.weights,
            engine=run.engine,
            decoding=run.decoding,
            class_names=run.class_names,
        )
        here = replace(
            run,
            splitattn=splitattn.__version__,
            model=classifier.model,
            weights=hash_of_weights(plan.model, plan.weights),
            preprocessing=classifier.preprocessing,
        )
        for name in ("splitattn", "model", "weights", "preprocessing"):
            ours, theirs = getattr(run, name), getattr(here, name)
            if ours != theirs:
                raise DataError(
                    f"all workers must have the run's {name}, {ours!s:.120}, got {theirs!s:.120} "
                    f"on {gethostname()}: install the same there"
                )
        return classifier

    @cached_property
    def _extractor(self) -> FeatureExtractor | None:
        plan = self._plan
        if not plan.run.features:
            return None
        return FeatureExtractor(plan.model, plan.weights, engine=plan.run.engine)

    def ready(self) -> None:
        """Do nothing. A worker that answers has started."""

    def label(self, number: int) -> ShardReport:
        """Label the images of a shard and write its part.

        If the part is there, only those images that it has as errors are labeled again.

        Raises:
            InputError, WeightsError: see `Classifier`; or the shard's list, its part or the store
                of an image cannot be read, or the part not written.
            TooManyErrorsError: too many images of a new part are errors; it is not written.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        store, schema = open_store(self._plan.target), self._schema()
        entries = read_manifest(store, number)
        before = find_table(store, part_name(number), schema.names)
        wrong = (
            list(range(len(entries)))
            if before is None
            else pc.indices_nonzero(pc.is_valid(before["error"])).to_pylist()
        )
        chosen = [entries[index] for index in wrong]
        results = self._results(chosen)  # `chosen` now has the size and etag of what was read
        errors = [
            (one_line(entry.name), result)
            for entry, result in zip(chosen, results, strict=True)
            if isinstance(result, ImageError)
        ]
        table = pa.Table.from_pylist(list(map(_row, chosen, results)), schema)
        if before is None:
            first = errors[0][1] if errors else "none"
            where = (
                f"in {part_name(number)}: fix the images, or raise most_errors (--most-errors); "
                f"the first: {first}"
            )
            check_errors(len(entries), len(errors), self._plan.most_errors, where)
        else:
            places = list(range(len(entries)))
            for place, index in enumerate(wrong):
                places[index] = len(entries) + place
            table = pa.concat_tables([before, table]).take(places)
        report = _report(number, table, errors, labeled=len(wrong))
        write_part(store, table, report)
        return report

    def _schema(self) -> "pa.Schema":
        import pyarrow as pa

        fields: dict[str, pa.DataType] = {
            "path": pa.string(),
            "size": pa.int64(),
            "etag": pa.string(),
            "labels": pa.list_(pa.string()),
            "indices": pa.list_(pa.int32()),
            "probabilities": pa.list_(pa.float32()),
            "error": pa.string(),
        }
        if self._plan.run.features:
            fields["features"] = pa.list_(pa.float32())
        return pa.schema(list(fields.items()))

    def _results(self, entries: list[Entry]) -> list[dict[str, Any] | ImageError]:
        """The answer for each image, or its error, in order.

        Args:
            entries: the images; each gets the size and etag of what was read.
        """
        results = map_finite(
            self._compute,
            [partial(_read, entries, index) for index in range(len(entries))],
            self._classifier.preprocessing,
            batch_size=self._plan.batch_size,
            workers=self._plan.workers or _threads(entries),
            limits=DEFAULT_LIMITS,
            decoding=self._plan.run.decoding,
            names=[entry.name for entry in entries],
        )
        return list(results)

    def _compute(self, pixels_BCHW: Pixels) -> Sequence[dict[str, Any] | None]:  # noqa: N803
        """The answer for each image, or None where a network gives no finite numbers."""
        most, least = self._classifier.choice(self._plan.run.topk, None)
        best = self._classifier.best(pixels_BCHW, most, least)
        features = self._extractor.features(pixels_BCHW) if self._extractor else best
        return [
            None if labels is None or of_image is None else self._answer(labels, of_image)
            for labels, of_image in zip(best, features, strict=True)
        ]

    def _answer(self, labels: list[Prediction], features: Any) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "labels": [one.label for one in labels],
            "indices": [one.index for one in labels],
            "probabilities": [one.probability for one in labels],
        }
        return {**answer, "features": features} if self._extractor else answer


def _threads(entries: Iterable[Entry]) -> int | None:
    """How many threads read and decode; None is the default of `load_batches`.

    Threads that wait for a bucket keep no processor busy, so they may be more than the processors.
    """
    if not any(is_bucket(entry.path) for entry in entries):
        return None
    return max(_LEAST_READERS, min(32, (os.cpu_count() or 1) + 4))


def _read(entries: list[Entry], index: int) -> ImageSource:
    """What to decode for an image. Its entry gets the size and etag that it has by now."""
    entry = entries[index]
    if entry.row is not None:
        return _image_in_parquet(entry.path, entry.row)
    if is_bucket(entry.path):
        content, etag = read_object(entry.path)
        entries[index] = replace(entry, size=len(content), etag=etag)
        return content
    if not is_url(entry.path):
        # Taken before the file is read: if it changes in between, the row has the old etag.
        entries[index] = replace(entry, **version_of(entry.path))
    return entry.path


def _row(entry: Entry, result: dict[str, Any] | ImageError) -> dict[str, Any]:
    known = {"path": one_line(entry.name), "size": entry.size, "etag": entry.etag}
    if isinstance(result, ImageError):
        return {**known, "error": str(result)}
    return {**known, **result, "error": None}


def _report(
    number: int, table: "pa.Table", errors: Iterable[tuple[str, ImageError]], *, labeled: int
) -> ShardReport:
    """The report of a part, from which it is known without reading its rows.

    Args:
        errors: path and error of each image that has no labels.
    """
    import pyarrow.compute as pc

    paths_of: dict[str, list[str]] = {}
    for path, error in errors:
        paths_of.setdefault(_kind(error), []).append(path)
    first = [pc.list_slice(table[name], 0, 1).to_pylist() for name in ("labels", "probabilities")]
    chance = Random(number)
    named = [
        (chance.random(), path, *labels, *probabilities)
        for path, labels, probabilities in zip(table["path"].to_pylist(), *first, strict=True)
        if labels
    ]
    return ShardReport(
        number=number,
        images=len(table),
        labeled=labeled,
        errors=len(table) - table["error"].null_count,
        classes=Counter(label for _, _, label, _ in named),
        error_kinds={kind: len(paths) for kind, paths in paths_of.items()},
        error_paths={kind: paths[:ERROR_PATHS] for kind, paths in paths_of.items()},
        examples=nsmallest(EXAMPLES, named),
    )


def _kind(error: ImageError) -> str:
    """What was wrong, in words that many images share: without numbers and paths."""
    return re.sub(r"\S*[\d/]\S*", "...", error.reason)[:120]


def _image_in_parquet(path: str, row: int) -> bytes:
    try:
        with _opening:
            images = _images_of(path)
        return images[row]
    except (DataError, IndexError) as error:
        raise ImageError(str(error), f"{path}#{row}") from error


_opening = Lock()  # threads ask for the same file at once


@lru_cache(maxsize=2)  # a file and the next one; each may take 2 GB
def _images_of(path: str) -> Sequence[bytes]:
    """The images of a Parquet file, whichever split its name says."""
    if not is_bucket(path):
        return _open_images(Path(path))
    folder = mkdtemp()
    try:
        images = _open_images(_copied(path, Path(folder)))
    except BaseException:
        rmtree(folder)
        raise
    finalize(images, rmtree, folder)
    return images


def _copied(address: str, folder: Path) -> Path:
    copy = folder / PurePosixPath(address).name
    content = open_address(address)
    if content is None:
        raise DataError(f"{address} is gone")
    with content, copy.open("wb") as file:
        copyfileobj(content, file)
    return copy


def _open_images(path: Path) -> Sequence[bytes]:
    split = split_of(path.name.partition("-")[0]) or "train"
    images: Sequence[bytes] = open_unlabeled_parquet([path], split).images  # type: ignore[assignment]
    return images
