"""Opens a data set of any kind by one string, `DATA`."""

from pathlib import Path

from splitattn.data import csv_files
from splitattn.data.class_lists import ClassList, read_class_list
from splitattn.data.csv_files import open_csv
from splitattn.data.folders import open_folder
from splitattn.data.labeled import LabeledImages, named
from splitattn.data.parquet import open_parquet
from splitattn.data.splits import MissingSplitError
from splitattn.data.torchvision_sets import open_torchvision
from splitattn.errors import DataError
from splitattn.files import as_on_disk, expanded, is_file, similar_path
from splitattn.images.paths import expand_glob, is_image_name

_TORCHVISION = "torchvision:"
_TABLES = (".csv", ".tsv")
_SPREADSHEETS = (".xlsx", ".xls", ".ods")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


def open_data(data: str, split: str, class_names: str | Path | None = None) -> LabeledImages:
    """Open one split of a data set.

    Args:
        data: one of

            - a folder in ImageFolder layout: `train/` and `val/` with class folders in them, or
              class folders directly;
            - a folder, file or glob of Parquet shards in the Hugging Face image layout;
            - a CSV or TSV file with the columns `path` and `label`, and `split` if it has several;
              see `csv_files.open_csv`, also for several labels per image;
            - `torchvision:NAME`, which is downloaded.
        split: "train", "val" or "test", in any usual spelling, or another that the data set has.
            Without splits, each is all images. If there is no "val", "test" is used instead, with a
            warning.
        class_names: a file with a name for each class, in the order of labels, for data sets whose
            classes are numbers, or Parquet shards without class names; see
            `class_lists.read_class_list`, `labeled.named`.

    Raises:
        DataError: there is no such data set or split, it holds no images, or the names do not fit.
        InputError: a library that reads it is not installed.
    """
    listed = read_class_list(Path(class_names)) if class_names else None
    images = _open(data, split, listed)
    # For shards without class names, `_open` has set these names already; this changes nothing.
    return named(images, listed) if listed else images


def has_several_labels(data: str | Path) -> bool:
    """Whether images of `data` may have several labels each; False if it is not a data set."""
    path = expanded(data)
    return path.suffix.lower() in _TABLES and csv_files.has_several_labels(path)


def is_downloaded(data: str) -> bool:
    """Whether `open_data` may have to download this data set."""
    return data.startswith(_TORCHVISION)


def _open(data: str, split: str, listed: ClassList | None) -> LabeledImages:
    if not data:  # not the current folder: it may be an unset shell variable
        raise DataError("data must be a folder, Parquet shards or a CSV file, got an empty name")
    if is_downloaded(data):
        return open_torchvision(data.removeprefix(_TORCHVISION), split)
    try:
        root = as_on_disk(expanded(data))
        if root.suffix.lower() in _TABLES and is_file(root):
            return open_csv(root, split)
        if shards := parquet_shards(root):
            return open_parquet(shards, split, listed)
        if root.is_dir():
            return _open_folder(root, split)
    except OSError as error:  # no permission, or an invalid file name
        raise DataError(
            f"data must be a folder, Parquet shards or a CSV file, got {data!r}: {error}"
        ) from error
    raise DataError(
        "data must be a folder, Parquet shards, a CSV file or torchvision:NAME, "
        f"got {data!r}: {not_data(data)}"
    )


def not_data(data: str) -> str:
    """What `data` is, if it is no folder and no data set, and what helps."""
    root = as_on_disk(expanded(data))
    if not is_file(root):
        if "://" in data:
            return "an address; copy the data set to this machine and name its folder"
        return f"no such file or folder{similar_path(root)}"
    if is_image_name(root.name):
        return "a single picture; to label it use splitattn predict"
    if root.suffix.lower() in _ARCHIVES:
        return "an archive; unpack it and name the folder"
    if root.suffix.lower() in _SPREADSHEETS:
        return "a spreadsheet; save it as CSV"
    if root.suffix.lower() in (".yaml", ".yml"):
        return f"a YAML file; name the folder of the data set, such as {str(root.parent)!r}"
    return "a file of another kind"


def _open_folder(root: Path, split: str) -> LabeledImages:
    try:
        return open_folder(root, split)
    except MissingSplitError:
        raise
    except DataError as error:
        for pattern in ("*/*", "*/*/*"):
            if shard := next(filter(_is_shard, root.glob(pattern)), None):
                raise DataError(
                    f"Parquet shards must be in one folder, got a folder around it: name "
                    f"{shard.parent}"
                ) from error
        raise


def parquet_shards(root: Path) -> list[Path]:
    """The Parquet shards in a folder, or those that a file name or a glob matches."""
    if root.is_dir():
        return sorted(path for path in root.iterdir() if _is_shard(path) and is_file(path))
    found = [Path(name) for name in expand_glob(str(root))]
    return found if all(map(_is_shard, found)) else []


def _is_shard(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"
