"""Masks are read as the numbers they hold; unusable ones get one warning for each rule."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitattn.dense.masks import (
    MaskedImages,
    check_classes,
    is_masked,
    open_masked,
    read_masked,
)
from splitattn.errors import DataError, ImageError, one_line
from tests.data.datasets import write_image_folder
from tests.dense.datasets import (
    MASK_CLASSES,
    class_mask,
    picture,
    scene,
    write_coco,
    write_masked,
    write_masked_splits,
)

SIZE = (12, 8)


def write_pair(root: Path, numbers: np.ndarray, name: str = "a", folder: str = ".") -> Path:
    """Write an image of 12 x 8 pixels and a mask into `root`/`folder`; returns the mask's path."""
    for kind in ("images", "masks"):
        (root / folder / kind).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(MASK_CLASSES))
    picture([], SIZE).save(root / folder / "images" / f"{name}.jpg")
    path = root / folder / "masks" / f"{name}.png"
    Image.fromarray(numbers).save(path)
    return path


def some(value: int = 1) -> np.ndarray:
    """A mask of class 0 with one pixel of the class `value`."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[2, 3] = value
    return mask


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("train/images", "train/masks"),
        ("images/train", "masks/train"),
        ("Training/images", "Training/masks"),
    ],
)
def test_every_layout_is_recognized(tmp_path: Path, images: str, masks: str) -> None:
    for folder in (images, masks):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("\n".join(MASK_CLASSES))
    picture([], SIZE).save(tmp_path / images / "a.jpg")
    Image.fromarray(some()).save(tmp_path / masks / "a.png")
    assert is_masked(tmp_path)
    found = open_masked(tmp_path, "train")
    assert found.classes == MASK_CLASSES
    assert found.names == ["a.jpg"]
    assert found.notes == ()
    assert found.pixels.tolist() == [[95, 1, 0, 0]]
    image, mask = read_masked(found, 0)
    assert image.size == SIZE
    np.testing.assert_array_equal(mask, some())
    with pytest.raises(DataError, match="must have a split val or test, got train; add"):
        open_masked(tmp_path, "val")
    with pytest.raises(DataError, match="split trian, got train; did you mean 'train'"):
        open_masked(tmp_path, "trian")


@pytest.mark.parametrize(
    "folders", [("images/train", "masks/train"), ("train/images", "train/masks")]
)
def test_the_images_of_one_split_are_divided_as_the_error_advises(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    for root, names in (("split", folders), ("whole", ("images", "masks"))):
        for name in names:
            (tmp_path / root / name).mkdir(parents=True)
            for number in range(20):
                Image.fromarray(some()).save(tmp_path / root / name / f"{number}.png")
        (tmp_path / root / "classes.txt").write_text("\n".join(MASK_CLASSES))
    advice = "put all files into images/ and masks/ themselves, without folders of splits: then one"
    with pytest.raises(DataError, match=f"got train; add it, or {advice}"):
        open_masked(tmp_path / "split", "val")
    train, val = (len(open_masked(tmp_path / "whole", split)) for split in ("train", "val"))
    assert train + val == 20
    assert val > 0


def test_a_test_split_serves_as_validation_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pair(tmp_path, some(), folder="train")
    write_pair(tmp_path, some(2), "b", folder="test")
    assert open_masked(tmp_path, "val").names == open_masked(tmp_path, "test").names == ["b.jpg"]
    assert caplog.messages == [f"{tmp_path} has no split val: test is used instead"]


def test_two_folders_of_a_split_are_refused(tmp_path: Path) -> None:
    for number, folder in enumerate(("train2012", "train2017", "val2017")):
        write_pair(tmp_path, some(), str(number), folder=folder)
    with pytest.raises(DataError, match=r"may be the split train: .*train2012/images, .*"):
        open_masked(tmp_path, "train")


def test_without_splits_one_image_in_five_is_for_validation(tmp_path: Path) -> None:
    for number in range(30):
        write_pair(tmp_path, some(), str(number))
    parts = [{*open_masked(tmp_path, split).names} for split in ("train", "val")]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 30
    assert 2 <= len(parts[1]) <= 10


@pytest.mark.parametrize(
    "write",
    [
        lambda path: Image.fromarray(some(2)).save(path),
        lambda path: _palette(some(2)).save(path),
        lambda path: _palette(some(2)).save(path, bits=4),
        lambda path: Image.fromarray(some(2).astype(np.uint16)).save(path),
    ],
    ids=["gray", "palette", "palette of 4 bits", "16 bits"],
)
def test_masks_are_the_numbers_that_a_file_holds(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(write_pair(tmp_path, some(), folder="train"))
    data = open_masked(tmp_path, "train")
    np.testing.assert_array_equal(read_masked(data, 0)[1], some(2))
    assert data.pixels.tolist() == [[95, 0, 1, 0]]


def _palette(numbers: np.ndarray) -> Image.Image:
    image = Image.fromarray(numbers, "P")
    image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, 90, 90, 90])
    return image


def test_masks_of_one_bit_have_two_classes(tmp_path: Path) -> None:
    path = write_pair(tmp_path, some(), folder="train")
    Image.fromarray(some() > 0).save(path)
    assert open_masked(tmp_path, "train").pixels.tolist() == [[95, 1, 0, 0]]


def test_255_is_no_class(tmp_path: Path) -> None:
    write_pair(tmp_path, some(255), folder="train")
    assert open_masked(tmp_path, "train").pixels.tolist() == [[95, 0, 0, 0]]


def test_unusable_files_are_left_out_with_one_note_per_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "train"
    write_pair(tmp_path, some(), "good", "train")
    for name in ("small", "small2"):
        path = write_pair(tmp_path, some(), name, "train")
        Image.fromarray(some()[:4]).save(path)
    write_pair(tmp_path, some(), "lonely", "train").unlink()
    Image.fromarray(some()).save(folder / "masks" / "other.png")
    write_pair(tmp_path, np.full_like(some(), 255), "void", "train")
    write_pair(tmp_path, some(), "broken", "train").write_bytes(b"\x89PNG\r\n\x1a\nno")
    write_pair(tmp_path, some(), "colors", "train")
    picture([], SIZE).save(folder / "masks" / "colors.png")
    (folder / "images" / "bad.jpg").write_bytes(b"no image")
    Image.fromarray(some()).save(folder / "masks" / "bad.png")
    write_pair(tmp_path, some(), "jpeg", "train")
    picture([], SIZE).save(folder / "masks" / "jpeg.png", format="JPEG")
    found = open_masked(tmp_path, "train")
    assert found.names == ["good.jpg"]
    notes = "\n".join(found.notes)
    for part in (
        "images without a mask, left out: 1, such as lonely.jpg",
        "masks without an image, left out: 1, such as other.png",
        "masks of another size than their image, left out: 2, such as small.png (12 x 4, the "
        "image 12 x 8)",
        "masks of nothing but 255, left out: 1, such as void.png",
        f"images that cannot be read, left out: 1, such as {folder / 'images' / 'bad.jpg'}: ",
        f"masks that cannot be read, left out: 1, such as {folder / 'masks' / 'broken.png'}: ",
        "masks left out, since a mask must have one channel, with the number of a class in each "
        f"pixel: 1, such as {folder / 'masks' / 'colors.png'}: ",
        "masks left out, since a mask must be a PNG file, which keeps numbers as they are: 1, such "
        f"as {folder / 'masks' / 'jpeg.png'}: ",
    ):
        assert part in notes
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [*found.notes]


def test_a_mask_that_is_not_upright_like_its_image_is_left_out(tmp_path: Path) -> None:
    """EXIF turns the image upright, so its mask must have the size of the upright image."""
    write_pair(tmp_path, some(), "good", "train")
    write_pair(tmp_path, some(), "turned", "train")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture([], SIZE).save(tmp_path / "train" / "images" / "turned.jpg", exif=exif)
    found = open_masked(tmp_path, "train")
    assert found.names == ["good.jpg"]
    assert "turned.png (12 x 8, the image 8 x 12)" in found.notes[0]


@pytest.mark.parametrize(
    ("numbers", "rule"),
    [
        (
            Image.fromarray(some(4)),
            r"a\.png must have the classes 0 to 3, as many as classes\.txt names, or 255 for none, "
            "got 4",
        ),
        (
            Image.fromarray(some().astype(np.uint16) + 300),
            "got 1 of which none can be used, such as .*: .* numbers from 0 to 255, got 301",
        ),
        (picture([], SIZE), "a mask must have one channel, with the number of a class .*, got RGB"),
    ],
)
def test_masks_that_hold_no_classes_are_refused(
    tmp_path: Path, numbers: Image.Image, rule: str
) -> None:
    numbers.save(write_pair(tmp_path, some(), folder="train"))
    assert_refused(tmp_path, rule)


def assert_refused(root: Path, rule: str) -> None:
    with pytest.raises(DataError, match=rule) as raised:
        open_masked(root, "train")
    assert str(raised.value) == one_line(str(raised.value))


def test_a_data_set_without_masks_is_refused(tmp_path: Path) -> None:
    path = write_pair(tmp_path, some(), folder="train")
    picture([], SIZE).convert("L").save(path, "JPEG")
    assert_refused(tmp_path, "a mask must be a PNG file")
    path.unlink()
    assert_refused(
        tmp_path, "images with masks, got none; images without a mask, left out: 1, such as a"
    )


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (None, r"write one a line into classes\.txt"),
        ("a\na", "name each class once"),
        ("a\n\nb", "must name a class on each line, got none on 2"),
        ("\n".join(map(str, range(256))), "must name at most 255 classes, got 256"),
    ],
)
def test_classes_are_named_once(tmp_path: Path, names: str | None, rule: str) -> None:
    write_pair(tmp_path, some(), folder="train")
    path = tmp_path / "classes.txt"
    path.unlink()
    if names:
        path.write_text(names)
    assert_refused(tmp_path, rule)


def test_other_data_is_not_taken_for_masks(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", "train", 1)
    write_image_folder(tmp_path / "folders")
    for name in ("coco", "folders", "missing"):
        assert not is_masked(tmp_path / name)
    with pytest.raises(
        DataError, match=r"images/ and masks/, got .*folders': a folder without them; "
    ):
        open_masked(tmp_path / "folders", "train")
    with pytest.raises(DataError, match=r"got .*missing': no such file or folder$"):
        open_masked(tmp_path / "missing", "train")
    (tmp_path / "data.yaml").touch()
    with pytest.raises(DataError, match=r"data.yaml': a YAML file; name the folder of the data"):
        open_masked(tmp_path / "data.yaml", "train")


def test_a_mask_that_changed_since_is_an_unreadable_image(tmp_path: Path) -> None:
    data = open_masked(write_masked(tmp_path, "train", 2), "train")
    Image.fromarray(some()).save(data.masks[0])
    with pytest.raises(ImageError, match="must be of the size of its image, 64 x 64, got 12 x 8"):
        read_masked(data, 0)
    mask = class_mask(scene(1), (64, 64))
    mask[0, 0] = 9
    Image.fromarray(mask).save(data.masks[1])
    with pytest.raises(ImageError, match="must have the classes 0 to 3, got 9"):
        read_masked(data, 1)


def test_classes_of_weights_must_be_those_of_the_data(tmp_path: Path) -> None:
    data: MaskedImages = open_masked(write_masked_splits(tmp_path, train=1, val=1), "val")
    check_classes(data, MASK_CLASSES)
    with pytest.raises(DataError, match="in their order"):
        check_classes(data, MASK_CLASSES[::-1])
