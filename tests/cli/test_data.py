"""`splitattn data`: a small data set, and a picture of a training batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitattn.cli import main
from splitattn.data.sources import open_data
from splitattn.dense.drawing import color
from splitattn.dense.masks import open_masked
from splitattn.dense.open import open_annotated
from splitattn.training.recipe_files import load_recipe
from splitattn.training.sheet import batch_sheet
from tests.data.datasets import write_image_folder
from tests.dense.datasets import write_masked_splits, write_splits


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    return int(end.value.code or 0)


def test_the_toy_data_set_is_the_same_each_time_and_can_be_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        assert call("data", "toy", tmp_path / name) == 0
    train, val = (open_data(str(tmp_path / "one"), split) for split in ("train", "val"))
    assert train.classes == val.classes == ("astronaut", "camera", "chelsea", "coffee", "rocket")
    assert (len(train), len(val)) == (200, 50)
    files = [sorted((tmp_path / name).rglob("*.jpg")) for name in ("one", "two")]
    contents = [[path.read_bytes() for path in paths] for paths in files]
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == 250
    assert call("data", "toy", tmp_path / "one") == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    sheet = tmp_path / "batch.jpg"
    options = ("--output", sheet, "--images", 7, "--set", "train_size=32")
    assert call("data", "show", tmp_path / "one", *options) == 0
    assert "7 of the 200 images of 5 classes in " in capsys.readouterr().out
    with Image.open(sheet) as picture:
        assert picture.format == "JPEG"
    assert call("data", "show", tmp_path / "one", "--output", "batch.txt") == 2
    assert "must end in .png, .jpg, .jpeg, .webp, got batch.txt" in capsys.readouterr().err


def test_a_toy_data_set_may_have_boxes_or_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes, street = tmp_path / "boxes", tmp_path / "street"
    assert call("data", "toy", boxes, "--kind", "boxes") == 0
    assert f"{boxes}: 80 images; splitattn train {boxes} --output run" in capsys.readouterr().out
    assert len(open_annotated(boxes, "train")) == 60
    assert call("data", "toy", street, "--kind", "masks") == 0
    assert len(open_masked(street, "val")) == 20
    assert call("data", "toy", tmp_path / "other", "--kind", "polygons") == 2
    assert "labels" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_sheet_shows_the_batch_as_the_recipe_makes_it(tmp_path: Path) -> None:
    data = open_data(str(write_image_folder(tmp_path, train=3, val=1)), "train")
    sizes = ["train_size=32", "first_train_size=32", "batch_size=4"]
    plain = load_recipe("plain", sizes, model="resnest14")
    sheet = batch_sheet(data, plain)
    # Nine images in rows of six; 32 pixels are drawn as 128, with two lines of text below each.
    assert sheet.size == (6 * 136 + 8, 2 * (128 + 28 + 8) + 8)
    shown = np.asarray(sheet, dtype=float)
    # Three images of each class, which are mostly red, green or blue.
    tiles = [shown[8 + 164 * (i // 6) :, 8 + 136 * (i % 6) :][:128, :128] for i in range(9)]
    brightest = [int(tile.mean((0, 1)).argmax()) for tile in tiles]
    assert sorted(brightest) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (shown[8 + 164 :, 8 + 3 * 136 : -8] == 255).all(), "there is no tenth image"
    mixed = batch_sheet(data, load_recipe("plain", [*sizes, "mixup_alpha=5.0"], model="resnest14"))
    assert mixed != sheet
    assert batch_sheet(data, plain) == sheet


def test_a_sheet_of_gray_images_shows_them_as_training_sees_them(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "gray"
    folder.mkdir(parents=True)
    for i in range(2):
        Image.fromarray(np.full((40, 40), 1000, np.uint16)).save(folder / f"{i}.png")
    data = open_data(str(tmp_path), "train")
    settings = ["train_size=32", "first_train_size=32", "batch_size=2", "in_chans=1"]
    settings += ["white_level=2000", "mean=[0.5]", "std=[0.5]"]
    shown = np.asarray(batch_sheet(data, load_recipe("plain", settings, model="resnest14")))
    np.testing.assert_allclose(shown[8:136, 8:136].astype(float), 127.5, atol=1)


def test_boxes_are_shown_as_training_sees_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, sheet = write_splits(tmp_path / "data", train=3, val=1), tmp_path / "boxes.png"
    options = ("--output", sheet, "--set", "train_size=64", "--set", "zoom=1", "--images", 2)
    assert call("data", "show", data, *options, "--set", "color_jitter=0") == 0
    assert f"of the 3 images with {open_annotated(data, 'train').count()} objects of 3 classes" in (
        capsys.readouterr().out
    )
    with Image.open(sheet) as picture:
        # Two images of 64 pixels, enlarged seven times.
        assert picture.size == (2 * (448 + 8) + 8, 448 + 16)
        shown = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    outlines = [(shown == color(label)).all(1).sum() for label in range(3)]
    assert sum(count > 100 for count in outlines) >= 1
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    assert call("data", "show", data, *options, "--class-names", names) == 2
    assert "names its classes" in capsys.readouterr().err


def test_masks_are_shown_as_training_sees_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks of segmentation have a legend; masks of objects are drawn where boxes would be."""
    sheet = tmp_path / "masks.png"
    options = ("--output", sheet, "--images", 2, "--set", "train_size=64", "--set", "zoom=1")
    options += ("--set", "first_train_size=64", "--set", "test_size=64", "--set", "color_jitter=0")
    data = write_masked_splits(tmp_path / "masked", train=3, val=1)
    assert call("data", "show", data, *options) == 0
    assert "of the 3 images with masks of 4 classes" in capsys.readouterr().out
    with Image.open(sheet) as picture:
        assert picture.width == 2 * (448 + 8) + 8
        assert picture.height > 448 + 16
        shown = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    # Classes have the colors of the squares in the legend.
    assert (shown == color(0)).all(1).sum() > 50
    boxes = write_splits(tmp_path / "boxes", train=2, val=1, outlines=True)
    assert call("data", "show", boxes, *options[:8]) == 0
    with Image.open(sheet) as picture:
        tile = np.asarray(picture.convert("RGB"))[8:456, 8:456].astype(int)
    assert (tile == 255).all(-1).sum() > 200  # the edges of masks


@pytest.mark.parametrize("write", [write_image_folder, write_splits, write_masked_splits])
def test_a_sheet_names_an_unreadable_image_that_another_one_replaces(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, write: Callable[..., Path]
) -> None:
    data = write(tmp_path / "data", train=3, val=1)
    options = ("--output", tmp_path / "sheet.png", "--set", "train_size=64")
    options += ("--set", "first_train_size=64")
    assert call("data", "show", data, *options) == 0
    assert "unreadable" not in caplog.text
    damaged = min(path for path in data.rglob("*.*g") if "masks" not in path.parts)  # in train
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    assert call("data", "show", data, *options) == 0
    warning = caplog.text
    assert "unreadable images, each replaced by the next readable one: 1; the first: " in warning
    assert damaged.name in warning
