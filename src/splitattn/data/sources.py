"""`DATA`, one string, becomes labelled images: folders, Parquet shards, torchvision data sets."""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torchvision import datasets

from splitattn.errors import DataError, ImageError, nearest
from splitattn.images.decode import ImageSource
from splitattn.images.paths import SUFFIXES
from splitattn.weights.resolve import cache_folder

# What people call the part of a data set that is measured on.
_ALIASES = {"val": ("val", "validation", "valid", "test"), "train": ("train", "training")}


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """One split of a data set.

    Attributes:
        classes: names, by label.
        images: what `images.decode` takes, decoded by nobody yet.
        labels: index into `classes` of each image.
        names: how a report calls each image.
        origin: where they were found; two splits with the same origin are the same images.
    """

    origin: str
    classes: tuple[str, ...]
    images: Sequence[ImageSource]
    labels: Sequence[int]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def renamed(self, classes: tuple[str, ...]) -> "LabelledImages":
        """The same images under other names of the classes.

        Raises:
            DataError: there are not as many names as classes, or two are the same.
        """
        if len(classes) != len(self.classes) or len(set(classes)) != len(classes):
            raise DataError(
                f"class names must be {len(self.classes)} different ones, "
                f"got {len(set(classes))} different of {len(classes)}"
            )
        return replace(self, classes=classes)


def open_data(data: str, split: str, class_names: Path | None = None) -> LabelledImages:
    """Open one split of `data`.

    Args:
        data: a folder in ImageFolder layout (`train/` and `val/` below it, or class folders
            directly), a folder, file or glob of Parquet shards in the Hugging Face image layout,
            or `torchvision:NAME`.
        split: "train" or "val"; where a source has only one, that one.
        class_names: a text file with a name for each class, one a line, in the order of labels,
            for data sets that call theirs by number.

    Raises:
        DataError: there is no such data set or split, it holds no images, or the names do not fit.
    """
    images = _open(data, split)
    return images.renamed(_read_names(class_names)) if class_names else images


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"class names must be a text file, got {path}: {error}") from error


def _open(data: str, split: str) -> LabelledImages:
    if data.startswith("torchvision:"):
        return _open_torchvision(data.removeprefix("torchvision:"), split)
    try:
        root = Path(data).expanduser()
        if root.is_dir():
            shards = sorted(root.glob("*.parquet"))
            return _open_parquet(shards, split, data) if shards else _open_folder(root, split)
        shards = sorted(Path(name) for name in glob(str(root), recursive=True))  # noqa: PTH207
    except (OSError, RuntimeError) as error:  # closed to us, no name of a file, no such home
        raise DataError(f"data must be a folder or shards, got {data!r}: {error}") from error
    if shards and all(shard.suffix == ".parquet" for shard in shards):
        return _open_parquet(shards, split, data)
    raise DataError(
        f"data must be a folder, Parquet shards or torchvision:NAME, got {data!r}: no such thing"
    )


def _open_folder(root: Path, split: str) -> LabelledImages:
    folder = next((root / n for n in _ALIASES.get(split, (split,)) if (root / n).is_dir()), root)
    if folder is root and any((root / n).is_dir() for names in _ALIASES.values() for n in names):
        raise DataError(f"the data set must have a folder {split}/, got none in {root}")
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise DataError(f"the data set must have one folder per class, got none in {folder}")
    images: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES
        )
        images += found
        labels += [label] * len(found)
    if not images:
        raise DataError(f"the data set must hold images, got none in the class folders of {folder}")
    return LabelledImages(
        origin=str(folder),
        classes=classes,
        images=images,
        labels=labels,
        names=[str(path) for path in images],
    )


class _EncodedColumn(Sequence[bytes]):
    """The encoded images of Parquet shards: kept as they are, read without a copy of the rest."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        encoded: bytes = self._column[index].as_py()
        return encoded


def _open_parquet(shards: list[Path], split: str, data: str) -> LabelledImages:
    names = _ALIASES.get(split, (split,))
    chosen = [shard for shard in shards if shard.name.split("-")[0].split(".")[0] in names]
    known = {name for aliases in _ALIASES.values() for name in aliases}
    if not chosen and not any(shard.name.split("-")[0].split(".")[0] in known for shard in shards):
        chosen = shards
    if not chosen:
        raise DataError(
            f"the data set must have shards called {split}-*.parquet, "
            f"got {', '.join(shard.name for shard in shards[:3])}, ... in {data}"
        )
    try:
        _check_rows(chosen)
        table = pa.concat_tables([pq.read_table(s, columns=["image", "label"]) for s in chosen])
        image = table.column("image")
        encoded = pc.struct_field(image, "bytes")
        paths = pc.struct_field(image, "path").to_pylist()
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        classes = tuple(features["label"]["names"])
        labels = table.column("label").to_pylist()
        within = not labels or 0 <= min(labels) <= max(labels) < len(classes)
    except DataError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            "Parquet shards must be in the Hugging Face image layout (image: {bytes, path}, "
            f"label: int, class names in the metadata), got {chosen[0].name}: {error!r}"
        ) from error
    if not labels:
        raise DataError(f"the data set must hold images, got empty shards in {data}")
    if not within:
        raise DataError(f"labels must be 0 to {len(classes) - 1}, got {min(labels)}..{max(labels)}")
    return LabelledImages(
        origin=", ".join(map(str, chosen)),
        classes=classes,
        images=_EncodedColumn(encoded),
        labels=labels,
        names=[path or f"{split}[{row}]" for row, path in enumerate(paths)],
    )


def _check_rows(shards: list[Path]) -> None:
    """Raise if shards hold more rows than bytes: repeated nothings would take all memory."""
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    size = sum(shard.stat().st_size for shard in shards)
    if rows > size:
        raise DataError(f"Parquet shards must hold images, got {rows:,} rows in {size:,} bytes")


class _TorchvisionImages(Sequence[ImageSource]):
    """The images of a torchvision data set, without their labels."""

    def __init__(self, dataset: datasets.VisionDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> ImageSource:  # type: ignore[override]
        try:
            image: ImageSource = self._dataset[index][0]
        except Exception as error:  # it reads and decodes by itself
            raise ImageError(f"the data set's image {index} cannot be read: {error}") from error
        return image


def _open_torchvision(name: str, split: str) -> LabelledImages:
    factory: Callable[..., Any] | None = getattr(datasets, name, None)
    if factory is None or name not in datasets.__all__:
        raise DataError(
            f"no torchvision data set is called {name!r}{nearest(name, list(datasets.__all__))}"
        )
    parameters = inspect.signature(factory).parameters
    refusals = []
    for alias in _ALIASES.get(split, (split,)):  # they do not agree on what to call it either
        wanted = {"download": True, "train": split == "train", "split": alias}
        arguments = {key: value for key, value in wanted.items() if key in parameters}
        try:
            dataset = factory(str(cache_folder() / "torchvision" / name), **arguments)
            break
        except Exception as error:
            refusals.append(" ".join(str(error).split()))
    else:
        raise DataError(f"torchvision cannot open {name}, split {split!r}: {refusals[0]}")
    # torchvision has no one name for the labels.
    labels = getattr(dataset, "targets", getattr(dataset, "_labels", None))
    if labels is None:
        labels = [label for _, label in getattr(dataset, "_samples", ())]
    classes = tuple(
        name if isinstance(name, str) else name[0] for name in getattr(dataset, "classes", ())
    )
    if not classes or not len(labels):
        raise DataError(f"data must be for classification, got {name}, which has no class labels")
    return LabelledImages(
        origin=f"{name} {arguments}",
        classes=classes,
        images=_TorchvisionImages(dataset),
        labels=[int(label) for label in labels],
        names=[f"{name} {split}[{index}]" for index in range(len(labels))],
    )
