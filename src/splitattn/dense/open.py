"""Opens annotated images from a path, and detects their format."""

import mmap
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from splitattn.data.splits import split_of
from splitattn.dense.annotated import (
    AnnotatedImages,
    FoundImage,
    Notes,
    annotated_images,
)
from splitattn.dense.coco import read_coco
from splitattn.dense.layout import (
    chosen_split,
    hold_out,
    image_files,
    no_split,
    one_of_each,
    other_data,
    paired_folders,
    split_folders,
    undivided_folders,
)
from splitattn.dense.voc import found_image, read_voc
from splitattn.dense.yolo import read_names, read_yolo
from splitattn.errors import DataError
from splitattn.files import expanded, is_file, is_folder

_CLASS_FILES = ("classes.txt", "labels.txt", "obj.names", "data.yaml", "dataset.yaml")
# COCO's files with other annotations.
_OTHER_COCO = re.compile("captions|keypoints|panoptic|stuff|image_info")


@dataclass(frozen=True, kw_only=True)
class Format:
    """An annotation format.

    Attributes:
        name: for messages.
        recognizes: whether a file or folder is in this format.
        open: opens one split, by the path of the data set and the name of the split.
    """

    name: str
    recognizes: Callable[[Path], bool]
    open: Callable[[Path, str], AnnotatedImages]


def annotation_format(data: str | Path) -> Format | None:
    """The format of the annotations in `data`, or None if it is none of `FORMATS`."""
    root = expanded(data)
    if not data or not (is_folder(root) or is_file(root)):
        return None
    return next((each for each in FORMATS if each.recognizes(root)), None)


def open_annotated(data: str | Path, split: str) -> AnnotatedImages:
    """Open one split of a data set.

    Args:
        data: one of

            - COCO: a JSON file, or a folder with one for each split: `train.json`,
              `annotations/instances_train2017.json` or `train/_annotations.coco.json`;
            - VOC: a folder with `Annotations/` and `JPEGImages/` (or `images/`), and
              `ImageSets/Main/` if it has splits; or one with XML files beside images in `train/`;
            - YOLO: a folder with `images/` and `labels/`, or both in `train/` and `val/`, or
              `train/` and `val/` in both; classes are in `data.yaml` or `classes.txt`.
        split: "train", "val" or "test". If there is no "val", it is "test". In a data set without
            splits, "train" is four images in five, chosen by their names, and "val" and "test" are
            both the rest.

    Raises:
        DataError: there is no such data set or split, or a file in it is malformed.
    """
    found = annotation_format(data)
    if found is None:
        names = ", ".join(each.name for each in FORMATS)
        raise other_data(f"a detector needs annotated images ({names})", data)
    try:
        return found.open(expanded(data), split)
    except OSError as error:
        raise DataError(f"cannot read {data}: {error}") from error


# COCO


def _is_coco(root: Path) -> bool:
    return next(_coco_files(root), None) is not None


def _coco_files(root: Path) -> Iterator[Path]:
    if is_file(root):
        candidates = [root] if root.suffix == ".json" else []
    else:
        folders = [root, root / "annotations", *split_folders(root)]
        candidates = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    for path in candidates:
        if not _OTHER_COCO.search(path.stem) and _mentions(path, b'"annotations"', b'"images"'):
            yield path


def _mentions(path: Path, *words: bytes) -> bool:
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # it is empty
            return False
        with content:
            return all(content.find(word) >= 0 for word in words)


def _open_coco(root: Path, split: str) -> AnnotatedImages:
    files = {path: _split_of_file(path, root) for path in _coco_files(root)}
    notes = Notes()
    if name := chosen_split(root, split, files.values()):
        own = [path for path, found in files.items() if found == name]
        if len(own) > 1:
            raise DataError(
                f"{root} must have one file of the split {name}, got {', '.join(map(str, own))}; "
                "pass a folder with only one of them"
            )
        classes, found = read_coco(own[0], _image_folders(own[0], root, name), notes)
        data = annotated_images(own[0], tuple(classes.values()), found, notes)
        return replace(data, category_ids=tuple(classes))
    if [*files.values()] == [None]:
        (path,) = files
        classes, found = read_coco(path, _image_folders(path, root, ""), notes)
        held = hold_out(found, split)
        data = annotated_images(f"{path}: {split}", tuple(classes.values()), held, notes)
        return replace(data, category_ids=tuple(classes))
    undivided = f"pass the file {next(iter(files))} itself"
    raise no_split(root, split, [path.name for path in files], undivided)


def _split_of_file(path: Path, root: Path) -> str | None:
    """The split, from a word in the file's name or in the name of its folder below `root`."""
    if path == root:
        return None
    parts = [path.stem, path.parent.name] if path.parent != root else [path.stem]
    words = [word for part in parts for word in re.split("[^a-z]+", part.lower())]
    return next((split for word in words if (split := split_of(word))), None)


def _image_folders(path: Path, root: Path, split: str) -> list[Path]:
    bases = [path.parent if root == path else root]
    if bases[0].name == "annotations":  # COCO's own images lie beside that folder
        bases.append(bases[0].parent)
    stem = path.stem.removeprefix("instances_")
    names = (stem, split, "images", f"images/{stem}", f"images/{split}", "JPEGImages", ".")
    return [path.parent, *(base / name for base in bases for name in names if name)]


# VOC


def _is_voc(root: Path) -> bool:
    return is_folder(root) and any(map(_xml_files, (root, *split_folders(root))))


def _xml_files(folder: Path) -> list[Path]:
    """Annotations of the images in `folder`, in a folder of their own or beside the images."""
    for name in ("Annotations", "annotations", "."):
        if files := sorted((folder / name).glob("*.xml")):
            return files
    return []


def _open_voc(root: Path, split: str) -> AnnotatedImages:
    folders = [(name, path) for path, name in split_folders(root).items() if _xml_files(path)]
    splits = one_of_each(folders)
    files = {folder: _xml_files(folder) for folder in (root, *splits.values())}
    read = {path: read_voc(path) for paths in files.values() for path in paths}
    # The classes of all splits: a rare one may occur in only one of them.
    names = {name for _, _, objects in read.values() for name, _ in objects}
    classes = _voc_classes(root, names)

    def found(paths: Sequence[Path], folder: Path) -> list[FoundImage]:
        images = _images_below(folder)
        return [found_image(path, classes, images, read[path]) for path in paths]

    notes = Notes()
    by_stem = {path.stem: path for path in files[root]}

    def listed_in(path: Path) -> list[FoundImage]:
        stems = path.read_text(encoding="utf-8", errors="surrogateescape").split()
        for stem in stems:
            if stem not in by_stem:
                notes.add("images without an XML file, left out", stem)
        return found([by_stem[stem] for stem in stems if stem in by_stem], root)

    lists = {path.stem: path for path in sorted((root / "ImageSets/Main").glob("*.txt"))}
    listed = one_of_each(_split_lists(lists.values()))
    undivided = lists.get("trainval") if not {"train", "val"} & {*listed} else None
    if undivided and "test" in listed:  # then test serves as validation
        listed["train"], undivided = undivided, None
    if name := chosen_split(root, split, {*splits, *listed}):
        if folder := splits.get(name):
            return annotated_images(folder, classes, found(files[folder], folder), notes)
        return annotated_images(listed[name], classes, listed_in(listed[name]), notes)
    if undivided:
        held = hold_out(listed_in(undivided), split, f"{undivided} is not divided")
        return annotated_images(f"{undivided}: {split}", classes, held, notes)
    if splits or listed:
        how = (
            f"rename {next(iter(listed.values()))} to trainval.txt"
            if listed
            else f"move the images and XML files of {next(iter(splits.values()))} into {root}"
        )
        raise no_split(root, split, [*splits, *listed], how)
    held = hold_out(found(files[root], root), split)
    return annotated_images(f"{root}: {split}", classes, held, notes)


def _split_lists(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Splits with their lists. Beside `train.txt`, lists such as `train_100.txt` are left out."""
    found = [(name, path) for path in paths if (name := split_of(path.stem))]
    plain = {name for name, path in found if path.stem == name}
    return ((name, path) for name, path in found if name not in plain or path.stem == name)


def _voc_classes(root: Path, used: set[str]) -> tuple[str, ...]:
    path = next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)
    if path is None:
        if not used:
            raise DataError(f"{root} must have objects in its XML files, got none")
        return tuple(sorted(used))
    classes = read_names(path)
    if unknown := sorted(used - set(classes)):
        raise DataError(f"{path} must name every class of the XML files, it lacks {unknown[0]!r}")
    return classes


def _images_below(folder: Path) -> dict[str, Path]:
    """Image files by name and by name without ending."""
    folders = [folder / name for name in ("JPEGImages", "images", ".")]
    paths = [path for each in folders if each.is_dir() for path in image_files(each)]
    return {path.stem: path for path in paths} | {path.name: path for path in paths}


# YOLO


def _is_yolo(root: Path) -> bool:
    folders = [labels for _, _, labels in paired_folders(root, "labels")] if is_folder(root) else []
    files = [path for folder in folders for path in _label_files(folder).values()]
    return any(path.name not in _CLASS_FILES for path in files)


def _label_files(folder: Path) -> dict[str, Path]:
    """The text files in `folder`, by the name of the image without its suffix."""
    return {
        path.stem: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() == ".txt" and path.is_file()
    }


def _open_yolo(root: Path, split: str) -> AnnotatedImages:
    splits = {
        name: (images, labels)
        for name, images, labels in paired_folders(root, "labels")
        if name or image_files(images)
    }
    name = chosen_split(root, split, splits)
    if name is None and [*splits] != [None]:
        raise no_split(root, split, [*filter(None, splits)], undivided_folders("labels"))
    images, labels = splits[name]
    classes = _yolo_classes(root)
    texts, notes = _label_files(labels), Notes()
    paths = image_files(images)
    found = [read_yolo(texts.get(path.stem), path, classes) for path in paths]
    for stem in sorted(texts.keys() - {path.stem for path in paths}):
        if texts[stem].name not in _CLASS_FILES:
            notes.add("label files without an image, left out", texts[stem].name)
    if name:
        return annotated_images(images, classes, found, notes)
    held = hold_out(found, split)
    return annotated_images(f"{images}: {split}", classes, held, notes)


def _yolo_classes(root: Path) -> tuple[str, ...]:
    files = [root / name for name in _CLASS_FILES] + sorted(root.glob("*.y*ml"))
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        raise DataError(
            f"{root} must name its classes; write one a line into classes.txt, or a list `names` "
            "into data.yaml"
        )
    return read_names(path)


FORMATS = (
    Format(name="COCO", recognizes=_is_coco, open=_open_coco),
    Format(name="VOC", recognizes=_is_voc, open=_open_voc),
    Format(name="YOLO", recognizes=_is_yolo, open=_open_yolo),
)
