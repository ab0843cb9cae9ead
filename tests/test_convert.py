"""Weights files are converted between the layouts of projects."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from typer.testing import CliRunner

from splitattn.architectures import ARCHITECTURES
from splitattn.cli import main
from splitattn.convert import convert
from splitattn.create import create_backbone, create_model, load_trained
from splitattn.errors import InputError, WeightsError
from splitattn.preprocessing import Preprocessing
from splitattn.weights import catalogue, layouts
from splitattn.weights.checkpoint import read_tensors, write_checkpoint
from splitattn.weights.layouts import LAYOUTS, MMDET, OFFICIAL, KeyMapping, Layout
from splitattn.weights.metadata import ModelMetadata
from splitattn.weights.resolve import resolve
from tests.small_disk import small_disk
from tests.weights.conftest import make_entry
from tests.weights.networks import SMALL, add_small_model, renamed, small_network

NAMES = [layout.names[0] for layout in LAYOUTS]
METADATA = ModelMetadata(
    model=SMALL, classes=tuple("abcdef"), preprocessing=Preprocessing(size=64, crop_fraction=1.0)
)


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    add_small_model(monkeypatch)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """A state dict with numbers that arithmetic would change: -0, subnormal, bfloat16, large."""
    state = {key: value.clone() for key, value in small_network().state_dict().items()}
    state["bn1.weight"][:2] = torch.tensor([-0.0, 1e-42])
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].bfloat16()
    state["bn1.num_batches_tracked"].fill_(2**53 + 1)
    return state


@pytest.fixture
def source(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    write_checkpoint(tmp_path / "source.safetensors", state, METADATA)
    return tmp_path / "source.safetensors"


def bits(state: dict[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {
        key: (value.dtype, tuple(value.shape), value.flatten().view(torch.uint8).tolist())
        for key, value in state.items()
    }


def headless(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def refusal(*arguments: object, **options: str) -> str:
    with pytest.raises(InputError) as error:
        convert(*arguments, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_there_and_back_is_the_identity(
    tmp_path: Path, source: Path, state: dict[str, Tensor], layout: Layout, suffix: str
) -> None:
    there = convert(source, tmp_path / f"there{suffix}", to=layout.names[0])
    assert (there.source, there.target, there.models) == (OFFICIAL, layout, (SMALL,))
    back = convert(there.path, tmp_path / "back.pth", to="official", model=SMALL)
    assert (back.source, back.target) == (layout, OFFICIAL)
    kept = headless(state) if layout is MMDET else state
    assert bits(torch.load(back.path, weights_only=True)) == bits(kept)
    assert there.tensors == back.tensors == len(kept)


@pytest.mark.parametrize("first", LAYOUTS, ids=NAMES)
@pytest.mark.parametrize("second", LAYOUTS, ids=NAMES)
def test_every_layout_becomes_every_other(
    tmp_path: Path, source: Path, state: dict[str, Tensor], first: Layout, second: Layout
) -> None:
    path = tmp_path / "a.safetensors"
    convert(source, path, to=first.names[-1])
    convert(path, path, to=second.names[-1])
    kept = headless(state) if MMDET in (first, second) else state
    read = read_tensors(path)
    assert read.key_mapping == second.key_mapping
    assert bits(read.tensors) == bits(kept)
    assert read.metadata == METADATA


def test_pth_files_are_as_each_project_loads_them(tmp_path: Path, source: Path) -> None:
    def load(to: str) -> dict[str, object]:
        convert(source, path := tmp_path / f"{to}.pth", to=to)
        loaded: dict[str, object] = torch.load(path, weights_only=True)
        return loaded

    assert load("mmpretrain").keys() == load("mmseg").keys() == {"state_dict"}
    assert load("detectron2").keys() == {"model"}
    create_model(SMALL, num_classes=6).load_state_dict(load("timm"), strict=True)


def test_dropped_tensors_and_metadata_are_reported(tmp_path: Path, source: Path) -> None:
    def dropped(suffix: str, to: str) -> tuple[str, ...]:
        return convert(source, tmp_path / f"a{suffix}", to=to).dropped

    classifier = "the classifier (fc.bias, fc.weight)"
    said = "names of classes and preprocessing, which only safetensors hold"
    assert dropped(".safetensors", "mmpretrain") == ()
    assert dropped(".pth", "mmpretrain") == (said,)
    assert dropped(".safetensors", "mmdet") == (classifier,)
    assert dropped(".pth", "mmseg") == (classifier, said)
    assert dropped(".pth", "detectron2") == (said,)
    convert(source, tmp_path / "b.pth", to="mmpretrain")
    named = convert(tmp_path / "b.pth", tmp_path / "c.pth", to="mmdet").dropped
    assert named == ("the classifier (head.fc.bias, head.fc.weight)",)


@pytest.mark.parametrize(("key", "value"), [("bn1.weight", math.nan), ("bn1.running_var", -1.0)])
def test_invalid_numbers_are_not_converted(
    tmp_path: Path, state: dict[str, Tensor], key: str, value: float
) -> None:
    state[key][3] = value
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=rf"has invalid numbers in {key}"):
        convert(tmp_path / "a.pth", tmp_path / "b.safetensors", to="mmdet")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_file_can_become_itself(tmp_path: Path, source: Path, state: dict[str, Tensor]) -> None:
    convert(source, source, to="mmpretrain")
    assert "backbone.stem.0.conv.weight" in safetensors.torch.load_file(source)
    assert bits(read_tensors(source).tensors) == bits(state)
    assert list(tmp_path.iterdir()) == [source]


def test_arrays_of_detectron2_are_read(tmp_path: Path, state: dict[str, Tensor]) -> None:
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].float()
    arrays = {k: v.numpy() for k, v in renamed(state, layouts.DETECTRON2.key_mapping).items()}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}))
    done = convert(path, tmp_path / "a.pth", to="official")
    assert (done.models, done.source) == ((SMALL,), layouts.DETECTRON2)
    assert bits(torch.load(tmp_path / "a.pth", weights_only=True)) == bits(state)


@pytest.mark.parametrize("name", ["a.pkl", "a.onnx", "a", "a.zip"])
def test_a_target_with_an_unknown_suffix_is_refused(
    tmp_path: Path, source: Path, name: str
) -> None:
    message = refusal(source, tmp_path / name, to="timm")
    assert message == f"DST must end in .safetensors, .pth, .pt, got {tmp_path / name}"
    assert list(tmp_path.iterdir()) == [source]


def test_unknown_layouts_and_models_come_first(tmp_path: Path) -> None:
    missing, target = tmp_path / "missing", tmp_path / "a.pth"
    assert "did you mean 'timm'" in refusal(missing, target, to="timn")
    assert "did you mean 'resnest50'" in refusal(missing, target, to="timm", model="resnset50")
    assert "cannot read weights" in refusal(missing, target, to="timm")


def test_a_target_that_cannot_be_written_is_reported_in_one_line(
    tmp_path: Path, source: Path
) -> None:
    for name in ("missing/a.pth", "missing/a.safetensors"):
        assert "cannot write weights" in refusal(source, tmp_path / name, to="timm")
    (tmp_path / "folder.pth").mkdir()
    assert "cannot write weights" in refusal(source, tmp_path / "folder.pth", to="timm")


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path, source: Path) -> None:
    with small_disk():
        line = refusal(source, tmp_path / "a.pth", to="timm")
    assert "cannot write weights" in line
    assert "File too large" in line
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_that_does_not_read_back_the_same_is_not_kept(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = safetensors.torch.save_file

    def faulty(tensors: dict[str, Tensor], *rest: object) -> None:
        tensors["bn1.bias"] = tensors["bn1.bias"].clone()
        tensors["bn1.bias"].view(torch.uint8)[0] ^= 1
        save(tensors, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(safetensors.torch, "save_file", faulty)
    old = source.read_bytes()
    assert "the new file differed when read back" in refusal(source, source, to="timm")
    assert source.read_bytes() == old
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
@pytest.mark.parametrize("model", [SMALL, None])
def test_near_misses_are_refused_with_the_keys(
    tmp_path: Path, state: dict[str, Tensor], layout: Layout, model: str | None
) -> None:
    whole = renamed(state, layout.key_mapping)
    path, target = tmp_path / "a.pth", tmp_path / "b.pth"
    for official in ("bn1.weight", "layer4.0.conv3.weight", "layer2.1.conv2.bn0.running_var"):
        key = layout.key_mapping.own(official)
        for near_miss, told in (
            ({k: v for k, v in whole.items() if k != key}, f"missing ({key})"),
            ({f"{k}s" if k == key else k: v for k, v in whole.items()}, f"unexpected ({key}s)"),
            (whole | {key: torch.zeros(3)}, f"{key} has shape (3,) instead of"),
        ):
            torch.save(near_miss, path)
            message = refusal(path, target, to="timm", **({"model": model} if model else {}))
            assert told in message
            assert message.startswith(f"{path} does not fit {SMALL}: ")
    assert not target.exists()


def test_half_a_classifier_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    for key in ("fc.weight", "fc.bias"):
        path = tmp_path / "a.pth"
        torch.save({k: v for k, v in state.items() if k != key}, path)
        message = refusal(path, tmp_path / "b.pth", to="timm", model=SMALL)
        assert f"missing ({key})" in message


def test_weights_of_another_family_are_refused_as_such(tmp_path: Path) -> None:
    torch.save({"embeddings.weight": torch.zeros(2)}, tmp_path / "a.pth")
    message = refusal(tmp_path / "a.pth", tmp_path / "b.pth", to="timm")
    assert (
        "must hold weights of a ResNeSt, got keys of another network (embeddings.weight, ...)"
        in message
    )


def test_the_model_is_asked_for_only_if_the_layout_depends_on_it(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights do not show where a block pools, and not every project supports both places."""
    fast = f"{SMALL}_fast"
    monkeypatch.setitem(ARCHITECTURES, fast, replace(ARCHITECTURES[SMALL], avd_first=True))
    path, target = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save(state, path)
    assert convert(path, target, to="timm").models == (SMALL, fast)
    message = refusal(path, target, to="mmdet")
    assert f"fits {SMALL} and {fast}" in message
    assert "choose one with --model" in message
    assert "after the 3x3 convolution" in refusal(path, target, to="mmdet", model=fast)
    assert convert(path, target, to="mmdet", model=SMALL).models == (SMALL,)
    # mmdet supports only one of them, so its layout decides.
    assert convert(target, path, to="timm").models == (SMALL,)
    assert f"cannot hold {fast}" in refusal(target, path, to="timm", model=fast)


def test_a_file_that_knows_its_model_is_believed(
    tmp_path: Path, source: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(source, tmp_path / "a.pth", to="timm", model="resnest14")
    assert f"belongs to {SMALL}, not to resnest14" in message
    torch.save(state, path := tmp_path / "published.pth")
    entry = make_entry("https://weights.invalid/a", model=SMALL, body=path.read_bytes())
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    assert convert(path, tmp_path / "a.pth", to="timm").models == (SMALL,)
    assert f"belongs to {SMALL}" in refusal(path, tmp_path / "a.pth", to="timm", model="resnest14")


def test_depths_that_a_project_does_not_list_are_reported(tmp_path: Path, source: Path) -> None:
    def missing(to: str) -> tuple[int, ...] | None:
        return convert(source, tmp_path / "a.pth", to=to).missing_depth

    assert missing("timm") is None
    assert missing("mmdet") == (1, 2, 1, 1)
    assert ARCHITECTURES["resnest269"].layers in (layouts.MMPRETRAIN.depths or ())
    assert ARCHITECTURES["resnest269"].layers not in (layouts.MMDET.depths or ())


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as status:
        main(["weights", "convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(status.value.code or 0), captured.out, captured.err


def test_the_command_line_converts_a_real_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = create_model("resnest14")
    write_checkpoint(tmp_path / "a.safetensors", network.state_dict())
    there, back = tmp_path / "there.pth", tmp_path / "back.safetensors"
    status, out, err = run(capsys, tmp_path / "a.safetensors", there, "--to", "mmdet")
    assert (status, out) == (
        0,
        f"{there}: resnest14, from official (the same as timm and encoding) to mmdet (the same as "
        "mmseg), 150 tensors; without the classifier (fc.bias, fc.weight)\n",
    )
    assert err == (
        "note: mmdet (the same as mmseg) lists no network of layers (1, 1, 1, 1): add them to "
        "its table of depths to build one\n"
    )
    status, out, err = run(capsys, there, back, "--to", "timm", "--model", "timm/resnest14d")
    assert (status, err) == (0, "")
    assert out.startswith(
        f"{back}: resnest14, from mmdet (the same as mmseg) to official (the same as timm and "
    )
    status, out, err = run(capsys, back, tmp_path / "same.safetensors", "--to", "timm")
    assert "resnest14, keys as before, official (the same as timm and encoding), " in out
    expected = headless(dict(network.state_dict()))
    found = safetensors.torch.load_file(back)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_refusal_is_reported_in_one_line_with_status_2(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        (source, tmp_path / "a.pth", "--to", "mmdett"),
        (source, tmp_path / "a.txt", "--to", "mmdet"),
        (tmp_path / "missing", tmp_path / "a.pth", "--to", "mmdet"),
        (source, tmp_path / "a.pth", "--to", "mmdet", "--model", "resnest15"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ")


def test_help_names_the_layouts() -> None:
    from splitattn.cli.weights import app

    text = " ".join(CliRunner().invoke(app, ["convert", "--help"]).output.split())
    assert all(name in text for layout in LAYOUTS for name in layout.names)


def test_other_projects_files_make_networks(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(source := tmp_path / "source.safetensors", state, METADATA)
    for layout in LAYOUTS:
        convert(source, path := tmp_path / "a.pth", to=layout.names[0])
        caplog.clear()
        ours = create_model(SMALL, weights=path, num_classes=6)
        for key, value in ours.state_dict().items():
            if layout is not MMDET or not key.startswith("fc."):
                assert torch.equal(value, state[key].to(value.dtype)), key
        warned = [record.message for record in caplog.records]
        assert warned == (
            [f"{path.name}: the classifier is new, for 6 classes, and untrained"]
            if layout is MMDET
            else []
        )


def test_other_projects_files_that_do_not_fit_are_refused_with_their_own_keys(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    found = renamed(state, layouts.DETECTRON2.key_mapping)
    found["backbone.bottom_up.res2.0.conv2.extra"] = torch.zeros(1)
    del found["backbone.bottom_up.stem.conv1_3.norm.bias"]
    torch.save({"model": found}, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as error:
        create_model(SMALL, weights=tmp_path / "a.pth")
    assert "missing (backbone.bottom_up.stem.conv1_3.norm.bias)" in str(error.value)
    assert "unexpected (backbone.bottom_up.res2.0.conv2.extra)" in str(error.value)


def test_other_projects_files_cannot_be_of_a_network_that_they_lack(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such files would load but compute something else than in their project."""
    fast = f"{SMALL}_fast"
    monkeypatch.setitem(ARCHITECTURES, fast, replace(ARCHITECTURES[SMALL], avd_first=True))
    torch.save(renamed(state, layouts.MMDET.key_mapping), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=f"mmdet .* cannot hold {fast}: .*avd_first"):
        create_model(fast, weights=tmp_path / "a.pth")


def test_other_projects_classifiers_label_images(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": renamed(small_network().state_dict(), layouts.MMPRETRAIN.key_mapping)},
        tmp_path / "a.pth",
    )
    network = load_trained(resolve(SMALL, tmp_path / "a.pth")).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network(images), small_network()(images))


# For a whole model of each project: the keys of its backbone, and some other keys.
WHOLE = {
    "mmdetection": (
        KeyMapping(layout=MMDET, prefix="backbone."),
        ["neck.lateral_convs.0.conv.weight", "rpn_head.rpn_conv.weight", "bbox_head.fc_cls.bias"],
    ),
    "mmsegmentation": (
        KeyMapping(layout=MMDET, prefix="backbone."),
        ["data_preprocessor.mean", "decode_head.conv_seg.weight"],
    ),
    "mmpretrain": (layouts.MMPRETRAIN.key_mapping, ["data_preprocessor.mean"]),
    "detectron2": (
        layouts.DETECTRON2.key_mapping,
        ["backbone.fpn_lateral2.weight", "proposal_generator.rpn_head.conv.weight", "pixel_mean"],
    ),
}


@pytest.mark.parametrize("project", WHOLE)
def test_a_backbone_is_taken_out_of_a_whole_model(
    tmp_path: Path, state: dict[str, Tensor], project: str, caplog: pytest.LogCaptureFixture
) -> None:
    key_mapping, others = WHOLE[project]
    path = tmp_path / "whole.pth"
    backbone = renamed(headless(state), key_mapping)
    torch.save({"state_dict": backbone | {key: torch.zeros(2) for key in others}}, path)
    ours = create_backbone(SMALL, weights=path)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype)), key
    tensors = "tensor" if len(others) == 1 else "tensors"
    told = f"{len(others)} {tensors} of the larger model around the backbone ({', '.join(others)})"
    assert [record.message for record in caplog.records] == [
        f"{path}: loading the backbone without {told}"
    ]
    done = convert(path, tmp_path / "a.pth", to="official", model=SMALL)
    assert done.dropped == (told,)
    assert bits(torch.load(done.path, weights_only=True)) == bits(headless(state))
    # A wrong key within the backbone is still refused.
    odd = f"{key_mapping.prefix}layer1.0.conv9.weight"
    torch.save(backbone | {"neck.weight": torch.zeros(2), odd: torch.zeros(2)}, path)
    with pytest.raises(WeightsError) as error:
        create_backbone(SMALL, weights=path)
    assert f"1 are unexpected ({odd})" in str(error.value)


def test_detectron2s_classifier_labels_images(tmp_path: Path) -> None:
    bare = KeyMapping(layout=layouts.DETECTRON2, prefix="")
    found = renamed(small_network().state_dict(), bare)
    assert {"linear.weight", "linear.bias"} < found.keys()
    torch.save({"model": found}, tmp_path / "a.pth")
    network = load_trained(resolve(SMALL, tmp_path / "a.pth")).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network(images), small_network()(images))
