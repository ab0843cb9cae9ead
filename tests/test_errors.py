"""Error messages are one line, whatever text they quote."""

import errno
import os
import pickle
from pathlib import Path

import pytest
from safetensors import SafetensorError

from splitattn.data.toy import write_toy_data
from splitattn.errors import DataError, ImageError, InputError, WeightsError, nearest, write_failure
from splitattn.files import replacing
from splitattn.weights.checkpoint import writing


@pytest.mark.parametrize("kind", [InputError, ImageError, WeightsError, DataError])
def test_a_message_is_one_line_of_text_whatever_it_quotes(kind: type[InputError]) -> None:
    error = kind("no such file: a\nb\r\x1b[31m\udcff é 日本")
    assert str(error) == r"no such file: a\nb\r\x1b[31m\udcff é 日本"
    # Pickled, as an error of a worker process.
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar10", "; did you mean 'CIFAR10'?"),
        ("onnx", "; did you mean 'onnxruntime'?"),
        ("ONNXruntim", "; did you mean 'onnxruntime'?"),
        ("openvimo", "; did you mean 'openvino'?"),
        ("tensorrt", ""),
        ("openlab", ""),
        ("cat", "; did you mean 'tabby cat' or 'Egyptian cat'?"),
        ("tabbyy", "; did you mean 'tabby cat'?"),
        ("", ""),
    ],
)
def test_the_nearest_name_is_found_in_any_case_by_its_beginning_or_a_word(
    name: str, hint: str
) -> None:
    names = ["openvino", "onnxruntime", "CIFAR10", "crate", "tabby cat", "Egyptian cat"]
    assert nearest(name, names) == hint


def test_only_names_that_are_much_alike_are_suggested() -> None:
    assert nearest("mmcls", ["mmseg", "mmdet"]) == ""
    assert nearest("fpn", ["fcn"]) == ""
    assert nearest("tset", ["train", "test"]) == "; did you mean 'test'?"


def test_an_image_with_an_empty_name_is_shown_as_one() -> None:
    assert str(ImageError("no path", "")) == "'': no path"


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error",
    [FULL, SafetensorError("Error: I/O error: No space left on device (os error 28)")],
    ids=["system", "library"],
)
def test_the_error_of_a_full_disk_has_the_path_and_the_fix(error: Exception) -> None:
    assert write_failure(Path("a/b.csv"), error, "cannot write --output") == (
        "the disk is full: a/b.csv (No space left on device); free some space or choose another "
        "place"
    )
    quota = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert write_failure("a", quota).startswith("the disk is full: a (Disk quota exceeded); free")
    denied = PermissionError(errno.EACCES, "Permission denied")
    assert write_failure("a", denied, "cannot write --output") == (
        "cannot write --output a: Permission denied"
    )


def test_a_file_that_a_full_disk_cuts_off_is_named_and_removed(tmp_path: Path) -> None:
    def fill(file: Path, error: Exception) -> None:
        file.write_text("half")
        raise error

    with pytest.raises(OSError, match="No space left") as raised, replacing(tmp_path / "a") as file:
        fill(file, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert raised.value.filename == str(tmp_path / "a")
    with (
        pytest.raises(WeightsError, match=r"the disk is full: .*a \("),
        writing(tmp_path / "a") as file,
    ):
        fill(file, SafetensorError("I/O error: No space left on device (os error 28)"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "images"), [("labels", 250), ("boxes", 80), ("masks", 80)])
def test_a_full_disk_leaves_no_half_of_a_data_set(
    kind: str, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Path] = []

    def save_most(_: object, path: Path, **__: object) -> None:
        if len(saved) == 70:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.touch()
        saved.append(path)

    with monkeypatch.context() as full:
        full.setattr("PIL.Image.Image.save", save_most)
        with pytest.raises(InputError, match=r"the disk is full: .*toy"):
            write_toy_data(tmp_path / "toy", kind)
    assert len(saved) == 70
    assert not (tmp_path / "toy").exists()
    assert write_toy_data(tmp_path / "toy", kind) == images
