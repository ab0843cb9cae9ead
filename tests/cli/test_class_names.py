"""`--class-names`, for verbs that label with weights that have no class names."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image

import splitattn
from splitattn.cli import main
from splitattn.engines.table import file_engine
from splitattn.serving import server
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata
from tests.cli.networks import CLASSES, PREPROCESSING, network, write_weights

NAMES = ("gato", "queso", "café", "cohete", "taza", "calcetín")


@pytest.fixture(scope="module")
def nameless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights without metadata, as other projects write them."""
    path = tmp_path_factory.mktemp("weights") / "nameless.safetensors"
    write_checkpoint(path, network().state_dict())
    return path


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES), "utf-8")
    return path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.fromarray(skimage.data.chelsea()).save(folder / "chelsea.png")
    return folder


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    return int(end.value.code or 0)


def best(weights: Path, photographs: Path) -> int:
    """The index of the best label for the photograph, from the Python interface."""
    classifier = splitattn.Classifier("resnest14", weights, engine="onnxruntime")
    return classifier.predict(photographs / "chelsea.png")[0].index


def test_every_verb_that_labels_uses_the_given_names(
    nameless: Path,
    names: Path,
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    label = NAMES[best(nameless, photographs)]
    own = ("--model", "resnest14", "--weights", nameless, "--class-names", names)
    engine = ("--engine", "onnxruntime")
    assert call("predict", photographs, *own, *engine, "--topk", 1, "--min-probability", 0) == 0
    assert capsys.readouterr().out.endswith(f" %  {label}\n")
    assert call("explain", photographs, *own, *engine, "--output", tmp_path / "why") == 0
    assert f" %  {label}  " in capsys.readouterr().out
    assert call("bulk", photographs, tmp_path / "labels", *own, *engine) == 0
    (row,) = pq.read_table(tmp_path / "labels" / "part-00000.parquet").to_pylist()
    assert row["labels"][0] == label
    asked: dict[str, Any] = {}
    monkeypatch.setattr(server, "serve", lambda model, *_, **__: asked.update(model=model))
    assert call("serve", *own, *engine) == 0
    assert asked["model"].classes == NAMES
    file = tmp_path / "named.onnx"
    assert call("export", file, *own) == 0
    row_of_engine = file_engine(file)
    assert row_of_engine is not None
    assert row_of_engine.load_file_module().read_metadata(file).classes == NAMES


def test_an_exported_file_and_an_explanation_take_other_names(
    photographs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "small.onnx"
    splitattn.export(file, weights=write_weights(tmp_path / "small.safetensors"), class_maps=True)
    image = photographs / "chelsea.png"
    index = splitattn.Classifier(weights=file).predict(image)[0].index
    spanish = splitattn.Classifier(weights=file, class_names=NAMES)
    assert spanish.predict(image)[0].label == NAMES[index]
    assert spanish.explain(image, "taza").label == "taza"
    trained = splitattn.Classifier(weights=tmp_path / "small.safetensors", class_names=NAMES)
    assert trained.explain(image, "taza").label == "taza"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (NAMES[:5], "one class name for each of the network's 6 outputs, got 5 in "),
        (CLASSES[::-1], "in the order of the network's outputs, got 'sock' for output 0, which is"),
        ((*NAMES[:5], "taza"), "must be different, got 'taza' twice"),
        (
            [f"{2 * i} {name}" for i, name in enumerate(NAMES)],
            "must be different and without gaps",
        ),
    ],
)
def test_names_that_may_belong_to_other_outputs_are_refused(
    lines: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(lines), "utf-8")
    weights = write_weights(tmp_path / "small.safetensors")
    options = ("--weights", weights, "--class-names", names, "--engine", "onnxruntime")
    assert call("predict", tmp_path / "any.png", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_explanations_keep_the_names_that_predictions_have(
    photographs: Path, names: Path, nameless: Path
) -> None:
    """The list may be deleted before the first explanation: it is read only once."""
    classifier = splitattn.Classifier(
        "resnest14", nameless, engine="onnxruntime", class_names=names
    )
    names.unlink()
    image = photographs / "chelsea.png"
    assert classifier.explain(image).label == classifier.predict(image)[0].label in NAMES


def test_a_list_that_cannot_be_read_is_refused_before_the_weights(tmp_path: Path) -> None:
    with pytest.raises(splitattn.DataError, match="there is no such file"):
        splitattn.Classifier(weights=tmp_path / "missing.pth", class_names=tmp_path / "typo.txt")


@pytest.mark.parametrize("verb", ["predict", "explain", "export", "serve", "bulk"])
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_detectors_and_segmenters_keep_their_names(
    verb: str, task: str, names: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "dense.safetensors"
    metadata = ModelMetadata(
        model="resnest14", classes=NAMES, preprocessing=PREPROCESSING, task=task
    )
    write_checkpoint(weights, network().state_dict(), metadata)
    arguments = {
        "predict": ["any.png"],
        "explain": ["any.png", "--output", tmp_path / "why"],
        "export": [tmp_path / "out.onnx"],
        "serve": [],
        "bulk": [tmp_path, tmp_path / "labels"],
    }[verb]
    assert call(verb, *arguments, "--weights", weights, "--class-names", names) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"is for {task}" in line
    if verb not in ("explain", "bulk"):  # these verbs take only classifiers
        assert "--class-names is for classif" in line


def test_a_run_continues_only_with_the_same_names(photographs: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "small.safetensors")
    source, target = photographs, tmp_path / "labels"
    splitattn.label_bulk(source, target, weights=weights, class_names=NAMES)
    splitattn.label_bulk(source, target, weights=weights, class_names=list(NAMES))
    with pytest.raises(splitattn.DataError, match="holds a run with class_names "):
        splitattn.label_bulk(source, target, weights=weights)
    changed = (*NAMES[:5], "medias")
    with pytest.raises(splitattn.DataError, match=r"class_names\[5\] 'calcetín', got 'medias'"):
        splitattn.label_bulk(source, target, weights=weights, class_names=changed)
