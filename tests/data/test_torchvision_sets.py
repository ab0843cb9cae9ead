"""Data sets of torchvision, by name."""

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
    """A torchvision data set that is already here."""

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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strict(_Local):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if split not in ("train", "test"):
                raise ValueError(f"Unknown value '{split}' for argument split")
            super().__init__(root, split, download)

    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "Food101", Strict)
    assert list(open_data("torchvision:Food101", "val").labels) == [0]


def test_an_unknown_torchvision_data_set_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'Imagenette'"):
        open_data("torchvision:Imagenete", "val")


def test_a_failed_torchvision_download_is_one_line(
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


def test_a_missing_torchvision_is_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "installed", lambda *_: False)
    with pytest.raises(InputError, match=r"needs torch and torchvision.*pip install torch torchv"):
        open_data("torchvision:Imagenette", "val")
