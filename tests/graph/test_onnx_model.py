"""ONNX models in ONNX Runtime equal PyTorch's network in float64."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.create import create_model
from splitattn.errors import InputError
from splitattn.graph.folding import FoldedNetwork, fold
from splitattn.graph.onnx_model import MAPS, OPSETS, PARTS, parts, to_onnx
from splitattn.images.decode import decode
from splitattn.images.preprocess import normalize, preprocess
from splitattn.images.samples import sample_photographs
from splitattn.nn.attention_maps import attention_shares
from splitattn.nn.backbone import Backbone
from splitattn.nn.fusion import FusedResNeSt
from splitattn.nn.resnest import ResNeSt
from splitattn.weights.catalogue import embedded_entry
from tests.nn.networks import small

from .networks import (
    SETTINGS,
    arrays_of,
    batch_for,
    narrow,
    outputs_of,
    relative_difference,
    trained,
)

both_forms = pytest.mark.parametrize("form", ["branches", "grouped"])
# Environment variables that name the Python of an environment with an old library.
OLD_PYTHONS = {"onnxruntime": "SPLITATTN_OLD_ONNXRUNTIME", "cv2": "SPLITATTN_OLD_OPENCV"}


def folded(model: ResNeSt | Backbone, **options: Any) -> FoldedNetwork:
    return fold(
        model.architecture,
        arrays_of(model),
        output_stride=model.output_stride,
        dilation=model.dilation,
        **options,
    )


def run(model: onnx.ModelProto, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    outputs: list[NDArray[np.float32]] = session.run(None, {"images": batch})
    assert all(output.dtype == np.float32 for output in outputs)
    return outputs


def assert_equal(
    model: ResNeSt,
    network: FoldedNetwork,
    *,
    size: tuple[int, int] = (40, 40),
    tolerance: float = 1e-5,
    **options: Any,
) -> onnx.ModelProto:
    batch = batch_for(model, options.get("batch") or 2, *size)
    written = to_onnx(network, **{"size": size[0], **options})
    onnx.checker.check_model(written, full_check=True)
    (got,), (expected,) = run(written, batch), outputs_of(model, batch)
    assert relative_difference(got, expected) < tolerance
    return written


@both_forms
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_variant_keeps_its_outputs(name: str, form: str) -> None:
    model = trained(narrow(name))
    network = folded(model, form=form)
    assert_equal(model, network)
    assert_equal(model, network, eight_bit=True)


@both_forms
@pytest.mark.parametrize("avd_first", [False, True], ids=["avd last", "avd first"])
@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize("radix", [0, 1, 2, 3, 4])
def test_every_radix_and_cardinality_keeps_its_outputs_at_odd_sizes(
    radix: int, cardinality: int, avd_first: bool, form: str
) -> None:
    architecture = replace(small(radix, cardinality), avd_first=avd_first, bottleneck_width=96)
    model = trained(architecture)
    # Each network in one of the two forms; variants are tested in both.
    eight_bit = (cardinality == 2) is avd_first
    assert_equal(model, folded(model, form=form), size=(43, 43), eight_bit=eight_bit)


@both_forms
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_of_the_network_keeps_its_outputs(setting: str, form: str) -> None:
    architecture, arguments = SETTINGS[setting]
    model = trained(architecture, **arguments)
    network = folded(model, form=form)
    for eight_bit in (False, True):
        (name,) = (
            output.name for output in assert_equal(model, network, eight_bit=eight_bit).graph.output
        )
        assert name == ("logits" if model.num_classes else "features")


@both_forms
def test_trained_weights_keep_their_outputs_on_photographs(form: str) -> None:
    entry = embedded_entry()
    model = create_model(entry.model, weights=entry.tag).eval()
    pixels = [preprocess(decode(path), entry.preprocessing) for path in sample_photographs()]
    batch = normalize(np.stack(pixels), entry.preprocessing)
    written = to_onnx(folded(model, form=form), size=entry.preprocessing.size)
    (got,), (expected,) = run(written, batch), outputs_of(model, batch)
    assert relative_difference(got, expected) < 1e-5


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_dynamic_size_takes_any_height_and_width(eight_bit: bool) -> None:
    model = trained(small())
    written = to_onnx(folded(model), size=None, eight_bit=eight_bit)
    for batch_size, height, width in ((1, 193, 161), (2, 64, 96), (3, 1, 2)):
        batch = batch_for(model, batch_size, height, width)
        (got,), (expected,) = run(written, batch), outputs_of(model, batch)
        assert relative_difference(got, expected) < 1e-5


def test_the_axes_are_named_or_fixed() -> None:
    network = folded(trained(small()))
    assert shapes_of(to_onnx(network, size=None)) == {
        "images": ["batch", 3, "height", "width"],
        "logits": ["batch", 10],
    }
    assert shapes_of(to_onnx(network, size=64, batch=4)) == {
        "images": [4, 3, 64, 64],
        "logits": [4, 10],
    }


def test_a_fixed_batch_takes_no_other() -> None:
    model = trained(small())
    network = folded(model)
    assert_equal(model, network, batch=3)
    with pytest.raises(Exception, match=r"Got: 2 Expected: 3"):
        run(to_onnx(network, size=40, batch=3), batch_for(model, 2, 40, 40))


@both_forms
@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_has_the_lowest_ir_version_and_the_same_outputs(opset: int, form: str) -> None:
    model = trained(small(4, 2))
    written = assert_equal(model, folded(model, form=form), opset=opset)
    assert [each.version for each in written.opset_import] == [opset]
    assert written.ir_version == {11: 6, 12: 7, 13: 7, 14: 7, 19: 9, 20: 9}.get(opset, 8)


def test_the_default_is_read_by_onnx_runtime_1_16() -> None:
    written = to_onnx(folded(trained(small())), size=64)
    assert written.ir_version <= 9
    assert written.opset_import[0].version <= 19


@both_forms
@pytest.mark.parametrize("radix", [0, 1, 2, 4])
def test_half_precision_computes_in_float16_with_float32_at_both_ends(
    radix: int, form: str
) -> None:
    model = trained(small(radix))
    written = assert_equal(model, folded(model, form=form), half=True, tolerance=1e-2)
    kinds = {each.data_type for each in written.graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    assert sum(node.op_type == "Cast" for node in written.graph.node) == 2


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4), (0,), (3, 1)], ids=str)
def test_feature_maps_are_those_of_the_backbone(indices: tuple[int, ...], half: bool) -> None:
    backbone = Backbone(trained(small(layers=(1, 2, 1, 1))), out_indices=indices).eval()
    network = folded(backbone, stages=max(indices))
    names = [MAPS[i] for i in indices]
    batch = batch_for(backbone, 2, 49, 49)
    for size in (49, None):
        written = to_onnx(network, size=size, outputs=names, half=half)
        onnx.checker.check_model(written, full_check=True)
        assert [output.name for output in written.graph.output] == names
        expected = outputs_of(backbone, batch)
        for ours, theirs in zip(run(written, batch), expected, strict=True):
            assert relative_difference(ours, theirs) < (1e-2 if half else 1e-5)


def test_several_outputs_come_in_the_order_in_which_they_are_asked_for() -> None:
    model = trained(small())
    batch = batch_for(model, 2, 48, 48)
    written = to_onnx(folded(model), size=48, outputs=("logits", "layer4", "features"))
    assert shapes_of(written)["layer4"] == ["batch", 512, 2, 2]
    logits, last_map, features = run(written, batch)
    assert relative_difference(logits, outputs_of(model, batch)[0]) < 1e-5
    np.testing.assert_allclose(last_map.mean((2, 3)), features, rtol=1e-5, atol=1e-6)


@both_forms
@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize(
    "architecture",
    [small(), small(1, 2), small(4, 2, layers=(1, 2, 1, 1))],
    ids=["radix 2", "radix 1", "radix 4"],
)
def test_class_maps_add_up_to_logits_and_shares_are_those_of_the_blocks(
    architecture: Architecture, opset: int, form: str
) -> None:
    model = trained(architecture)
    network = replace(folded(model, form=form), outputs=("logits", "class_maps", "shares"))
    batch = batch_for(model, 2, 96, 96)
    written = to_onnx(network, size=96, opset=opset)
    onnx.checker.check_model(written, full_check=True)
    logits, class_maps, shares = run(written, batch)
    assert class_maps.shape == (2, 10, 3, 3)
    assert relative_difference(logits, outputs_of(model, batch)[0]) < 1e-5
    bias = model.fc.bias.detach().numpy()
    np.testing.assert_allclose(class_maps.mean((2, 3)) + bias, logits, atol=1e-4)
    expected = [
        own.mean(2)[:, : max(architecture.radix - 1, 1)].numpy()
        for own in attention_shares(model, torch.from_numpy(batch)).values()
    ]
    np.testing.assert_allclose(shares, np.stack(expected, 1), atol=1e-5)
    in_torch = FusedResNeSt(network).outputs(torch.from_numpy(batch))
    for ours, theirs in zip((logits, class_maps, shares), in_torch, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


@pytest.mark.parametrize("radix", [0, 2])
def test_pytorch_gives_every_output_that_onnx_gives(radix: int) -> None:
    model = trained(small(radix))
    own = (*MAPS, *["shares"] * (radix > 0), "features", "class_maps", "logits")
    network = replace(folded(model), outputs=own)
    batch = batch_for(model, 2, 64, 64)
    in_torch = FusedResNeSt(network).outputs(torch.from_numpy(batch))
    for ours, theirs in zip(run(to_onnx(network, size=64), batch), in_torch, strict=True):
        assert relative_difference(theirs.numpy(), ours) < 1e-5


def test_nothing_is_written_that_no_output_needs() -> None:
    names = names_of(to_onnx(folded(trained(small())), size=64, outputs=("layer2",)))
    assert not any(name.startswith(("layer3", "layer4", "pool", "classifier")) for name in names)


@both_forms
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("radix", [0, 1, 2, 4])
def test_names_are_unique_and_parts_are_found_by_them(
    radix: int, eight_bit: bool, form: str
) -> None:
    for cardinality in (1, 2):
        network = folded(trained(small(radix, cardinality, layers=(2, 1, 1, 1))), form=form)
        written = to_onnx(network, size=64, eight_bit=eight_bit)
        names = names_of(written)
        constants = [each.name for each in written.graph.initializer]
        assert len({*names, *constants}) == len(names) + len(constants)
        found = parts(names)
        assert [*found] == [*PARTS]
        assert found["classifier"] == ["classifier"]
        assert "stem.0" in found["stem"]
        assert "stem.2.relu" in found["stem"]
        assert sum(map(len, found.values())) == len(
            {name for names in found.values() for name in names}
        )
        kinds = {node.name: node.op_type for node in written.graph.node}
        assert all(kinds[name] == "GlobalAveragePool" for name in found["pools"])
        assert {kinds[name] for name in found["blend"]} <= {"Add", "Mul", "Sub"}
        groups = cardinality if form == "branches" else 1
        splits = radix if form == "branches" else min(radix, 1)
        assert len(found["pools"]) == 5 * groups * splits
        assert bool(found["attention"]) == bool(found["blend"]) == (radix > 0)


def test_attention_is_all_that_depends_on_pooled_maps_alone() -> None:
    """Nodes that depend only on pooled maps are the part "attention"; the next part is "blend"."""
    for radix in (1, 2, 4):
        written = to_onnx(folded(trained(small(radix))), size=64, eight_bit=True)
        found = parts(names_of(written))
        constants = {each.name for each in written.graph.initializer}
        pooled = {*found["pools"]}
        for node in written.graph.node:
            inputs = {*node.input} - constants
            if inputs and inputs <= pooled:
                pooled.add(node.name)
        assert pooled - {*found["pools"]} == {*found["attention"]}


def test_the_form_for_eight_bits_has_fast_kernels_only() -> None:
    network = folded(trained(small()))
    kinds = {node.op_type for node in to_onnx(network, size=64, eight_bit=True).graph.node}
    assert "AveragePool" not in kinds
    assert "ReduceMean" not in kinds
    # If the last window is incomplete, average pooling stays average pooling.
    written = to_onnx(network, size=65, eight_bit=True)
    averages = [node.name for node in written.graph.node if node.op_type == "AveragePool"]
    assert averages
    assert all(re.fullmatch(r"layer\d\.0\.shortcut\.pool", name) for name in averages)


def test_the_graph_holds_weights_as_bytes_and_no_shapes_between() -> None:
    written = to_onnx(folded(trained(small())), size=64)
    assert all(each.raw_data for each in written.graph.initializer)
    assert not written.graph.value_info


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"opset": 10}, "opset must be 11 to 20, got 10"),
        ({"opset": 21}, "opset must be 11 to 20, got 21"),
        ({"size": 0}, "size must be at least 1, or None for any, got 0"),
        ({"batch": 0}, "batch must be at least 1, or None for any, got 0"),
        ({"outputs": ()}, "outputs must be one or more of stem, layer1"),
        ({"outputs": ("logits", "logits")}, "none of them twice"),
        ({"outputs": ("layer5",)}, r"got \('layer5',\)"),
    ],
    ids=str,
)
def test_impossible_options_of_onnx_are_refused(options: dict[str, Any], complaint: str) -> None:
    network = folded(trained(small()))
    with pytest.raises(InputError, match=complaint):
        to_onnx(network, **{"size": 64, **options})


def test_logits_need_a_classifier() -> None:
    network = folded(trained(small(), num_classes=0))
    with pytest.raises(InputError, match=r"got .*'logits'"):
        to_onnx(network, size=64, outputs=("logits",))


@pytest.mark.slow  # scripts/test_old_libraries.sh runs it, also in CI
@pytest.mark.parametrize("library", OLD_PYTHONS)
def test_old_libraries_read_the_file_and_agree(library: str, tmp_path: Path) -> None:
    python = os.environ.get(OLD_PYTHONS[library])
    if not python:
        pytest.skip(f"{OLD_PYTHONS[library]} names no interpreter")
    expected: dict[str, NDArray[np.float64]] = {}
    for name in ("resnest26_tiny", "resnest50", "resnest50_fast_2s2x40d", "resnest50_fast_4s1x64d"):
        model = trained(narrow(name))
        for form in ("branches", "grouped"):
            network = folded(model, form=form)
            for size, batch_size, options in (
                (64, 1, {"size": 64}),
                (64, 2, {"size": 64}),
                (64, 1, {"size": 64, "batch": 1}),
                (75, 2, {"size": 75}),
                (75, 2, {"size": None}),
                (64, 2, {"size": 64, "eight_bit": True}),
            ):
                folder = tmp_path / f"{name} {form} {batch_size} {options}"
                folder.mkdir()
                batch = batch_for(model, batch_size, size, size)
                onnx.save(to_onnx(network, **options), folder / "model.onnx")
                np.save(folder / "images.npy", batch)
                (expected[folder.name],) = outputs_of(model, batch)
    script = Path(__file__).with_name("old_library.py")
    command = [python, script, library, tmp_path]
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]})
    for name, logits in expected.items():
        got = np.load(tmp_path / name / "outputs.npz")["arr_0"]
        assert relative_difference(got, logits) < 1e-5, name


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }


def names_of(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]
