"""The small data sets of `splitattn data toy`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitattn import launch
from splitattn.data.toy import SCENE, write_toy_data
from splitattn.dense.masks import open_masked, read_masked
from splitattn.dense.open import open_annotated
from splitattn.dense.outlines import RunLengths
from splitattn.errors import InputError
from splitattn.images.decode import decode

COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
CLASSES = ("astronaut", "camera", "chelsea", "coffee", "rocket")


@pytest.fixture
def plain_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs of one color each, which no pale background has."""
    paths = [tmp_path / f"{name}.png" for name in COLORS]
    for path, color in zip(paths, COLORS.values(), strict=True):
        Image.new("RGB", (200, 150), color).save(path)
    monkeypatch.setattr("splitattn.data.toy.sample_photographs", lambda: paths)


@pytest.mark.usefixtures("plain_photographs")
def test_boxes_and_their_masks_fit_the_pixels(tmp_path: Path) -> None:
    assert write_toy_data(tmp_path / "boxes", "boxes") == 80
    found = open_annotated(tmp_path / "boxes", "train")
    assert found.classes == tuple(COLORS)
    assert found.notes == ()
    assert {len(objects) for objects in found.objects} == {1, 2, 3}
    for path, objects in zip(found.images, found.objects, strict=True):
        pixels = np.asarray(decode(path))
        drawn = np.full((SCENE, SCENE), -1)
        for label, outline, box in zip(
            objects.labels, objects.outlines, objects.boxes, strict=True
        ):
            assert isinstance(outline, RunLengths)
            mask = outline.pixels()
            assert (drawn[mask] == -1).all(), "objects do not overlap"
            drawn[mask] = label
            rows, columns = np.nonzero(mask)
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert tuple(box) == edges
        for label, color in enumerate(COLORS.values()):
            assert ((pixels == color).all(2) == (drawn == label)).all()


@pytest.mark.usefixtures("plain_photographs")
def test_masks_fit_the_pixels(tmp_path: Path) -> None:
    assert write_toy_data(tmp_path / "street", "masks") == 80
    found = open_masked(tmp_path / "street", "train")
    assert found.classes == ("background", *COLORS)
    assert found.notes == ()
    for index in range(len(found)):
        image, mask = read_masked(found, index)
        for label, color in enumerate(COLORS.values(), 1):
            assert ((np.asarray(image) == color).all(2) == (mask == label)).all()


@pytest.mark.parametrize("kind", ["labels", "boxes", "masks"])
def test_a_seed_always_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    def contents(name: str, seed: int) -> dict[Path, bytes]:
        root = tmp_path / name
        write_toy_data(root, kind, seed=seed)
        paths = [path for path in root.rglob("*") if path.is_file()]
        return {path.relative_to(root): path.read_bytes() for path in paths}

    first = contents("first", 0)
    assert contents("again", 0) == first
    other = contents("other", 1)
    assert other.keys() == first.keys()
    pictures = [path for path in first if path.suffix in (".jpg", ".png")]
    assert all(first[path] != other[path] for path in pictures if "masks" not in path.parts)
    # Training images are not validation images.
    assert len({first[path] for path in pictures}) == len(pictures)


def test_both_splits_have_every_class(tmp_path: Path) -> None:
    write_toy_data(tmp_path / "boxes", "boxes")
    write_toy_data(tmp_path / "street", "masks")
    for split, count in (("train", 60), ("val", 20)):
        boxes = open_annotated(tmp_path / "boxes", split)
        masks = open_masked(tmp_path / "street", split)
        assert len(boxes) == len(masks) == count
        assert boxes.classes == CLASSES
        assert {int(label) for each in boxes.objects for label in each.labels} == {*range(5)}
        assert masks.pixels.sum(0).all()


@pytest.mark.parametrize(
    ("kind", "figure", "setting"),
    [("boxes", "ap50", "head_channels=64"), ("masks", "miou", "first_train_size=32")],
)
def test_boxes_and_masks_can_be_trained_on(
    kind: str, figure: str, setting: str, tmp_path: Path
) -> None:
    write_toy_data(tmp_path / "data", kind)
    result = launch.train(
        tmp_path / "data",
        tmp_path / "run",
        model="resnest26_tiny",
        overrides=["epochs=1", "batch_size=20", "train_size=32", "test_size=32", setting],
        device="cpu",
        workers=0,
    )
    assert 0 <= result.figures[figure] <= 100
    assert result.weights.is_file()


@pytest.mark.parametrize("is_new", [True, False])
def test_an_interrupted_set_is_removed(
    is_new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "toy"
    if not is_new:
        folder.mkdir()
    crops = iter([Image.new("RGB", (8, 8))] * 3)

    def crop(*_: object) -> Image.Image:
        if image := next(crops, None):
            return image
        raise KeyboardInterrupt

    monkeypatch.setattr("splitattn.data.toy._crop", crop)
    with pytest.raises(KeyboardInterrupt):
        write_toy_data(folder)
    assert [*tmp_path.rglob("*")] == ([] if is_new else [folder])


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kind must be labels, boxes, masks, got 'polygons'"):
        write_toy_data(tmp_path / "toy", "polygons")
    assert not (tmp_path / "toy").exists()
