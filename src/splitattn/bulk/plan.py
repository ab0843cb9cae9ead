"""A run and the files at its target: `run.json`, the lists of images, and the parts."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import splitattn
from splitattn.bulk.listing import Entry
from splitattn.bulk.stores import Store, open_address
from splitattn.engines.table import fastest_engine, file_engine
from splitattn.errors import DataError, InputError
from splitattn.images.loading import Decoding
from splitattn.preprocessing import Preprocessing
from splitattn.weights.download import file_sha256
from splitattn.weights.resolve import resolve

if TYPE_CHECKING:
    import pyarrow as pa

# The key in a part's schema under which its report is, as JSON.
_REPORT = b"splitattn.report"
RUN, SUCCESS, SUMMARY = "run.json", "_SUCCESS", "summary.html"


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """A shard that is done.

    Attributes:
        number: which.
        images: how many it has.
        labeled: how many of them were labeled, or tried, now.
        errors: how many have no labels.
        classes: images by their most probable class.
        error_kinds: images by what was wrong with them, without names and numbers.
        error_paths: of each of these kinds, the first images in the listing, at most three.
        examples: a random number, path, label and probability of images chosen by the lowest of
            these numbers.
    """

    number: int
    images: int
    labeled: int
    errors: int
    classes: dict[str, int]
    error_kinds: dict[str, int]
    examples: list[tuple[float, str, str, float]]
    error_paths: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of `run.json`. A run that was begun can only be continued by the same one.

    Attributes:
        source: what is labeled.
        shard_size: images in each part but the last.
        model: name of the architecture.
        weights: SHA-256 of the files that hold the network.
        engine: what runs it, and never "auto".
        preprocessing: how an image becomes the network's input.
        decoding: see `Classifier`.
        topk: see `Classifier.predict`.
        features: keep what the network gives its classifier, too.
        class_names: names of the classes, if not the weights' own.
        splitattn: version of this package.
        images, shards: how many there are.
    """

    source: str
    shard_size: int
    model: str
    weights: str
    engine: str
    preprocessing: Preprocessing
    decoding: Decoding
    topk: int | None
    features: bool
    class_names: tuple[str, ...] | None = None
    splitattn: str = splitattn.__version__
    images: int = field(default=0, compare=False)
    shards: int = field(default=0, compare=False)

    def write(self, store: Store) -> None:
        """Write `run.json`."""
        store.write(RUN, json.dumps(asdict(self), indent=2).encode())

    def check_same(self, written: dict[str, Any]) -> None:
        """Raise unless a run that was begun is this one.

        Raises:
            DataError: it is another one; the message says in what.
        """
        ours = json.loads(json.dumps(asdict(self)))
        for name in [each.name for each in fields(self) if each.compare]:
            old, new = written.get(name), ours[name]
            if old == new:
                continue
            # None is what the option is if it is left out.
            fix = f"leave out {name}" if old is None else f"the same {name}"
            where = name
            if isinstance(old, list) and isinstance(new, list):  # too long to be shown whole
                pairs = enumerate(zip_longest(old, new))
                index, (old, new) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
                where = f"{name}[{index}]"
            began = f"without {where}" if old is None else f"with {where} {old!r:.120}"
            got = "none" if new is None else f"{new!r:.120}"
            raise DataError(
                f"the target holds a run {began}, got {got}: name another target, or {fix}"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done with every image. All workers get it.

    Attributes:
        run: the run; each worker checks that its own network and version are the same.
        target: where parts are written, absolute.
        model, weights: see `Classifier`.
        most_errors: the greatest share of a new part's images that may be errors.
        batch_size, workers: see `Classifier.predict_stream`.
    """

    run: Run
    target: str
    model: str | None
    weights: str | None
    most_errors: float
    batch_size: int
    workers: int | None


def read_run(store: Store) -> dict[str, Any] | None:
    """What `run.json` says, or None if no run was begun.

    Raises:
        DataError: it was not written by this package.
    """
    file = open_address(f"{store.address}/{RUN}")
    if file is None:
        return None
    try:
        with file:
            written = dict(json.load(file))
        whole = all(type(written[key]) is int and written[key] > 0 for key in ("images", "shards"))
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise DataError(f"{store.address}/{RUN} is damaged: name another target")
    return written


def hash_of_weights(model: str | None, weights: str | None) -> str:
    """SHA-256 of the files of a network.

    Raises:
        InputError, WeightsError: see `Classifier`.
    """
    if weights is not None and (row := file_engine(weights)):
        path = Path(weights)
        files = [path, *([path.with_suffix(row.beside)] if row.beside else [])]
    else:
        files = [resolve(model, weights).path]
    return " ".join(map(file_sha256, files))


def engine_name(weights: str | None, engine: str) -> str:
    """The engine that `engine`, which may be "auto", means here."""
    if engine != "auto":
        return engine
    row = None if weights is None else file_engine(weights)
    return (row or fastest_engine("auto")).name


def part_name(number: int) -> str:
    """The file with the results of a shard."""
    return f"part-{number:05d}.parquet"


def parts_in(names: Iterable[str]) -> set[str]:
    """Those of `names` that are parts."""
    return {name for name in names if name.startswith("part-") and name.endswith(".parquet")}


def write_manifest(store: Store, entries: Iterable[Entry], shard_size: int) -> Iterator[int]:
    """Write the list of each shard, and yield how many images it has."""
    import pyarrow as pa

    remaining = iter(entries)
    shards = iter(lambda: list(islice(remaining, shard_size)), [])
    for number, shard in enumerate(shards):
        columns: dict[str, pa.Array] = {
            # Names of files are bytes, and need not be text.
            "path": pa.array([os.fsencode(entry.path) for entry in shard], pa.binary()),
            "size": pa.array([entry.size for entry in shard], pa.int64()),
            "etag": pa.array([entry.etag for entry in shard], pa.string()),
            "row": pa.array([entry.row for entry in shard], pa.int64()),
        }
        store.write(_manifest_name(number), to_parquet(pa.table(columns)))
        yield len(shard)


def read_manifest(store: Store, number: int) -> list[Entry]:
    """The images of a shard.

    Raises:
        DataError: the list is not there, or damaged.
    """
    rows = read_table(
        store, _manifest_name(number), [each.name for each in fields(Entry)]
    ).to_pylist()
    return [Entry(**{**row, "path": os.fsdecode(row["path"])}) for row in rows]


def read_table(store: Store, name: str, columns: list[str]) -> "pa.Table":
    """Columns of a Parquet file.

    Raises:
        DataError: it is not there, or damaged.
    """
    found = find_table(store, name, columns)
    if found is None:
        raise _gone(store, name)
    return found


def find_table(store: Store, name: str, columns: list[str]) -> "pa.Table | None":
    """Columns of a Parquet file, or None if it is not there.

    Raises:
        DataError: it is damaged.
    """
    import pyarrow.parquet as pq

    with _opened(store, name) as file:
        return None if file is None else pq.read_table(file, columns=columns)


def read_report(store: Store, number: int) -> ShardReport:
    """The report of a part that is done. Its rows are not read.

    Raises:
        DataError: it is not there, or damaged.
    """
    import pyarrow.parquet as pq

    with _opened(store, part_name(number)) as file:
        if file is None:
            raise _gone(store, part_name(number))
        known = json.loads(pq.read_schema(file).metadata[_REPORT])
        known["examples"] = list(map(tuple, known["examples"]))
        return ShardReport(**{**known, "labeled": 0})


def write_part(store: Store, table: "pa.Table", report: ShardReport) -> None:
    """Write a part with its report."""
    known = json.dumps(vars(report)).encode()
    part = table.replace_schema_metadata({_REPORT: known})
    store.write(part_name(report.number), to_parquet(part))


@contextmanager
def _opened(store: Store, name: str) -> Iterator[BinaryIO | None]:
    import pyarrow as pa

    file = open_address(f"{store.address}/{name}")
    try:
        with file or nullcontext():
            yield file
    except InputError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        way_out = "remove it and continue" if parts_in([name]) else "name another target"
        raise DataError(f"{store.address}/{name} is damaged: {way_out}") from error


def _gone(store: Store, name: str) -> DataError:
    return DataError(f"{store.address}/{name} is gone: name another target")


def to_parquet(table: "pa.Table") -> bytes:
    """A table as the bytes of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    return bytes(buffer.getvalue())


def _manifest_name(number: int) -> str:
    return f"_manifest/{number:05d}.parquet"
