"""Checkpoints of trainers: with objects, wrappers, prefixes and NumPy's numbers."""

import argparse
import sys
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torch import Tensor, nn

import splitattn
from splitattn.architectures import ARCHITECTURES
from splitattn.cli import main
from splitattn.errors import WeightsError
from splitattn.weights.checkpoint import read_checkpoint, read_tensors
from tests.nn.networks import small

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """A state dict with the keys of a ResNeSt-14 and a different number for each."""
    shapes = ARCHITECTURES["resnest14"].shapes(5)
    return {key: torch.full((1,), float(i)) for i, key in enumerate(shapes)}


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], type]:
    """A function that makes a picklable class in a module that is not installed."""

    def class_of(module: str, name: str) -> type:
        made = type(name, (), {"__module__": module})
        home = types.ModuleType(module)
        setattr(home, name, made)
        for depth in range(1, module.count(".") + 1):
            parent = module.rsplit(".", depth)[0]
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, module, home)
        return made

    return class_of


def test_timms_own_file_is_read(tmp_path: Path) -> None:
    network = splitattn.ResNeSt(small(), num_classes=3)
    ema = ModelEmaV3(network, decay=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=np.float64(0.1), momentum=0.9)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    arguments = argparse.Namespace(model="resnest14d", lr=0.1, path=Path("/data"), bs=np.int64(8))
    saver = CheckpointSaver(
        network, optimizer, arguments, ema, NativeScaler(device="cpu"), checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(1, metric=np.float32(0.5))
    found = read_tensors(tmp_path / "last.pth.tar").tensors
    assert_same(found, ema.module.state_dict())  # type: ignore[arg-type]
    assert not torch.equal(found["fc.weight"], network.state_dict()["fc.weight"])


def test_mmengines_file_is_read(tmp_path: Path, foreign: Any, state: State) -> None:
    """With an EMA, mmengine stores the average in `state_dict`, the rest in `ema_state_dict`."""
    buffer = foreign("mmengine.logging.history_buffer", "HistoryBuffer")()
    buffer._log_history, buffer._statistics_methods = np.arange(3.0), {"mean": len}
    older = {f"module.{key}": -value for key, value in state.items()}
    own = OrderedDict((f"backbone.{key}", value) for key, value in mmpretrain(state).items())
    torch.save(
        {
            "meta": {"epoch": 1, "cfg": "model = dict()", "dataset_meta": {"classes": ("a", "b")}},
            "state_dict": own,
            "ema_state_dict": older | {"steps": torch.tensor(3)},
            "message_hub": {"log_scalars": {"loss": buffer}, "runtime_info": {"lr": np.float64(1)}},
            "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1).state_dict(),
            "param_schedulers": [{"last_step": 3, "hook": defaultdict(list)}],
        },
        tmp_path / "epoch_1.pth",
    )
    assert_same(read_tensors(tmp_path / "epoch_1.pth").tensors, headless(state))


def test_a_dictionary_with_a_default_is_one(tmp_path: Path, state: State) -> None:
    torch.save({"state_dict": defaultdict(list, state)}, tmp_path / "a.pth")
    assert_same(read_tensors(tmp_path / "a.pth").tensors, state)


def mmpretrain(state: State) -> State:
    from splitattn.weights.layouts import MMDET

    mapping = MMDET.key_mapping
    return {own: value for key, value in state.items() if (own := mapping.own(key))}


def headless(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


@pytest.mark.parametrize(
    "prefix",
    [
        *("model.", "net.", "encoder.", "backbone.body.", "pretrained.", "model.backbone.", "m.0."),
        *("backbone.backbone.", "module.encoder.", "student.net.backbone."),
    ],
)
def test_any_prefix_is_found(tmp_path: Path, state: State, prefix: str) -> None:
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "a.pth")
    checkpoint = read_tensors(tmp_path / "a.pth")
    assert_same(checkpoint.tensors, state)
    assert not checkpoint.ignored
    assert not checkpoint.unexpected
    beside = {"head.weight": torch.ones(2, 2), "mean": torch.ones(3)}
    torch.save({prefix + k: v for k, v in state.items()} | beside, tmp_path / "a.pth")
    checkpoint = read_tensors(tmp_path / "a.pth")
    assert_same(checkpoint.tensors, state)
    assert checkpoint.ignored == ("head.weight", "mean")


def test_a_prefix_is_quoted_in_errors(tmp_path: Path) -> None:
    network = splitattn.create_model("resnest14", num_classes=2).state_dict()
    del network["layer2.0.bn1.weight"]
    torch.save({f"net.{key}": value for key, value in network.items()}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"missing \(net\.layer2\.0\.bn1\.weight\)"):
        splitattn.create_model("resnest14", weights=tmp_path / "a.pth")


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("prefix", ["ema_model.module.", "model_ema.", "averaged_model."])
def test_of_a_network_and_its_ema_the_ema_is_read(
    tmp_path: Path, state: State, prefix: str
) -> None:
    trained = {f"model.{key}": torch.zeros_like(value) for key, value in state.items()}
    torch.save(trained | {prefix + k: v for k, v in state.items()}, tmp_path / "a.pth")
    checkpoint = read_tensors(tmp_path / "a.pth")
    assert_same(checkpoint.tensors, state)
    assert set(checkpoint.ignored) == set(trained)


@pytest.mark.parametrize("is_flat", [False, True])
def test_an_average_beside_several_networks_is_refused(
    tmp_path: Path, state: State, is_flat: bool
) -> None:
    networks = dict.fromkeys(("student", "teacher", "teacher_ema"), state)
    flat = {f"{name}.{key}": value for name in networks for key, value in state.items()}
    torch.save(flat if is_flat else networks, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds several networks"):
        read_checkpoint(tmp_path / "a.pth")


def test_several_networks_in_a_file_are_refused(tmp_path: Path, state: State) -> None:
    path = tmp_path / "a.pth"
    torch.save({f"{name}.{k}": v for name in ("q", "k") for k, v in state.items()}, path)
    with pytest.raises(WeightsError, match=r"holds several networks \(q, k\): write .* --part q$"):
        read_checkpoint(path)
    torch.save({"generator": state, "critic": state, "step": 3}, path)
    with pytest.raises(WeightsError, match=r"networks \(generator, critic\): write .* --part gen"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda student, teacher: {"student": student, "teacher": teacher, "epoch": 3},
        lambda student, teacher: {"nets": {"student": student, "teacher": teacher}},
        lambda student, teacher: prefixed("student.", student) | prefixed("teacher.", teacher),
        lambda student, teacher: {
            "state_dict": prefixed("module.student.", student)
            | prefixed("module.teacher.backbone.", teacher)
        },
    ],
    ids=["wrappers", "nested", "prefixes", "modules"],
)
def test_one_of_several_networks_is_read_by_its_name(
    tmp_path: Path, state: State, wrap: Any
) -> None:
    teacher = {key: value + 1 for key, value in state.items()}
    torch.save(wrap(state, teacher), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"several networks .* --part (module\.)?student"):
        read_tensors(tmp_path / "a.pth")
    assert_same(read_tensors(tmp_path / "a.pth", part="student").tensors, state)
    assert_same(read_tensors(tmp_path / "a.pth", part="teacher").tensors, teacher)
    with pytest.raises(WeightsError, match=r"'pupil'|\((module\.)?student, "):
        read_tensors(tmp_path / "a.pth", part="pupil")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_classifier_after_a_dropout_is_read(tmp_path: Path, prefix: str) -> None:
    """Many scripts replace `fc` by `Sequential(Dropout, Linear)`."""
    network = splitattn.create_model("resnest14", num_classes=5)
    state = network.state_dict()
    network.fc = nn.Sequential(nn.Dropout(0.5), network.fc)  # type: ignore[assignment]
    theirs = prefixed(prefix, network.state_dict())
    assert f"{prefix}fc.1.weight" in theirs
    torch.save({"state_dict": theirs}, tmp_path / "a.pth")
    found = splitattn.create_model("resnest14", weights=tmp_path / "a.pth")
    assert_same(found.state_dict(), state)
    theirs[f"{prefix}fc.1.weight"] = torch.zeros(5, 3)
    torch.save({"state_dict": theirs}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=rf": {prefix}fc.1.weight has shape \(5, 3\)"):
        splitattn.create_model("resnest14", weights=tmp_path / "a.pth")


def test_a_classifier_of_two_layers_is_refused(tmp_path: Path) -> None:
    network = splitattn.create_model("resnest14", num_classes=5)
    network.fc = nn.Sequential(nn.Linear(2048, 8), nn.ReLU(), nn.Linear(8, 5))  # type: ignore[assignment]
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"4 are unexpected \(fc\.0\.weight, "):
        splitattn.create_model("resnest14", weights=tmp_path / "a.pth")


def test_networks_may_be_numbered(tmp_path: Path, state: State) -> None:
    teacher = {key: value + 1 for key, value in state.items()}
    torch.save({"models": {0: state, 1: teacher}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"several networks \(0, 1\): .* --part 0"):
        read_tensors(tmp_path / "a.pth")
    assert_same(read_tensors(tmp_path / "a.pth", part="0").tensors, state)
    assert_same(read_tensors(tmp_path / "a.pth", part="models.1").tensors, teacher)


def test_a_name_that_two_networks_have_is_not_enough(tmp_path: Path, state: State) -> None:
    older = {key: value + 1 for key, value in state.items()}
    best, last = {"student": older, "lr": 0.1}, {"student": state}
    torch.save({"best": best, "last": last, "args": {"student": {"depth": 14}}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"\(best.student, last.student\): .* --part best.stud"):
        read_tensors(tmp_path / "a.pth", part="student")
    assert_same(read_tensors(tmp_path / "a.pth", part="last.student").tensors, state)


def test_an_empty_name_is_no_part(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="has no network called ''"):
        read_tensors(tmp_path / "a.pth", part="")


def test_a_part_is_converted_as_the_error_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    student, teacher = (
        splitattn.create_model(name, num_classes=2) for name in ("resnest14", "resnest26_tiny")
    )
    torch.save({"student": student.state_dict(), "teacher": teacher.state_dict()}, "SRC")
    with pytest.raises(WeightsError) as refused:
        splitattn.create_model("resnest14", weights="SRC")
    with pytest.raises(SystemExit, match="0"):
        main(str(refused.value).partition("as in splitattn ")[2].split())
    splitattn.create_model("resnest14", weights="one.safetensors")
    assert_same(read_tensors("one.safetensors").tensors, student.state_dict())


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_teacher_of_another_family_is_no_second_network(tmp_path: Path, wrapped: bool) -> None:
    student = splitattn.create_model("resnest14", num_classes=2).state_dict()
    # The teacher has more keys like ours than the student.
    teacher = torchvision.models.resnet101().state_dict()
    parts = {"student": student, "teacher": teacher}
    flat = prefixed("student.", student) | prefixed("teacher.", teacher)
    torch.save(parts if wrapped else flat, tmp_path / "a.pth")
    assert_same(read_tensors(tmp_path / "a.pth").tensors, student)


@pytest.mark.parametrize(
    "name", ["ema_model", "model_ema", "swa_model", "netG_ema", "ema", "ema_state_dict"]
)
def test_averaged_weights_come_first_under_any_name(
    tmp_path: Path, state: State, name: str
) -> None:
    last = {key: torch.zeros_like(value) for key, value in state.items()}
    path = tmp_path / "a.pth"
    torch.save({"state_dict": last, name: state, "epoch": 3}, path)
    assert_same(read_tensors(path).tensors, state)
    torch.save({"model": last, name: {"decay": 0.9, "shadow": state}}, path)
    assert_same(read_tensors(path).tensors, state)
    torch.save({"model": last, name: {"decay": 0.9, "shadow_params": [torch.ones(2)]}}, path)
    assert_same(read_tensors(path).tensors, last)


@pytest.mark.parametrize("name", ["model_ema", "ema", "swa_model"])
def test_settings_of_an_ema_that_are_tensors_hide_no_weights(
    tmp_path: Path, state: State, name: str
) -> None:
    settings = {"decay": torch.tensor(0.9), "n_averaged": torch.tensor(3), "power": torch.ones(1)}
    last = {key: torch.zeros_like(value) for key, value in state.items()}
    path = tmp_path / "a.pth"
    torch.save({"model": last, name: settings}, path)
    assert_same(read_tensors(path).tensors, last)
    torch.save({"model": last, name: settings | state}, path)
    assert_same(read_tensors(path).tensors, state)
    torch.save({"model": last, name: settings | {"shadow": state}}, path)
    assert_same(read_tensors(path).tensors, state)
    torch.save({name: settings}, path)
    with pytest.raises(WeightsError, match="holds no weights"):
        read_tensors(path)


def test_counters_of_thop_are_no_weights(tmp_path: Path, state: State) -> None:
    counted = {"total_ops": torch.zeros(1), "conv1.0.total_params": torch.zeros(1)}
    torch.save(state | counted, tmp_path / "a.pth")
    assert_same(read_tensors(tmp_path / "a.pth").tensors, state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
        lambda state: {"net": state, "acc": 95.1, "epoch": 3},
        lambda state: {"network": {"weights": state}, "criterion": {"weight": torch.ones(5)}},
        lambda state: {"params": state, "params_ema": None},
        lambda state: {"model": {"module": state}},
        lambda state: {"state_dict": {k: v.numpy() for k, v in state.items()}},
        lambda state: {"state_dict": {k: nn.Parameter(v) for k, v in state.items()}},
    ],
    ids=["model_state_dict", "net", "unheard", "params", "nested", "arrays", "parameters"],
)
def test_any_wrapper_is_opened(tmp_path: Path, state: State, wrap: Any) -> None:
    torch.save(wrap(state), tmp_path / "a.pth")
    assert_same(read_tensors(tmp_path / "a.pth").tensors, state)


class Runs:
    """Creates a file when a reader runs the code of its pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_objects_beside_the_weights_are_passed_over_and_not_run(
    tmp_path: Path, foreign: Any, state: State, zipped: bool
) -> None:
    canary, config = tmp_path / "canary", foreign("omegaconf.dictconfig", "DictConfig")()
    config.content, config.parent = {"lr": np.float32(0.1)}, config
    beside = {
        "args": argparse.Namespace(lr=0.1, out=Path("/a"), seen={1, 2}),
        "config": config,
        "callback": partial(print, "a"),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "history": np.array([{"loss": 1.0}], dtype=object),
        "runs": Runs(canary),
        ("a", "tuple"): 1,
    }
    path = tmp_path / "a.pth"
    torch.save(beside | {"state_dict": state}, path, _use_new_zipfile_serialization=zipped)
    assert_same(read_tensors(path).tensors, state)
    assert not canary.exists()


def test_a_whole_module_is_refused_with_its_class(tmp_path: Path, foreign: Any) -> None:
    torch.save({"model": foreign("lab.models", "Net")(), "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(
        WeightsError, match=r"has objects \(lab\.models\.Net\), .* write model\.state_dict\(\) with"
    ):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_object_among_the_weights_is_no_weight(tmp_path: Path, state: State) -> None:
    for odd in (argparse.Namespace(), torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])):
        torch.save(state | {"fc.bias": odd}, tmp_path / "a.pth")
        with pytest.raises(WeightsError, match="holds no weights"):
            read_checkpoint(tmp_path / "a.pth")
