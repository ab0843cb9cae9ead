"""Labels the images of one shard, and writes them as one part."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitattn.bulk.plan import Plan, find_table, part_name, read_manifest, to_parquet
from splitattn.bulk.sources import Entry
from splitattn.bulk.stores import is_bucket, open_store, read_object
from splitattn.classifier import Classifier, Prediction
from splitattn.data.parquet import open_unlabelled_parquet
from splitattn.data.splits import split_of
from splitattn.errors import DataError, ImageError, one_line
from splitattn.features import FeatureExtractor, map_finite
from splitattn.images.limits import DEFAULT_LIMITS
from splitattn.images.loading import LazySource
from splitattn.images.preprocess import Pixels

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """A shard that is done.

    Attributes:
        number: which.
        images: how many it has.
        errors: how many could not be labeled.
    """

    number: int
    images: int
    errors: int


class ShardLabeler:
    """Labels shard after shard with one network, which it opens once.

    Raises:
        InputError, WeightsError: see `Classifier`.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._store = open_store(plan.target)
        self._classifier = Classifier(
            plan.model, plan.weights, engine=plan.engine, decoding=plan.decoding
        )
        self._extractor = (
            FeatureExtractor(plan.model, plan.weights, engine=plan.engine)
            if plan.features
            else None
        )

    def label(self, number: int) -> ShardReport:
        """Label the images of a shard and write its part.

        If the part is there, only those images that it has as errors are labeled again.

        Raises:
            InputError: the shard's list or its part cannot be read, or the part not written.
        """
        import pyarrow as pa

        entries = read_manifest(self._store, number)
        name, schema = part_name(number), self._schema()
        before = find_table(self._store, name, schema.names)
        unlabeled: list[dict[str, Any]] = [{"error": "not labeled yet"}] * len(entries)
        rows = unlabeled if before is None else before.to_pylist()
        wrong = [index for index, row in enumerate(rows) if row["error"] is not None]
        if wrong:
            for index, row in zip(wrong, self._rows([entries[i] for i in wrong]), strict=True):
                rows[index] = row
            self._store.write(name, to_parquet(pa.Table.from_pylist(rows, schema)))
        errors = sum(row["error"] is not None for row in rows)
        return ShardReport(number=number, images=len(rows), errors=errors)

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
        if self._plan.features:
            fields["features"] = pa.list_(pa.float32())
        return pa.schema(list(fields.items()))

    def _rows(self, entries: list[Entry]) -> list[dict[str, Any]]:
        """A row for each image, in order."""
        results = map_finite(
            self._compute,
            [source_of(entry) for entry in entries],
            self._classifier.preprocessing,
            batch_size=self._plan.batch_size,
            workers=self._plan.workers,
            limits=DEFAULT_LIMITS,
            decoding=self._plan.decoding,
            names=[entry.name for entry in entries],
        )
        return [_row(entry, result) for entry, result in zip(entries, results, strict=True)]

    def _compute(self, pixels_BCHW: Pixels) -> Sequence[dict[str, Any] | None]:  # noqa: N803
        """What the networks say of each image, or None where they give no finite numbers."""
        best = self._classifier.best(pixels_BCHW, self._plan.topk, 0.0)
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


def source_of(entry: Entry) -> LazySource:
    """Where the image is, or a function that reads it."""
    if entry.row is not None:
        return partial(_image_in_parquet, entry.path, entry.row)
    return partial(read_object, entry.path) if is_bucket(entry.path) else entry.path


def _row(entry: Entry, result: dict[str, Any] | ImageError) -> dict[str, Any]:
    known = {"path": one_line(entry.name), "size": entry.size, "etag": entry.etag}
    if isinstance(result, ImageError):
        return {**known, "error": str(result)}
    return {**known, **result, "error": None}


def _image_in_parquet(path: str, row: int) -> bytes:
    try:
        return _images_of(path)[row]
    except (DataError, IndexError) as error:
        raise ImageError(f"{path}#{row}: {error}") from error


@lru_cache(maxsize=2)  # of a file and the next: each may take 2 GB
def _images_of(path: str) -> Sequence[bytes]:
    """The images of a Parquet file, whichever split its name says."""
    split = split_of(Path(path).name.partition("-")[0]) or "train"
    images: Sequence[bytes] = open_unlabelled_parquet([Path(path)], split).images  # type: ignore[assignment]
    return images
