"""PASCAL VOC's XML: a file for each image, with boxes. Difficult objects count as crowds."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from splitattn.dense.annotated import FoundImage, FoundObject
from splitattn.dense.outlines import MalformedError
from splitattn.errors import DataError

_MOST_BYTES = 2**24
_SIDES = ("xmin", "ymin", "xmax", "ymax")

# The objects of one file, each with the name of its class.
NamedObjects = list[tuple[str, FoundObject]]


class _Builder(ET.TreeBuilder):
    """Refuses document types: their entities could fill memory, or read other files."""

    def doctype(self, *_: object) -> None:
        raise MalformedError("it must have no DOCTYPE")


def read_voc(path: Path) -> tuple[str, tuple[int, int] | None, NamedObjects]:
    """The file name of the image, its width and height if they are stated, and the objects.

    Coordinates are taken as they are. PASCAL's own count from 1, those of most tools from 0.

    Raises:
        DataError: the file is too large, or not in VOC's format.
    """
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise MalformedError(f"it may have at most {_MOST_BYTES:,} bytes, got {size:,}")
        root = ET.fromstring(path.read_bytes(), ET.XMLParser(target=_Builder()))
        if root.tag != "annotation":
            raise MalformedError(f"it must be an <annotation>, got <{root.tag:.60}>")
        objects = [_object(each) for each in root.iterfind("object")]
        return root.findtext("filename", "").strip(), _size(root), objects
    except (OSError, ET.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} must be in VOC's format: {error}") from error


def _object(element: ET.Element) -> tuple[str, FoundObject]:
    name = element.findtext("name", "").strip()
    if not name:
        raise MalformedError("each object must have a name")
    left, top, right, bottom = (_number(element, f"bndbox/{side}") for side in _SIDES)
    difficult = element.findtext("difficult", "0").strip() == "1"
    return name, FoundObject(box=(left, top, right, bottom), label=-1, crowd=difficult)


def _number(element: ET.Element, path: str) -> float:
    text = element.findtext(path)
    try:
        value = float(text if text is not None else "nothing")
    except ValueError:
        value = float("nan")
    if not isfinite(value) or abs(value) >= 1e9:
        raise MalformedError(f"{path} of each object must be a number, got {text!r:.60}")
    return value


def _size(root: ET.Element) -> tuple[int, int] | None:
    """Width and height. Some tools leave them out or write zeros: then None."""
    if root.find("size/width") is None or root.find("size/height") is None:
        return None
    width, height = (int(_number(root, f"size/{side}")) for side in ("width", "height"))
    return (width, height) if min(width, height) > 0 else None


def found_image(
    path: Path,
    classes: Sequence[str],
    images: Mapping[str, Path],
    annotation: tuple[str, tuple[int, int] | None, NamedObjects],
) -> FoundImage:
    """The image that an XML file describes, with its objects.

    Args:
        path: the XML file.
        classes: names by label.
        images: image files by name, and by name without ending. They are looked up by the name of
            the XML file first, since many tools write another name into it.
        annotation: as `read_voc` read it.
    """
    inside, size, objects = annotation
    inside = inside.replace("\\", "/").rpartition("/")[2]
    image = images.get(path.stem) or images.get(inside) or path.parent / (inside or path.stem)
    label = {name: i for i, name in enumerate(classes)}
    named = [
        FoundObject(box=found.box, label=label[name], crowd=found.crowd) for name, found in objects
    ]
    return FoundImage(path=image, name=image.name, size=size, objects=named)
