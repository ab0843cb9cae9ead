"""`config.json`: what timm writes is understood, and malformed files are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitattn.architectures import ARCHITECTURES, TIMM_NAMES
from splitattn.errors import InputError, WeightsError
from splitattn.preprocessing import Preprocessing, center_crop
from splitattn.weights.catalogue import class_names
from splitattn.weights.metadata import ModelMetadata
from splitattn.weights.resolve import resolve
from splitattn.weights.timm_config import read_config, to_config

# As `timm.models.save_for_hf` writes it.
PRETRAINED: dict[str, Any] = {
    "tag": "in1k",
    "custom_load": False,
    "input_size": [3, 224, 224],
    "fixed_input_size": False,
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "num_classes": 2,
    "pool_size": [7, 7],
    "first_conv": "conv1.0",
    "classifier": "fc",
}
CONFIG: dict[str, Any] = {
    "architecture": "resnest50d",
    "num_classes": 2,
    "num_features": 2048,
    "global_pool": "avg",
    "label_names": ["n1", "n2"],
    "model_args": {"num_classes": 2, "in_chans": 3, "global_pool": "avg"},
    "pretrained_cfg": PRETRAINED,
}
THEIRS = Preprocessing(size=224, crop_fraction=0.875, interpolation="bilinear", order="resize-crop")


def write(folder: Path, content: object) -> Path:
    path = folder / "config.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def changed(**fields: Any) -> dict[str, Any]:
    """CONFIG with other values of some fields, at the top or in `pretrained_cfg`."""
    top = {key: fields.pop(key) for key in list(fields) if key in CONFIG}
    return CONFIG | {"pretrained_cfg": PRETRAINED | fields} | top


def refusal(folder: Path, content: object) -> str:
    path = write(folder, content)
    with pytest.raises(WeightsError) as error:
        read_config(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message.replace(str(path), "")


def test_a_config_of_timm_is_understood(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, CONFIG))
    assert config.model == "resnest50"
    assert config.classes == ("n1", "n2")
    assert config.preprocessing == THEIRS


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_written_config_is_read_again(tmp_path: Path, name: str) -> None:
    preprocessing = Preprocessing(
        size=96, crop_fraction=0.75, order="resize-crop", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)
    )
    metadata = ModelMetadata(model=name, classes=("cat", "café\n"), preprocessing=preprocessing)
    text = to_config(metadata, license="Apache-2.0")
    config = read_config(write(tmp_path, text))
    assert (config.model, config.classes, config.preprocessing) == (
        name,
        metadata.classes,
        preprocessing,
    )
    assert json.loads(text)["architecture"] == TIMM_NAMES.get(name, name)


def test_pretrained_cfg_has_only_fields_that_timm_knows(tmp_path: Path) -> None:
    """timm makes a dataclass of `pretrained_cfg`, which allows no other field."""
    from timm.models import PretrainedCfg

    metadata = ModelMetadata(model="resnest50", classes=("a",), preprocessing=center_crop(224))
    config = json.loads(to_config(metadata, license="Apache-2.0"))
    assert PretrainedCfg(**config["pretrained_cfg"]).license == "apache-2.0"
    assert read_config(write(tmp_path, config)).preprocessing.order == "resize-crop"


def test_the_sizes_for_tests_come_first(tmp_path: Path) -> None:
    config = changed(test_input_size=[3, 288, 288], test_crop_pct=1.0)
    preprocessing = read_config(write(tmp_path, config)).preprocessing
    assert (preprocessing.size, preprocessing.crop_fraction) == (288, 1.0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_one_mean_is_that_of_every_channel(tmp_path: Path, channels: int) -> None:
    gray = changed(mean=[0.4], std=[0.2], input_size=[channels, 64, 64])
    preprocessing = read_config(write(tmp_path, gray)).preprocessing
    assert preprocessing.mean == (0.4,) * channels
    assert preprocessing.std == (0.2,) * channels


def test_the_older_shape_in_one_piece_is_understood(tmp_path: Path) -> None:
    flat = PRETRAINED | {"architecture": "resnest50d", "labels": ["n1", "n2"]}
    config = read_config(write(tmp_path, flat))
    assert (config.model, config.classes, config.preprocessing) == (
        "resnest50",
        ("n1", "n2"),
        THEIRS,
    )


@pytest.mark.parametrize(
    ("fields", "classes"),
    [
        ({"label_descriptions": {"n1": "tench", "n3": "eel"}}, ("tench", "n2")),
        ({"label_names": {"0": "a", "2": "c"}, "num_classes": 3}, ("a", "1", "c")),
        ({"label_names": None}, None),
        ({"label_names": None, "num_classes": 1000, "tag": "in1k"}, class_names("imagenet1k")),
        ({"label_names": None, "num_classes": 1000, "tag": "x_in1k"}, class_names("imagenet1k")),
        ({"label_names": None, "num_classes": 1000, "tag": "in22k"}, None),
        ({"label_names": None, "num_classes": 1000, "tag": None}, None),
    ],
)
def test_classes_are_called_as_people_call_them(
    tmp_path: Path, fields: dict[str, Any], classes: tuple[str, ...] | None
) -> None:
    config = changed(**{k: v for k, v in fields.items() if k != "label_descriptions"})
    config["label_descriptions"] = fields.get("label_descriptions", {})
    assert read_config(write(tmp_path, config)).classes == classes


def test_the_config_of_another_library_is_refused_with_a_way_out(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"architectures": ["MyNet"], "id2label": {"0": "cat"}})
    assert "'architecture' is missing; name the file of weights instead of the folder" in message


def test_another_architecture_gets_the_nearest_name(tmp_path: Path) -> None:
    message = refusal(tmp_path, changed(architecture="resnet50d"))
    assert "no model is called 'resnet50d'; did you mean 'resnest50d'?" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": 5}, "architecture must be a name, got 5"),
        ({"architecture": "x" * 10**6}, "no model is called 'xxx"),
        ({"architecture": "a\nb"}, r"'a\nb'"),
        ({"label_names": "cat"}, "label_names must be a list"),
        ({"label_names": [1, 2]}, "a class must have a name, got 1"),
        ({"label_names": {"0": "a"}, "num_classes": 10**12}, "expected a size"),
        ({"label_names": {"0": "a"}, "num_classes": None}, "expected a size, got None"),
        ({"pretrained_cfg": None}, "expected an object, got None"),
        ({"pretrained_cfg": {}}, "'input_size' is missing"),
        ({"model_args": []}, None),
        ({"model_args": [1]}, "expected an object"),
        ({"model_args": {"output_stride": 16}}, "'output_stride': 16 changes the network"),
        ({"model_args": {"global_pool": "max"}}, "'global_pool': 'max' changes the network"),
        ({"model_args": {"cardinality": 2}}, "'cardinality': 2 changes the network"),
        ({"input_size": [3, 224]}, "not enough values"),
        ({"input_size": 224}, "cannot unpack"),
        ({"input_size": [3, 224, 256]}, "must be square, got 224 by 256"),
        ({"input_size": [3, 0, 0]}, "preprocessing size must be"),
        ({"input_size": [3, 10**9, 10**9]}, "expected a size"),
        ({"input_size": [3, True, True]}, "expected a size, got True"),
        ({"input_size": [3, 224.0, 224.0]}, "expected a size"),
        ({"crop_pct": float("nan")}, "expected a number, got nan"),
        ({"crop_pct": -1}, "crop_fraction must be above 0"),
        ({"crop_pct": "0.9"}, "expected a number, got '0.9'"),
        ({"crop_mode": "squash"}, "crop_mode must be 'center', got 'squash'"),
        ({"interpolation": "lanczos"}, "interpolation must be"),
        ({"interpolation": ["bilinear"]}, "interpolation must be"),
        ({"mean": [0.5, float("inf"), 0.5]}, "expected a number, got inf"),
        ({"mean": {"r": 1}}, "must have a number for each of 3 channels"),
        ({"std": [0.1, 0.1]}, "must have a number for each of 3 channels"),
        ({"std": [0, 0, 0]}, "std must be positive"),
    ],
)
def test_fields_that_are_wrong_are_refused(
    tmp_path: Path, fields: dict[str, Any], message: str | None
) -> None:
    if message is None:
        read_config(write(tmp_path, changed(**fields)))
    else:
        assert message in refusal(tmp_path, changed(**fields))


@pytest.mark.parametrize(
    "content",
    ["", "nonsense", "[]", "null", "[" * 100_000, '{"architecture": 1' + "0" * 5000 + "}"],
)
def test_malformed_configs_are_refused(tmp_path: Path, content: str) -> None:
    refusal(tmp_path, content)


def test_a_config_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(WeightsError, match="cannot be used"):
        read_config(path)
    path.write_bytes(b" " * (1 << 25) + b"{}")
    with pytest.raises(WeightsError, match="must have at most 32 MiB"):
        read_config(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(WeightsError, match="cannot read"):
        read_config(path)


def test_a_config_cannot_choose_the_weights_file(tmp_path: Path) -> None:
    """A config cannot refer to files outside the folder."""
    (tmp_path / "secret.bin").write_bytes(b"secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, changed(file="../secret.bin", hf_hub_filename="../secret.bin", url="file:///"))
    for reference in (f"local-dir:{folder}", f"local-dir:{tmp_path / 'nowhere'}"):
        with pytest.raises(InputError, match="must be a folder with"):
            resolve(reference)
