"""Weights files: valid ones in every wrapper, damaged ones and hostile ones."""

import io
import os
import pickle
import random
import re
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from splitattn.architectures import ARCHITECTURES
from splitattn.errors import InputError, WeightsError
from splitattn.preprocessing import center_crop
from splitattn.weights import checkpoint
from splitattn.weights.checkpoint import read_checkpoint, read_tensors, write_checkpoint
from splitattn.weights.matching import check_match
from splitattn.weights.metadata import ModelMetadata, read_metadata

METADATA = ModelMetadata(
    model="resnest50",
    classes=("cat", "tête-à-tête"),
    preprocessing=center_crop(224),
    recipe={"epochs": 3, "schedule": {"warmup": 1}},
    metrics={"top1": 51.5},
)


def weights() -> dict[str, Tensor]:
    return {"conv1.0.weight": torch.randn(4, 3, 3, 3), "fc.bias": torch.arange(2.0)}


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0)


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "_fsdp_wrapped_module.",
    ],
)
def test_prefixes_are_removed(tmp_path: Path, prefix: str) -> None:
    torch.save(prefixed(weights_ := weights(), prefix), tmp_path / "a.pth")
    assert_same(read_tensors(tmp_path / "a.pth").tensors, weights_)
    safetensors.torch.save_file(prefixed(weights_, prefix), tmp_path / "b")
    assert_same(read_tensors(tmp_path / "b").tensors, weights_)


def test_only_whole_prefixes_are_removed(tmp_path: Path) -> None:
    found = {
        "submodule.a": 1,
        "layer1.0._orig_mod.conv1.weight": 2,
        "layer1.module.b": 3,
        "layer1.1._fsdp_wrapped_module._checkpoint_wrapped_module.c": 4,
    }
    torch.save({key: torch.tensor(value) for key, value in found.items()}, tmp_path / "a")
    state = read_tensors(tmp_path / "a").tensors
    assert list(state) == ["submodule.a", "layer1.0.conv1.weight", "layer1.module.b", "layer1.1.c"]


@pytest.mark.parametrize("wrapper", ["state_dict", "state_dict_ema", "model_ema", "model", "ema"])
def test_wrappers_are_opened(tmp_path: Path, wrapper: str) -> None:
    state = weights()
    torch.save({"epoch": 3, "arch": "resnest50", wrapper: state}, tmp_path / "a.pth")
    assert_same(read_tensors(tmp_path / "a.pth").tensors, state)


def test_nested_wrappers_are_opened(tmp_path: Path) -> None:
    state = weights()
    torch.save({"model": {"state_dict": OrderedDict(prefixed(state, "module."))}}, tmp_path / "a")
    assert_same(read_tensors(tmp_path / "a").tensors, state)


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    networks = [nn.Sequential(OrderedDict(fc=nn.Linear(2, 2))) for _ in range(2)]
    averaged = torch.optim.swa_utils.AveragedModel(networks[0])
    torch.save(
        {"model": networks[1].state_dict(), "model_ema": averaged.state_dict(), "ema": 0.999},
        tmp_path / "a.pth",
    )
    state = read_tensors(tmp_path / "a.pth").tensors
    assert_same(state, averaged.module.state_dict())


@pytest.mark.parametrize(
    "beside", [{"ema": {"decay": 0.99}}, {"state_dict_ema": {}}, {"model_ema": {"state_dict": {}}}]
)
@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_wrapper_without_weights_is_passed_over(
    tmp_path: Path, wrapper: str, beside: dict[str, Any]
) -> None:
    state = weights()
    torch.save(beside | {wrapper: state}, tmp_path / "a.pth")
    assert_same(read_tensors(tmp_path / "a.pth").tensors, state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["a.pth", "a.zip", "a.safetensors", "a"])
def test_the_content_decides_and_not_the_name(tmp_path: Path, name: str, zipped: bool) -> None:
    state = weights()
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_same(read_tensors(tmp_path / name).tensors, state)
    assert read_metadata(tmp_path / name) is None


def test_safetensors_under_another_name_is_read(tmp_path: Path) -> None:
    state = weights()
    write_checkpoint(tmp_path / "a.pth", state, METADATA)
    read = read_tensors(tmp_path / "a.pth")
    assert_same(read.tensors, state)
    assert read.metadata == METADATA


def test_a_written_file_says_everything_about_itself(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", weights(), METADATA)
    assert read_metadata(tmp_path / "a.safetensors") == METADATA
    write_checkpoint(tmp_path / "b.safetensors", weights())
    assert read_metadata(tmp_path / "b.safetensors") is None


def test_views_are_written_with_their_own_values(tmp_path: Path) -> None:
    state = {
        "channels_last": torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(3, 4).T),
    }
    write_checkpoint(tmp_path / "a", state)
    expected = {key: value.detach() for key, value in state.items()}
    assert_same(read_tensors(tmp_path / "a").tensors, expected)


class Payload:
    """Creates the file `path` when a reader runs the code of its pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def hostile_files(folder: Path, canary: Path) -> list[Path]:
    raw, zipped, legacy = (folder / name for name in ("raw.pth", "zip.pth", "legacy.pth"))
    raw.write_bytes(pickle.dumps({"state_dict": Payload(canary)}))
    torch.save({"state_dict": Payload(canary)}, zipped)
    torch.save({"state_dict": Payload(canary)}, legacy, _use_new_zipfile_serialization=False)
    return [raw, zipped, legacy]


def test_a_hostile_pickle_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for path in hostile_files(tmp_path, canary):
        assert re.search(r"it has objects \(.*pathlib.PosixPath.*, which are not", refusal(path))
        assert not canary.exists()
    # A reader that trusts the file runs the payload.
    torch.load(tmp_path / "zip.pth", weights_only=False)
    assert canary.exists()


def zip_of_text() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "not weights")
    return buffer.getvalue()


def saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n", "not a weights file"),
        (b"<html>404</html>", "not a weights file"),
        (zip_of_text(), "not a weights file"),
        (saved(weights())[:500], "truncated"),
        (saved(weights(), _use_new_zipfile_serialization=False)[:-20], "truncated|damaged"),
        (safetensors.torch.save(weights())[:-4], "truncated"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", "damaged"),
        (b"\x08\0\0\0\0\0\0\0{]]]]]]]", "damaged"),
        (saved(torch.zeros(3)), "no weights"),
        (saved([torch.zeros(3)]), "no weights"),
        (saved({}), "no weights"),
        (saved({"epoch": 3}), "no weights"),
        (saved({"model": {}}), "no weights"),
        (saved({"a": torch.zeros(1), "b": "text"}), "no weights"),
        (saved({0: torch.zeros(1)}), "no weights"),
        (saved({"a.b": torch.zeros(1), "module.a.b": torch.ones(1)}), "with and without a prefix"),
    ],
    # Explicit ids: the bytes contain the time of day, and parallel workers need equal names.
    ids=[
        "empty",
        "git-lfs-pointer",
        "picture",
        "page",
        "zip-of-text",
        "cut-zip",
        "cut-legacy",
        "cut-safetensors",
        "length-beyond-memory",
        "nested-header",
        "tensor",
        "list",
        "nothing",
        "number",
        "empty-model",
        "text-beside",
        "numbered",
        "prefix-twice",
    ],
)
def test_a_file_that_is_not_weights_is_reported_in_one_line(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        read_checkpoint(path)
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        saved(weights()),
        saved(weights(), _use_new_zipfile_serialization=False),
        safetensors.torch.save(weights(), {"splitattn": METADATA.to_json()}),
    ],
    ids=["zip", "legacy", "safetensors"],
)
def test_damage_anywhere_in_the_header_is_reported_in_one_line_or_does_no_harm(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "weights"
    dice = random.Random(0)
    refusals = []
    for _ in range(300):
        damaged = bytearray(content)
        damaged[dice.randrange(min(len(content), 500))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except WeightsError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert "\n" not in "".join(refusals)


def test_a_dictionary_that_holds_itself_is_not_weights(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "a")
    assert "it contains itself" in refusal(tmp_path / "a")


def test_torchscript_is_not_weights(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("script/constants.pkl", pickle.dumps((), protocol=2))
        archive.writestr("script/version", "3\n")
    assert "is a TorchScript program, whose code is not run: write the state_dict()" in refusal(
        path
    )


def test_a_packed_archive_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"fc.bias": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "packed", "w") as packed:
        for record in archive.namelist():
            packed.writestr(record, archive.read(record), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "packed").stat().st_size < 20_000
    assert re.search(r"would unpack to 4,0\d\d,\d\d\d bytes", refusal(tmp_path / "packed"))


def test_finite_float16_numbers_are_those_of_numpy() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    told = [checkpoint._finite(number) for number in every.reshape(-1, 1)]
    np.testing.assert_array_equal(told, np.isfinite(every))


def test_a_tensor_larger_than_its_numbers_is_not_weights(tmp_path: Path) -> None:
    path = tmp_path / "stretched.pth"
    torch.save({"fc.bias": torch.zeros(1).expand(2**40)}, path)
    assert "no weights" in refusal(path)
    torch.save({"fc.bias": torch.arange(6.0).view(2, 3).T}, path)
    assert_same(read_tensors(path).tensors, {"fc.bias": torch.arange(6.0).view(2, 3).T})


def test_names_of_tensors_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "red\n.safetensors"
    safetensors.torch.save_file({"\x1b[31m\n" + "x" * 10_000: torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=r"\\x1b\[31m\\n") as error:
        check_match(
            read_checkpoint(path).shapes,
            ARCHITECTURES["resnest50"],
            model="resnest50",
            origin=str(path),
        )
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_a_folder_and_a_missing_file_are_reported_in_one_line(tmp_path: Path) -> None:
    assert "not a file but a folder" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "missing")
    with pytest.raises(WeightsError, match=r"must be a folder with model\.safetensors or"):
        read_metadata(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "{}",
        "null",
        "[" * 100_000,
        METADATA.to_json().replace('"resnest50"', "50"),
        METADATA.to_json().replace('"cat"', "1"),
        METADATA.to_json().replace("224", '"224"'),
        METADATA.to_json().replace('"size": 224', '"size": 1000000'),
        METADATA.to_json().replace(
            '"crop_fraction": ', '"crop_fraction": 1' + "0" * 400 + ', "x": '
        ),
        METADATA.to_json().replace('"std": [0.229,', '"std": [NaN,'),
        METADATA.to_json().replace("bicubic", "magic"),
        METADATA.to_json().replace('"mean": [0.485,', '"mean": ['),
        METADATA.to_json().replace('"recipe": {', '"recipe": 1, "other": {'),
    ],
)
def test_malformed_metadata_are_reported_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(weights(), path, {"splitattn": text})
    for read in (read_metadata, read_checkpoint):
        with pytest.raises(WeightsError, match="malformed metadata") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_metadata_of_other_programs_are_passed_over(tmp_path: Path) -> None:
    safetensors.torch.save_file(weights(), tmp_path / "a", {"format": "pt"})
    assert read_metadata(tmp_path / "a") is None


def test_metadata_of_a_later_version_are_understood() -> None:
    assert ModelMetadata.from_json(METADATA.to_json()[:-1] + ', "later": 1}') == METADATA


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    old = weights()
    write_checkpoint(path, old)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, weights())
    assert list(tmp_path.iterdir()) == [path]
    assert_same(read_tensors(path).tensors, old)


def test_the_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    existed = []
    monkeypatch.setattr(os, "fsync", lambda _: existed.append(path.exists()))
    write_checkpoint(path, weights())
    assert existed == [False]
    assert path.exists()


def test_a_file_that_cannot_be_written_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match="cannot write weights") as error:
        write_checkpoint(tmp_path / "missing" / "a", weights())
    assert "\n" not in str(error.value)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    for tensors in (weights(), {"fc.bias": np.zeros(2)}):
        with pytest.raises(WeightsError, match="No space left"):
            write_checkpoint(tmp_path / "a", tensors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.ones(3, dtype=torch.complex64),
    ],
    ids=["sparse", "meta", "complex"],
)
def test_tensors_that_no_layer_takes_are_not_weights(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"fc.weight": tensor}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="holds no weights"):
        read_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": 50}, "model must be a name, got 50"),
        ({"classes": (0, 1)}, r"classes must be a tuple of names, got \(0, 1\)"),
        ({"classes": ["cat"]}, r"classes must be a tuple of names, got \['cat'\]"),
        ({"classes": "cat"}, "classes must be a tuple of names, got 'cat'"),
        ({"preprocessing": {"size": 64}}, "preprocessing must be Preprocessing, got"),
        ({"recipe": None}, "recipe must be a dictionary, got None"),
        ({"metrics": {"top1": object()}}, "metrics must contain only what JSON can hold: "),
    ],
)
def test_metadata_that_could_not_be_read_again_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        replace(METADATA, **fields)


def test_a_file_may_know_its_model_by_timms_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, weights(), replace(METADATA, model="timm/resnest50d.in1k"))
    said = read_metadata(str(path))
    assert said == METADATA
    # A model that only a later version knows is refused when the network is built.
    write_checkpoint(path, weights(), replace(METADATA, model="resnest999"))
    assert read_checkpoint(path).metadata == replace(METADATA, model="resnest999")


def test_numbers_keep_their_type_as_arrays_except_bfloat16(tmp_path: Path) -> None:
    values = torch.tensor([[0.1, -0.0, 3e38], [float("inf"), float("-inf"), 1e-40]])
    state = {
        "bfloat16": values.bfloat16(),
        "bn.scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3, dtype=torch.bfloat16),
        "float16": torch.ones(3).half(),
        "float64": torch.ones(2, 2).double(),
        "bn.counter": torch.tensor(2**53 + 1),
    }
    write_checkpoint(tmp_path / "a.safetensors", state)
    torch.save(state, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        arrays = read_checkpoint(tmp_path / name).tensors
        tensors = read_tensors(tmp_path / name).tensors
        assert arrays.keys() == tensors.keys() == state.keys()
        for key, value in state.items():
            as_array = value.float() if value.dtype == torch.bfloat16 else value
            np.testing.assert_array_equal(arrays[key], as_array.numpy(), strict=True)
            assert tensors[key].dtype == value.dtype
            assert torch.equal(tensors[key], value)


def test_types_that_numpy_lacks_are_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, {"fc.bias": torch.ones(2).to(torch.float8_e4m3fn)})
    assert "fc.bias is of F8_E4M3: save it as float32" in refusal(path)


def test_the_same_file_comes_of_arrays_and_of_tensors(tmp_path: Path) -> None:
    state = {"conv1.0.weight": torch.randn(2, 3, 4).mT, "bn1.num_batches_tracked": torch.tensor(7)}
    write_checkpoint(tmp_path / "tensors", state, METADATA)
    arrays = {key: value.numpy() for key, value in state.items()}
    write_checkpoint(tmp_path / "arrays", arrays, METADATA)
    assert (tmp_path / "tensors").read_bytes() == (tmp_path / "arrays").read_bytes()


def test_a_tensor_that_asks_to_be_negated_is_read_negated(tmp_path: Path) -> None:
    negative = torch._neg_view(torch.ones(2))
    torch.save({"fc.bias": negative}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").tensors["fc.bias"].tolist() == [-1, -1]


def test_a_tensor_of_too_many_dimensions_is_refused(tmp_path: Path) -> None:
    header = b'{"t":{"dtype":"F32","shape":[%s1],"data_offsets":[0,4]}}' % (b"1," * 99)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(WeightsError, match="damaged safetensors file"):
        read_checkpoint(path)
