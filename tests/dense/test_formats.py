"""Every format gives the same boxes; unusable annotations get one warning for each rule."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from splitattn.dense.annotated import AnnotatedImages, check_same_classes
from splitattn.dense.open import annotation_format, open_annotated
from splitattn.dense.outlines import RunLengths, to_mask
from splitattn.errors import DataError, one_line
from tests.data.datasets import write_image_folder
from tests.dense.datasets import CLASSES, bndbox, coco, picture, voc, write_coco, write_splits

SIZE = (64, 48)
BOXES = [(4, 6, 20, 30, 0), (30, 8, 50, 40, 2)]


def save_picture(path: Path, *, size: tuple[int, int] = SIZE, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(BOXES, size).save(path, **options)


def annotation(number: int = 1, **values: Any) -> dict[str, Any]:
    box = {"bbox": [4, 6, 16, 24], "area": 100.0, "iscrowd": 0}
    return {"id": number, "image_id": 7, "category_id": 10, **box, **values}


def write_one(root: Path, annotations: list[dict[str, Any]], **image: Any) -> Path:
    """Write a COCO data set of one image, 64 x 48 pixels."""
    save_picture(root / "images" / "a.png")
    row = {"id": 7, "file_name": "a.png", "width": 64, "height": 48, **image}
    (root / "train.json").write_text(json.dumps(coco([row], annotations)))
    return root


def assert_boxes(found: AnnotatedImages) -> None:
    (objects,) = found.objects
    np.testing.assert_allclose(objects.boxes, [box[:4] for box in BOXES])
    assert [found.classes[label] for label in objects.labels] == ["blue", "red"]
    assert found.sizes == [SIZE]
    assert found.images[0].name == found.names[0] == "a.png"
    assert found.notes == ()


def write_format(root: Path, name: str) -> None:
    """Write the split train with one image that has `BOXES`, in the format `name`."""
    shares = [
        f"{label} {(x + r) / 128:.9f} {(y + b) / 96:.9f} {(r - x) / 64} {(b - y) / 48}"
        for x, y, r, b, label in BOXES
    ]
    rows = [
        annotation(i, category_id=10 * (label + 1), bbox=[x, y, r - x, b - y])
        for i, (x, y, r, b, label) in enumerate(BOXES)
    ]
    row = {"id": 7, "file_name": "a.png", "width": 64, "height": 48}
    objects = [(CLASSES[label], bndbox(x, y, r, b)) for x, y, r, b, label in BOXES]
    xml = voc("other name.jpg", SIZE, objects)
    files = {
        "coco": ("images/a.png", "train.json", json.dumps(coco([row], rows))),
        "coco 2017": (
            "train2017/a.png",
            "annotations/instances_train2017.json",
            json.dumps(coco([row], rows)),
        ),
        "coco beside": (
            "train/a.png",
            "train/_annotations.coco.json",
            json.dumps(coco([row], rows)),
        ),
        "voc": ("JPEGImages/a.png", "Annotations/a.xml", xml),
        "voc beside": ("train/a.png", "train/a.xml", xml),
        "yolo": ("images/train/a.png", "labels/train/a.txt", "\n".join(shares)),
        "yolo by split": ("train/images/a.png", "train/labels/a.txt", "\n".join(shares)),
    }
    image, file, text = files[name]
    save_picture(root / image)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)
    if name == "voc":
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    if "yolo" in name:
        (root / "data.yaml").write_text(f"train: images/train\nnames: {[*CLASSES]}\n")


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("coco", "COCO"),
        ("coco 2017", "COCO"),
        ("coco beside", "COCO"),
        ("voc", "VOC"),
        ("voc beside", "VOC"),
        ("yolo", "YOLO"),
        ("yolo by split", "YOLO"),
    ],
)
def test_every_format_is_recognized_and_gives_the_same_boxes(
    name: str, known_as: str, tmp_path: Path
) -> None:
    write_format(tmp_path, name)
    recognized = annotation_format(tmp_path)
    assert recognized is not None
    assert recognized.name == known_as
    assert_boxes(open_annotated(tmp_path, "train"))
    with pytest.raises(DataError, match="must have a split"):
        open_annotated(tmp_path, "val")


def test_labeled_images_are_no_annotated_images(tmp_path: Path) -> None:
    write_image_folder(tmp_path, train=1, val=1)
    (tmp_path / "train" / "class_to_idx.json").write_text('{"images": 0}')
    assert annotation_format(tmp_path) is None
    assert annotation_format(tmp_path / "nothing") is None
    with pytest.raises(DataError, match="COCO, VOC, YOLO"):
        open_annotated(tmp_path, "train")


@pytest.mark.parametrize(
    ("box", "kept", "note"),
    [
        ([4, 6, 0, 24], None, "without width or height, left out: 1, such as [4, 6, 4, 30]"),
        ([4, 6, 16, -1], None, "without width or height, left out"),
        ([70, 6, 16, 24], None, "outside their image, left out: 1, such as [70, 6, 86, 30]"),
        ([40, 6, 60, 24], [40, 6, 64, 30], "reach out of their image, cut"),
        ([-3, -2, 10, 60], [0, 0, 7, 48], "reach out of their image, cut"),
        ([4, 6, 60.5, 24], [4, 6, 64, 30], None),
        ([4, 6, 60, 24], [4, 6, 64, 30], None),
    ],
)
def test_boxes_that_do_not_fit_are_cut_or_left_out_with_a_note(
    box: list[float],
    kept: list[float] | None,
    note: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = annotation(2, bbox=[1, 2, 3, 4])
    found = open_annotated(write_one(tmp_path, [annotation(bbox=box), good]), "train")
    assert found.objects[0].boxes.tolist() == [*([kept] if kept else []), [1, 2, 4, 6]]
    assert len(found.notes) == len(caplog.records) == (note is not None)
    if note:
        assert note in found.notes[0]
        assert "a.png" in caplog.text


def test_images_without_files_or_objects_are_noted(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "train", 4)
    content = json.loads(path.read_text())
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != 2]
    content["annotations"].append(annotation(999, image_id=12345))
    path.write_text(json.dumps(content))
    (tmp_path / "images" / "3.png").unlink()
    found = open_annotated(tmp_path, "train")
    assert [*found.names] == ["0.png", "1.png", "2.png"]
    assert len(found.objects[2]) == 0
    assert sorted(found.notes) == [
        "annotations of images that are not listed, left out: 1, such as 999",
        f"images whose file is missing, left out: 1, such as {tmp_path / 'images' / '3.png'}",
        "images without objects, all background: 1, such as 2.png",
    ]
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="must name images that exist, got none of 4, such as"):
        open_annotated(tmp_path, "train")


def test_boxes_as_shares_of_the_image_are_refused(tmp_path: Path) -> None:
    """Small boxes are accepted if one box is large enough to be in pixels."""
    shares = annotation(bbox=[0.1, 0.2, 0.5, 0.5])
    with pytest.raises(DataError, match=r"in pixels, got shares .* \[0.1, 0.2, 0.6, 0.7\]"):
        open_annotated(write_one(tmp_path, [shares, annotation(2, bbox=[0, 0, 0, 0])]), "train")
    assert open_annotated(write_one(tmp_path, [shares, annotation(2)]), "train").count() == 2


def test_crowds_and_difficult_objects_are_marked(tmp_path: Path) -> None:
    counts = {"size": [48, 64], "counts": [48 * 10, 48 * 2, 48 * 52]}
    crowd = annotation(iscrowd=1, segmentation=counts, bbox=[10, 0, 2, 48], area=96)
    found = open_annotated(write_one(tmp_path / "coco", [crowd, annotation(2)]), "train")
    assert found.objects[0].crowd.tolist() == [True, False]
    assert found.objects[0].areas.tolist() == [96, 100]
    assert found.count() == 1
    box = bndbox(4, 6, 20, 30)
    objects = [("cat", f"<difficult>1</difficult>{box}"), ("cat", f"<difficult>0</difficult>{box}")]
    save_picture(tmp_path / "voc" / "train" / "a.png")
    (tmp_path / "voc" / "train" / "a.xml").write_text(voc("a.png", None, objects))
    found = open_annotated(tmp_path / "voc", "train")
    assert found.objects[0].crowd.tolist() == [True, False]
    assert found.sizes == [SIZE]


def test_run_lengths_and_polygons_are_the_same_mask(tmp_path: Path) -> None:
    """The compressed text is what pycocotools writes for the mask."""
    from pycocotools import mask as pycocotools

    expected = np.zeros((48, 64), dtype=np.uint8)
    expected[6:30, 4:20] = 1
    compressed = pycocotools.encode(np.asfortranarray(expected))
    text = compressed["counts"].decode()
    plain = {"size": [48, 64], "counts": [4 * 48 + 6, *([24, 24] * 16)[:-1], 18 + 44 * 48]}
    polygon = [[4, 6, 20, 6, 20, 30, 4, 30]]
    rows = [
        annotation(1, segmentation={"size": [48, 64], "counts": text}),
        annotation(2, segmentation=plain),
        annotation(3, segmentation=polygon, bbox=None),
        annotation(4, segmentation=[]),
        annotation(5, segmentation=[[1, 2, 3, 4], *polygon]),
    ]
    found = open_annotated(write_one(tmp_path, rows), "train")
    *outlines, nothing, partly = found.objects[0].outlines
    assert isinstance(outlines[0], RunLengths)
    for outline in (*outlines, partly):
        assert outline is not None
        np.testing.assert_array_equal(to_mask(outline, SIZE), expected)
    assert nothing is None
    assert found.objects[0].boxes[2].tolist() == [4, 6, 20, 30]
    assert found.notes == (
        "polygons of fewer than three points, left out: 1, such as in annotation 5",
    )


def test_compressed_run_lengths_are_read_as_pycocotools_does(tmp_path: Path) -> None:
    from pycocotools import mask as pycocotools

    noise = np.random.default_rng(0).random((48, 64)) < 0.3
    noise[:, 40:] = noise[:, 40:41]
    text = pycocotools.encode(np.asfortranarray(noise.astype(np.uint8)))["counts"].decode()
    row = annotation(segmentation={"size": [48, 64], "counts": text})
    found = open_annotated(write_one(tmp_path, [row]), "train")
    outline = found.objects[0].outlines[0]
    assert outline is not None
    np.testing.assert_array_equal(to_mask(outline, SIZE), noise)


def test_polygons_of_yolo_have_their_own_area(tmp_path: Path) -> None:
    save_picture(tmp_path / "images" / "train" / "a.png")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("1 0.25 0.25 0.75 0.25 0.75 0.75\n")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    found = open_annotated(tmp_path, "train")
    assert found.objects[0].boxes.tolist() == [[16, 12, 48, 36]]
    assert found.objects[0].areas.tolist() == [32 * 24 / 2]
    assert found.classes[found.objects[0].labels[0]] == "green"


def test_coco_names_files_however_their_accents_are_composed(tmp_path: Path) -> None:
    save_picture(tmp_path / "images" / "cafe\u0301.png")
    content = coco(
        [{"id": 0, "file_name": "caf\u00e9.png", "width": SIZE[0], "height": SIZE[1]}],
        [{"id": 0, "image_id": 0, "category_id": 10, "bbox": [1, 2, 10, 12], "area": 120}],
    )
    (tmp_path / "train.json").write_text(json.dumps(content))
    found = open_annotated(tmp_path, "train")
    assert found.images[0] == tmp_path / "images" / "cafe\u0301.png"
    assert found.objects[0].boxes.tolist() == [[1, 2, 11, 14]]


def test_lines_of_yolo_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    write_format(tmp_path, "yolo")
    expected = open_annotated(tmp_path, "train")
    path = tmp_path / "labels" / "train" / "a.txt"
    path.write_text(f"\ufeff{path.read_text()}", encoding="utf-8")
    found = open_annotated(tmp_path, "train")
    np.testing.assert_array_equal(found.objects[0].boxes, expected.objects[0].boxes)


def test_labels_of_yolo_in_capitals_are_read_and_those_without_an_image_are_noted(
    tmp_path: Path,
) -> None:
    write_format(tmp_path, "yolo")
    folder = tmp_path / "labels" / "train"
    (folder / "a.txt").rename(folder / "a.TXT")
    for name in ("c.txt", "b.txt"):
        (folder / name).write_text("0 0.5 0.5 0.1 0.1\n")
    (folder / "classes.txt").write_text("blue\n")  # labelImg puts classes.txt there
    found = open_annotated(tmp_path, "train")
    assert [len(objects) for objects in found.objects] == [2]
    assert found.notes == ("label files without an image, left out: 2, such as b.txt",)


def test_a_list_of_classes_alone_is_no_data_set_of_yolo(tmp_path: Path) -> None:
    save_picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "classes.txt").write_text("blue\n")
    with pytest.raises(DataError, match="annotated images"):
        open_annotated(str(tmp_path), "train")


def test_labels_of_yolo_are_those_of_every_image_of_their_name(tmp_path: Path) -> None:
    write_format(tmp_path, "yolo")
    for name in ("a.jpg", "classes.png"):
        save_picture(tmp_path / "images" / "train" / name)
    (tmp_path / "labels" / "train" / "classes.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels" / "train" / "folder.txt").mkdir()
    found = open_annotated(tmp_path, "train")
    assert [path.name for path in found.images] == ["a.jpg", "a.png", "classes.png"]
    assert [len(objects) for objects in found.objects] == [2, 2, 1]
    assert found.notes == ()


def test_an_image_without_labels_of_yolo_is_background(tmp_path: Path) -> None:
    write_format(tmp_path, "yolo")
    save_picture(tmp_path / "images" / "train" / "b.png")
    found = open_annotated(tmp_path, "train")
    assert [len(objects) for objects in found.objects] == [2, 0]
    assert found.notes == ("images without objects, all background: 1, such as b.png",)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("names: [blue, green]", ("blue", "green")),
        ("names:\n  0: blue\n  1: green", ("blue", "green")),
        ("names:\n- blue\n- green\n", ("blue", "green")),
        ("names: {1: blue, 2: green}", None),
        ("names: [blue, blue]", None),
        ("nc: 3", None),
        ("names: [[blue]]", None),
        ("names: !!python/object/apply:os.system ['true']", None),
        ("[" * 2_000, None),
    ],
)
def test_names_of_yolo_are_a_list_or_a_mapping(
    names: str, classes: tuple[str, ...] | None, tmp_path: Path
) -> None:
    write_format(tmp_path, "yolo")
    (tmp_path / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.1 0.1")
    (tmp_path / "data.yaml").write_text(names)
    if classes:
        assert open_annotated(tmp_path, "train").classes == classes
    else:
        with pytest.raises(DataError, match="must name"):
            open_annotated(tmp_path, "train")


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("3 0.5 0.5 0.1 0.1", "a class must be 0 to 2, got '3'"),
        ("0.5 0.5 0.5 0.1 0.1", "a class must be 0 to 2"),
        ("0 320 240 100 50", "shares of the image's width and height from 0 to 1"),
        ("0 0.5 0.5 0.1", "shares"),
        ("0 0.5 0.5 nan 0.1", "shares"),
        ("cat 0.5 0.5 0.1 0.1", "shares"),
        ("0 0.5 0.5 0.1 0.1 0.3", "shares"),
    ],
)
def test_malformed_lines_of_yolo_are_refused(line: str, rule: str, tmp_path: Path) -> None:
    write_format(tmp_path, "yolo")
    (tmp_path / "labels" / "train" / "a.txt").write_text(line)
    with pytest.raises(DataError, match=rule) as raised:
        open_annotated(tmp_path, "train")
    assert "a.txt" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"category_id": 11}, "annotation 1 must have one of the 3 categories, got 11"),
        ({"category_id": [1]}, "annotation 1 must have one of the 3 categories"),
        ({"bbox": [1, 2, 3]}, "bbox of annotation 1 must be four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "bbox of annotation 1"),
        ({"bbox": [1, 2, 3, 1e300]}, "bbox of annotation 1"),
        ({"bbox": None}, "bbox of annotation 1"),
        ({"area": "big"}, "area of annotation 1"),
        ({"id": "one"}, "the id of each annotation"),
        ({"image_id": [7]}, r"image_id of annotation 1 must be a number, got \[7\]"),
        ({"image_id": "7"}, "image_id of annotation 1 must be a number, got '7'"),
        ({"segmentation": [[1, 2, 3]]}, "a polygon must be pairs"),
        ({"segmentation": "x"}, "segmentation of annotation 1"),
        ({"segmentation": {"size": [48, 64], "counts": [1, 2]}}, "add up to 48 x 64 pixels, got 3"),
        ({"segmentation": {"size": [48, 64], "counts": "oops\x01"}}, "compressed run lengths"),
        ({"segmentation": {"size": [48, 64], "counts": "o" * 99}}, "compressed run lengths"),
        ({"segmentation": {"size": [48, 64], "counts": [-1, 3073]}}, "whole numbers"),
        ({"segmentation": {"size": [-48, 64], "counts": [1]}}, "a size of two numbers"),
    ],
)
def test_malformed_annotations_of_coco_are_refused(
    change: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    write_one(tmp_path, [annotation(**change)])
    with pytest.raises(DataError, match=rule) as raised:
        open_annotated(tmp_path, "train")
    assert "train.json must be in COCO's format" in str(raised.value)
    assert str(raised.value) == one_line(str(raised.value))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('{"images": [], "annotations": []', "delimiter"),
        ('{"images": 1, "annotations": [], "categories": []}', "images must be a list"),
        ('["images", "annotations"]', "must be an object"),
        ('{"images": [], "annotations": [], "categories": []}', "at least one"),
        ('{"images": ' + "[" * 100_000 + '"annotations"', "COCO's format"),
    ],
)
def test_malformed_files_of_coco_are_refused(text: str, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rule):
        open_annotated(path, "train")


BOMB = """<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>
<annotation><filename>&b;</filename></annotation>"""


@pytest.mark.parametrize(
    ("xml", "rule"),
    [
        (BOMB, "no DOCTYPE"),
        (BOMB.encode("utf-16"), "no DOCTYPE"),
        ("<annotation><object>", "no element found"),
        ("<svg/>", "must be an <annotation>, got <svg>"),
        (voc("a.png", SIZE, [("cat", bndbox(1, 2, "x", 4))]), "bndbox/xmax of each object"),
        (voc("a.png", SIZE, [("cat", bndbox(1, 2, "nan", 4))]), "bndbox/xmax of each object"),
        (voc("a.png", SIZE, [("cat", "")]), "bndbox/xmin of each object"),
        (voc("a.png", SIZE, [(" ", bndbox(1, 2, 3, 4))]), "each object must have a name"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "VOC's format"),
    ],
)
def test_hostile_files_of_voc_are_refused(xml: str | bytes, rule: str, tmp_path: Path) -> None:
    save_picture(tmp_path / "train" / "a.png")
    (tmp_path / "train" / "a.xml").write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    with pytest.raises(DataError, match=rule) as raised:
        open_annotated(tmp_path, "train")
    assert "a.xml" in str(raised.value)


@pytest.mark.parametrize("name", [".", "..", "a/.", "a" * 300])
@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_a_name_that_no_file_can_have_is_a_missing_image(
    name: str, kind: str, tmp_path: Path
) -> None:
    folder = tmp_path / "train"
    save_picture(folder / "a.png")
    if kind == "coco":
        images = [{"id": i, "file_name": each} for i, each in enumerate(("a.png", name), 7)]
        (tmp_path / "train.json").write_text(json.dumps(coco(images, [annotation()])))
    else:
        for stem, inside in (("a", "a.png"), ("b", name)):
            text = voc(inside, None, [("cat", bndbox(1, 2, 9, 9))])
            (folder / f"{stem}.xml").write_text(text)
    found = open_annotated(tmp_path, "train")
    assert found.names == ["a.png"]
    assert found.notes[0].startswith("images whose file is missing, left out: 1, such as")


def test_classes_of_voc_come_from_every_split_or_from_their_file(tmp_path: Path) -> None:
    for split, name in (("train", "cat"), ("val", "bird")):
        save_picture(tmp_path / split / "a.png")
        (tmp_path / split / "a.xml").write_text(voc("a.png", SIZE, [(name, bndbox(1, 2, 9, 9))]))
    assert open_annotated(tmp_path, "train").classes == ("bird", "cat")
    (tmp_path / "classes.txt").write_text("cat\nbird\n\n")
    assert open_annotated(tmp_path, "val").classes == ("cat", "bird")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match="it lacks 'bird'"):
        open_annotated(tmp_path, "val")


def test_one_image_in_five_is_held_out_where_there_are_no_splits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_coco(tmp_path, "all", 40, size=(64, 64))
    train, val = (open_annotated(tmp_path, split) for split in ("train", "val"))
    assert sorted([*train.names, *val.names]) == sorted(f"{i}.png" for i in range(40))
    assert 4 <= len(val) <= 12
    assert train.origin != val.origin
    assert caplog.text.count("one image in 5 is for validation") == 1
    again = open_annotated(tmp_path / "all.json", "val")
    assert again.names == val.names


@pytest.mark.parametrize(
    ("name", "train"), [("training", True), ("validation", False), ("Test", False)]
)
def test_the_held_out_images_are_found_by_any_name_of_their_split(
    tmp_path: Path, name: str, *, train: bool
) -> None:
    write_coco(tmp_path, "all", 10, size=(64, 64))
    assert open_annotated(tmp_path, name).names == (
        open_annotated(tmp_path, "train" if train else "val").names
    )
    with pytest.raises(DataError, match=r"of data without splits .* got 'tset'; did you mean 'te"):
        open_annotated(tmp_path, "tset")


@pytest.mark.parametrize("name", ["coco", "voc", "yolo"])
def test_a_test_split_serves_as_validation_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    for split in ("train", "test"):
        images = tmp_path / "images" if name == "coco" else tmp_path / split / "images"
        save_picture(images / f"{split}.png")
        if name == "coco":
            content = coco([{"id": 7, "file_name": f"{split}.png"}], [annotation()])
            (tmp_path / f"{split}.json").write_text(json.dumps(content))
        elif name == "voc":
            text = voc(f"{split}.png", SIZE, [("cat", bndbox(1, 2, 9, 9))])
            (tmp_path / split / f"{split}.xml").write_text(text)
        else:
            (tmp_path / split / "labels").mkdir()
            (tmp_path / split / "labels" / f"{split}.txt").write_text("0 .5 .5 .2 .2")
            (tmp_path / "classes.txt").write_text("cat")
    for asked in ("train", "test", "val"):
        assert not caplog.messages
        assert open_annotated(tmp_path, asked).names == [f"{asked.replace('val', 'test')}.png"]
    assert caplog.messages == [f"{tmp_path} has no split val: test is used instead"]


@pytest.mark.parametrize("tested", [False, True])
def test_trainval_of_voc_is_divided_where_no_list_is_for_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, tested: bool
) -> None:
    (tmp_path / "Annotations").mkdir()
    for i in range(22):
        save_picture(tmp_path / "JPEGImages" / f"{i}.png")
        xml = voc(f"{i}.png", SIZE, [("cat", bndbox(1, 2, 9, 9))])
        (tmp_path / "Annotations" / f"{i}.xml").write_text(xml)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("\n".join(map(str, range(20))))
    (lists / "cat_trainval.txt").write_text("0 1")  # a list of one class, which is not a split
    if tested:
        (lists / "test.txt").write_text("20\n21\n")
    train, val = (open_annotated(tmp_path, split) for split in ("train", "val"))
    own = sorted(f"{i}.png" for i in range(20))
    assert train.origin != val.origin
    if tested:
        assert (sorted(train.names), val.names) == (own, ["20.png", "21.png"])
        assert caplog.messages == [f"{tmp_path} has no split val: test is used instead"]
    else:
        assert sorted([*train.names, *val.names]) == own
        assert 2 <= len(val) <= 6
        assert "trainval.txt is not divided: one image in 5 is for validation" in caplog.text
    (lists / "train.txt").write_text("3")
    (lists / "train_1.txt").write_text("4")  # a part of the images, beside the list of all
    assert open_annotated(tmp_path, "train").names == ["3.png"]
    (lists / "train.txt").rename(lists / "train_2.txt")
    with pytest.raises(DataError, match=r"may be the split train: .*1\.txt, .*2\.txt"):
        open_annotated(tmp_path, "train")


def test_several_files_of_a_split_are_refused(tmp_path: Path) -> None:
    write_splits(tmp_path)
    (tmp_path / "train_2.json").write_bytes((tmp_path / "train.json").read_bytes())
    with pytest.raises(DataError, match="must have one file of the split train"):
        open_annotated(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("voc", "rename .*train.txt to trainval.txt"),
        ("voc beside", "move the images and XML files of .*train into "),
        ("yolo", "put all files into images/ and labels/ themselves, without folders of splits"),
        ("yolo by split", "put all files into images/ and labels/ themselves"),
    ],
)
def test_the_images_of_one_split_are_divided_as_the_error_advises(
    name: str, advice: str, tmp_path: Path
) -> None:
    write_format(tmp_path, name)
    with pytest.raises(DataError, match=f"got train; add it, or {advice}.*: then one image in 5"):
        open_annotated(tmp_path, "val")
    if name == "voc":
        lists = tmp_path / "ImageSets" / "Main"
        (lists / "train.txt").rename(lists / "trainval.txt")
    elif name == "voc beside":
        for path in [*(tmp_path / "train").iterdir()]:
            path.rename(tmp_path / path.name)
    else:
        for folder, ending in (("images", "png"), ("labels", "txt")):
            (path,) = tmp_path.glob(f"**/a.{ending}")
            (tmp_path / "whole" / folder).mkdir(parents=True)
            path.rename(tmp_path / "whole" / folder / path.name)
        (tmp_path / "data.yaml").rename(tmp_path / "whole" / "data.yaml")
        tmp_path /= "whole"
    assert_boxes(open_annotated(tmp_path, "train"))


def test_labels_of_val_follow_the_classes_of_train(tmp_path: Path) -> None:
    train = open_annotated(write_splits(tmp_path), "train")
    content = json.loads((tmp_path / "val.json").read_text())
    before = open_annotated(tmp_path, "val")
    for row in content["categories"]:  # val lists the classes in another order
        row["id"] = 40 - row["id"]
    for row in content["annotations"]:
        row["category_id"] = 40 - row["category_id"]
    (tmp_path / "val.json").write_text(json.dumps(content))
    val = open_annotated(tmp_path, "val")
    assert val.classes == train.classes[::-1]
    mapped = check_same_classes(train, val)
    for one, other in zip(before.objects, mapped.objects, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
    content["categories"][0]["name"] = "violet"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"only in train and .* only in val; use the same names in both; list all"
    ):
        check_same_classes(train, open_annotated(tmp_path, "val"))


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    save_picture(tmp_path / "images" / "a.jpg", exif=exif)
    row = {"id": 7, "file_name": "a.jpg"}
    (tmp_path / "train.json").write_text(json.dumps(coco([row], [annotation()])))
    assert open_annotated(tmp_path, "train").sizes == [SIZE[::-1]]


@pytest.mark.parametrize("named", ["annotations", "annotations/instances_train2017.json"])
def test_images_beside_the_folder_of_annotations_are_found_whichever_is_named(
    named: str, tmp_path: Path
) -> None:
    write_format(tmp_path, "coco 2017")
    assert str(tmp_path / "train2017" / "a.png") in map(
        str, open_annotated(tmp_path / named, "train").images
    )


def test_a_single_file_of_one_split_can_be_named_to_be_divided(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "train", 8)
    with pytest.raises(DataError, match=f"add it, or pass the file {path} itself: then one"):
        open_annotated(tmp_path, "val")
    assert len(open_annotated(path, "val")) < 8
