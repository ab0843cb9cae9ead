"""Data sets of torchvision, by name."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from splitattn import libraries
from splitattn.data.sources import open_data
from splitattn.errors import DataError, InputError
from splitattn.images.decode import decode
from tests.data.datasets import CLASSES, picture


class _Local(datasets.VisionDataset):
    """A torchvision data set that needs no download."""

    classes = (("blue", "azure"), "green", "red")

    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        assert download
        super().__init__(root)
        self._labels = [2, 1] if split == "train" else [0]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[object, int]:
        return picture(self._labels[index], index), self._labels[index]


def test_a_torchvision_data_set_opens_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "Imagenette", _Local)
    data = open_data("torchvision:Imagenette", "train")
    assert data.classes == CLASSES
    assert list(data.labels) == [2, 1]
    np.testing.assert_array_equal(decode(data.images[1]), picture(1, 1))
    assert len(open_data("torchvision:Imagenette", "val")) == 1


def test_a_torchvision_data_set_may_call_its_splits_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Strict(_Local):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if split not in ("train", "test"):
                raise ValueError(f"Unknown value '{split}' for argument split")
            super().__init__(root, split, download)

    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "Food101", Strict)
    assert list(open_data("torchvision:Food101", "val").labels) == [0]
    assert caplog.messages == ["Food101 has no split val: test is used instead"]


def test_a_validation_split_that_cannot_be_downloaded_is_not_replaced_by_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreachable(_Local):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if split == "val":
                raise OSError("connection reset")
            super().__init__(root, split, download)

    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "Food101", Unreachable)
    with pytest.raises(DataError, match="cannot open Food101, split 'val': connection reset"):
        open_data("torchvision:Food101", "val")


def test_small_data_sets_that_the_guide_names_open_as_torchvision_stores_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    _write_cifar10(tmp_path / "torchvision" / "CIFAR10" / "cifar-10-batches-py")
    _write_eurosat(tmp_path / "torchvision" / "EuroSAT" / "eurosat" / "2750")
    _write_pets(tmp_path / "torchvision" / "OxfordIIITPet" / "oxford-iiit-pet")
    for name, train, val in (
        ("CIFAR10", [0, 1, 1, 2, 0], [2]),
        ("EuroSAT", [0, 1, 2], [0, 1, 2]),
        ("OxfordIIITPet", [0, 1, 2], [2, 1, 0]),
    ):
        data = open_data(f"torchvision:{name}", "train")
        assert list(data.labels) == train
        assert list(open_data(f"torchvision:{name}", "val").labels) == val
        assert tuple(map(str.casefold, data.classes)) == CLASSES
        assert np.asarray(decode(data.images[0])).shape[2] == 3
    assert caplog.messages == [
        f"{name} has no split val: test is used instead" for name in ("CIFAR10", "OxfordIIITPet")
    ]
    for name in ("CIFAR10", "EuroSAT"):
        with pytest.raises(DataError, match=r"one of train, val, test, got 'tset'; did you mean"):
            open_data(f"torchvision:{name}", "tset")


def _write_cifar10(folder: Path) -> None:
    folder.mkdir(parents=True)
    batches = dict(zip([f"data_batch_{i}" for i in range(1, 6)], [0, 1, 1, 2, 0], strict=True))
    for name, label in {**batches, "test_batch": 2}.items():
        batch = {"data": np.zeros((1, 3 * 32 * 32), np.uint8), "labels": [label]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))


def _write_eurosat(folder: Path) -> None:
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        picture(label, 0).save(folder / name / f"{name}_1.jpg")


def _write_pets(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for split, labels in {"trainval": [0, 1, 2], "test": [2, 1, 0]}.items():
        lines = [f"{CLASSES[label]}_{split} {label + 1} 1 1" for label in labels]
        for line, label in zip(lines, labels, strict=True):
            picture(label, 0).save(folder / "images" / f"{line.split()[0]}.jpg")
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines))


def test_an_unknown_torchvision_data_set_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'Imagenette'"):
        open_data("torchvision:Imagenete", "val")


def test_a_failed_torchvision_download_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(_Local):
        def __init__(self, *_: object) -> None:
            raise RuntimeError("no\nnetwork")

    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "Imagenette", Broken)
    line = "cannot open Imagenette, split 'val': no network; check the network, or put its files"
    with pytest.raises(DataError, match=line):
        open_data("torchvision:Imagenette", "val")


def test_the_error_of_a_download_is_that_of_the_split_that_the_data_set_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreachable(_Local):
        def __init__(self, *_: object, split: str, **__: object) -> None:
            if split not in ("trainval", "test"):
                raise ValueError(f"Unknown value '{split}'. Valid values are trainval, test.")
            raise OSError("no network")

    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "OxfordIIITPet", Unreachable)
    for split, had in (("train", "trainval"), ("val", "test")):
        with pytest.raises(DataError, match=f"split '{had}': no network; check the network, or"):
            open_data("torchvision:OxfordIIITPet", split)
    with pytest.raises(DataError, match=r"split 'tset': Unknown .* are trainval, test$"):
        open_data("torchvision:OxfordIIITPet", "tset")


def test_nothing_is_downloaded_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent(_Local):
        def __init__(self, *_: object, download: bool, **__: object) -> None:
            raise RuntimeError(f"not there, {download=}")

    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path))
    monkeypatch.setenv("SPLITATTN_OFFLINE", "1")
    monkeypatch.setattr(datasets, "Imagenette", Absent)
    line = f"download=False; unset SPLITATTN_OFFLINE .* {tmp_path / 'torchvision' / 'Imagenette'}"
    with pytest.raises(DataError, match=line):
        open_data("torchvision:Imagenette", "val")


def test_a_missing_torchvision_is_reported_in_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "installed", lambda *_: False)
    with pytest.raises(InputError, match=r"needs torch and torchvision.*pip install torch torchv"):
        open_data("torchvision:Imagenette", "val")
