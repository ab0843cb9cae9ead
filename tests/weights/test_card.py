"""Model cards state only what the weights' metadata say, in valid Markdown and YAML."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from splitattn.cli import weights
from splitattn.errors import InputError, WeightsError
from splitattn.preprocessing import Preprocessing, center_crop
from splitattn.weights import catalogue
from splitattn.weights.cache import local_path
from splitattn.weights.card import model_card
from splitattn.weights.catalogue import MeasuredMetrics, PublishedMetrics, embedded_entry
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.hub import CARD_MARK
from splitattn.weights.metadata import ModelMetadata
from tests.weights.conftest import BODY, make_entry

HOSTILE = (
    "cat",
    "```",
    "`````\n# Owned",
    "</details><script>alert(1)</script>",
    "---\nlicense: wtfpl",
    '"quoted": &anchor !!python/object',
    "bell\x07 \ud800 \u2028",
    "",
)
METRICS = {"top1": 91.25, "top5": 99.5, "loss": 0.3, "n": 400}


def write(path: Path, **fields: Any) -> Path:
    metadata: dict[str, Any] = {
        "model": "resnest14",
        "classes": ("cat", "dog"),
        "preprocessing": center_crop(96),
    }
    write_checkpoint(path, {"a": torch.zeros(1)}, ModelMetadata(**metadata | fields))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def parsed(card: str) -> dict[str, Any]:
    """The card's metadata as huggingface_hub reads them, with evaluation results."""
    data = ModelCard(card).data
    return data.to_dict() | {"figures": data.eval_results or []}


def outside_fences(card: str) -> str:
    """The Markdown outside code blocks."""
    lines, fence = [], ""
    for line in card.splitlines():
        run = line[: len(line) - len(line.lstrip("`"))]
        if not fence and len(run) >= 3:
            fence = run
        elif fence and line == fence:
            fence = ""
        elif not fence:
            lines.append(line)
    assert not fence
    return "\n".join(lines)


def test_a_card_states_the_metadata_of_the_weights(path: Path) -> None:
    card = model_card(write(path, recipe={"epochs": 7}, metrics=METRICS), license="Apache-2.0")
    data = parsed(card)
    assert data["library_name"] == "splitattn"
    assert data["license"] == "apache-2.0"
    assert data["pipeline_tag"] == "image-classification"
    assert "timm" in data["tags"]
    assert "datasets" not in data
    figures = {figure.metric_name: figure.metric_value for figure in data["figures"]}
    assert figures == {"top-1 accuracy, %": 91.25, "top-5 accuracy, %": 99.5}
    for text in ("`resnest14`", "2 classes", "96 x 96", "75 %", "bicubic", '"epochs": 7', "0 cat"):
        assert text in card
    assert "| images | 400 |" in card
    assert "Published" not in card


def test_missing_metadata_are_not_invented(path: Path) -> None:
    card = model_card(write(path))
    data = parsed(card)
    assert not {"license", "datasets", "model-index"} & data.keys()
    assert not data["figures"]
    assert "The license is not recorded" in card
    assert "The accuracy is not recorded" in card
    assert "The training is not recorded" in card


@pytest.mark.parametrize("model", ["resnest14", "resnest50_fast_2s2x40d"])
@pytest.mark.parametrize("repository", ["owner/cats", None])
def test_a_card_says_who_can_load_the_weights(
    path: Path, model: str, repository: str | None
) -> None:
    card = model_card(write(path, model=model), repository=repository)
    in_timm = model == "resnest14"
    assert ("timm" in parsed(card)["tags"]) == in_timm
    assert ("timm has no such architecture" in card) == (not in_timm)
    assert ("timm.create_model" in card) == (in_timm and repository is not None)
    assert ('splitattn.Classifier("hf-hub:owner/cats")' in card) == (repository is not None)


def test_only_timm_users_of_another_crop_are_warned(path: Path) -> None:
    warning = "timm resizes before it crops"
    assert warning in model_card(write(path), repository="o/n")
    theirs = Preprocessing(size=96, crop_fraction=0.9, order="resize-crop")
    assert warning not in model_card(write(path, preprocessing=theirs), repository="o/n")


def test_the_embedded_weights_have_a_card() -> None:
    entry = embedded_entry()
    assert entry.measured
    card = model_card(local_path(entry))
    data = parsed(card)
    assert data["license"] == "apache-2.0"
    (top1, top5) = data["figures"]
    assert (top1.metric_value, top5.metric_value) == (entry.measured.top1, entry.measured.top5)
    assert top1.dataset_name == entry.measured.dataset
    assert entry.measured.command in card
    assert "timm has no such architecture" in card
    assert "199 " in card


def test_published_figures_stay_apart_from_measured_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = PublishedMetrics(top1=81.03, top5=None, source="the README")
    entry = make_entry("https://weights.invalid/a", published=published)
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    path = tmp_path / "renamed.pth"
    path.write_bytes(BODY)
    card = model_card(path)
    data = parsed(card)
    assert not data["figures"]
    assert "model-index" not in data
    assert data["datasets"] == ["imagenet-1k"]
    assert "Published for ImageNet-1k validation, not measured again" in card
    assert "top-1 81.03 % (the README)" in card

    measured = MeasuredMetrics(
        top1=80.5, top5=95.5, n=50000, dataset="ImageNet", command="evaluate", date="2026-01-01"
    )
    both = make_entry("https://weights.invalid/a", published=published, measured=measured)
    monkeypatch.setattr(catalogue, "CATALOGUE", (both,))
    card = model_card(path)
    assert [figure.metric_value for figure in parsed(card)["figures"]] == [80.5, 95.5]
    assert "top-1 81.03 %" in card
    assert "top-1 80.5 %" in card


def test_hostile_names_stay_in_their_code_block(path: Path) -> None:
    recipe = {"```": "```\n# Owned", "html": "<script>"}
    card = model_card(write(path, classes=HOSTILE, recipe=recipe, metrics=METRICS))
    harmless = model_card(write(path, classes=("x",) * len(HOSTILE), recipe={"a": 1}))
    assert parsed(card).keys() == parsed(harmless).keys() | {"model-index"}
    outside = outside_fences(card)
    assert "Owned" not in outside
    assert "script" not in outside
    assert card.encode("utf-8")  # fails if the card has lone surrogates
    assert [line for line in outside.splitlines() if line.startswith("#")] == [
        line for line in outside_fences(harmless).splitlines() if line.startswith("#")
    ]


@pytest.mark.parametrize(
    "value", ["91", None, True, [], float("nan"), float("inf"), -1, 101, 10**400, {"a": 1}]
)
def test_impossible_figures_are_left_out(path: Path, value: object) -> None:
    card = model_card(write(path, metrics={"top1": value, "`|`": 5}))
    assert "model-index" not in card
    parsed(card)


def test_a_name_of_a_file_cannot_break_the_card(tmp_path: Path) -> None:
    card = model_card(write(tmp_path / "a'`\n```; rm -rf x.safetensors"))
    assert "rm -rf" not in outside_fences(card)
    assert "rm -rf" in card


def test_many_classes_are_cut_short(path: Path) -> None:
    card = model_card(write(path, classes=tuple(f"class {i}" for i in range(1003))))
    assert "999 class 999\n... and 3 more" in card


@pytest.mark.parametrize("license", ["", "a b", "mit\nowned: 1", "x" * 200, "<b>"])
def test_a_license_is_an_identifier(path: Path, license: str) -> None:
    with pytest.raises(InputError, match="SPDX identifier"):
        model_card(write(path), license=license)


def test_weights_without_metadata_get_no_card(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "bare.pth")
    with pytest.raises(WeightsError, match="a card needs weights with metadata"):
        model_card(tmp_path / "bare.pth")
    with pytest.raises(WeightsError, match="No such file"):
        model_card(tmp_path / "missing.pth")


def test_weights_of_other_tasks_get_no_card_of_a_classifier(path: Path) -> None:
    with pytest.raises(WeightsError, match=r"needs weights of a classifier, .* is for detection"):
        model_card(write(path, task="detection"))


def test_the_command_line_writes_cards(tmp_path: Path, path: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(weights.app, ["card", *arguments])

    written = write(path)
    printed = run(str(written), "--license", "MIT")
    assert printed.exit_code == 0
    assert printed.stdout == model_card(written, license="MIT")
    output = tmp_path / "README.md"
    told = run(str(written), "--output", str(output))
    assert (told.stdout, told.stderr) == ("", f"{output}: the model card of {written}\n")
    assert output.read_text("utf-8") == model_card(written)
    assert run(str(written), "--output", str(output)).exit_code == 0
    mine = output.read_text("utf-8").replace(CARD_MARK, "")
    output.write_text(mine, encoding="utf-8")
    kept = run(str(written), "--output", str(output))
    assert "must not replace a page that splitattn did not write" in str(kept.exception)
    assert output.read_text("utf-8") == mine
    assert run(embedded_entry().name).stdout == model_card(local_path(embedded_entry()))
    for wrong in ([str(tmp_path / "missing.pth")], ["resnest51"], [str(path), "--license", "a b"]):
        assert isinstance(run(*wrong).exception, InputError)
    nowhere = run(str(written), "--output", str(tmp_path / "nowhere" / "README.md"))
    assert isinstance(nowhere.exception, InputError)
