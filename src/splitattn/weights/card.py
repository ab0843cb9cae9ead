"""Writes model cards: Markdown for people, with a YAML block for the Hugging Face hub.

A card contains only what the file's metadata says and, for published files, what the catalogue
says. The YAML block follows huggingface.co/docs/hub/model-cards.
"""

import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from splitattn.architectures import TIMM_NAMES, architecture
from splitattn.errors import InputError, WeightsError, one_line
from splitattn.preprocessing import Preprocessing
from splitattn.weights.cache import published
from splitattn.weights.catalogue import MeasuredMetrics, WeightsEntry
from splitattn.weights.hub import CARD_MARK
from splitattn.weights.metadata import ModelMetadata, read_metadata

# `config.json` lists all classes.
_CLASSES_SHOWN = 1000

# The hub's names for data sets.
_DATASETS = {"imagenet1k": "imagenet-1k"}

_METRICS = {
    "agreement": "agreement with the teacher's first guess, %",
    "top1": "top-1 accuracy, %",
    "top5": "top-5 accuracy, %",
    "map": "mean average precision, %",
    "f1": "F1 of all labels, %",
    "loss": "loss",
    "n": "images",
}


def check_license(license: str | None) -> None:
    """Raise unless `license` looks like an SPDX identifier, or is None.

    Raises:
        InputError: it does not.
    """
    if license is not None and not re.fullmatch(r"[\w.+-]{1,100}", license, re.ASCII):
        raise InputError(
            f"a license must be an SPDX identifier such as Apache-2.0, got {license!r:.60}"
        )


def model_card(path: Path, *, repository: str | None = None, license: str | None = None) -> str:
    """The model card of the weights file at `path`.

    Args:
        repository: owner/name of the repository that the card is for; None if the card stays beside
            the file.
        license: SPDX identifier; by default the catalogue's, for a published file.

    Raises:
        InputError: `license` is not an SPDX identifier.
        WeightsError: the file cannot be read, its network does not classify images, or it has no
            metadata and is not in the catalogue.
    """
    check_license(license)
    metadata, entry = read_metadata(path), published(path)
    if entry and not metadata:
        metadata = ModelMetadata(
            model=entry.model, classes=entry.classes, preprocessing=entry.preprocessing
        )
    if not metadata:
        raise WeightsError(
            f"a card needs weights with metadata, {path} has none: train with splitattn, or write "
            "the weights with splitattn.save_pretrained"
        )
    if metadata.task != "classification":
        raise WeightsError(
            f"a card needs weights of a classifier, {path} is for {metadata.task}: write the card "
            "yourself"
        )
    return card_text(
        metadata,
        filename=path.name,
        entry=entry,
        repository=repository,
        license=license or (entry.license if entry else None),
    )


def card_text(
    metadata: ModelMetadata,
    *,
    filename: str,
    entry: WeightsEntry | None = None,
    repository: str | None = None,
    license: str | None = None,
) -> str:
    """The model card for weights with this metadata and, if published, this catalogue entry.

    Raises:
        InputError: `metadata` names no known model.
    """
    architecture(metadata.model)
    sections = [
        _front_matter(metadata, entry, license),
        CARD_MARK,
        _summary(metadata),
        _usage(metadata, filename, repository),
        _preprocessing(metadata.preprocessing),
        _figures(metadata.metrics, entry),
        _training(metadata, entry),
        _classes(metadata.classes),
        _license(license),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(metadata: ModelMetadata, entry: WeightsEntry | None, license: str | None) -> str:
    tags = ["image-classification", "resnest", "split-attention"]
    if metadata.model in TIMM_NAMES:
        tags.append("timm")
    lines = ["---", "library_name: splitattn", "pipeline_tag: image-classification"]
    if license:
        lines.append(f"license: {_quoted(license.lower())}")
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    if entry and entry.class_set in _DATASETS:
        lines += ["datasets:", f"- {_DATASETS[entry.class_set]}"]
    lines += _model_index(metadata, entry.measured if entry else None)
    return "\n".join([*lines, "---"])


def _model_index(metadata: ModelMetadata, measured: MeasuredMetrics | None) -> list[str]:
    """The YAML lines of accuracies that this project measured; published ones are left out."""
    if measured:
        dataset = measured.dataset
        accuracies = {"top1": measured.top1, "top5": measured.top5}
    else:
        dataset = "validation images of the training"
        accuracies = {
            key: value
            for key in ("top1", "top5")
            if 0 <= (value := _number(metadata.metrics.get(key))) <= 100
        }
    if not accuracies:
        return []
    return [
        "model-index:",
        f"- name: {_quoted(metadata.model)}",
        "  results:",
        "  - task:",
        "      type: image-classification",
        "    dataset:",
        # The hub requires an identifier and accepts any.
        f"      type: {_quoted(re.sub('[^a-z0-9]+', '-', dataset.lower()).strip('-'))}",
        f"      name: {_quoted(dataset)}",
        "    metrics:",
        *(
            line
            for key, value in accuracies.items()
            for line in (
                "    - type: accuracy",
                f"      name: {_quoted(_METRICS[key])}",
                f"      value: {value:.4f}",
            )
        ),
    ]


def _summary(metadata: ModelMetadata) -> str:
    shape, classes = architecture(metadata.model), len(metadata.classes)
    size = metadata.preprocessing.size
    return (
        f"# {metadata.model}\n\n"
        f"A [ResNeSt](https://arxiv.org/abs/2004.08955) that labels images: `{metadata.model}`, "
        f"{shape.parameters(classes) / 1e6:.1f} million parameters, {classes} classes, images of "
        f"{size} x {size} pixels."
    )


def _usage(metadata: ModelMetadata, filename: str, repository: str | None) -> str:
    if repository is None:
        name = one_line(filename)
        python = f"splitattn.Classifier(weights={name!r})"
        shell = f"splitattn predict photo.jpg --weights {shlex.quote(name)}"
    else:
        python = f'splitattn.Classifier("hf-hub:{repository}")'
        shell = f"splitattn predict photo.jpg --model hf-hub:{repository}"
    lines = ["import splitattn", "", f"classifier = {python}", 'classifier.predict("photo.jpg")']
    parts = ["## Use", _fenced("\n".join(lines), "python"), _fenced(shell, "sh")]
    if metadata.model not in TIMM_NAMES:
        parts.append("timm has no such architecture and cannot load these weights.")
    elif repository:
        name = TIMM_NAMES[metadata.model]
        load = f'timm.create_model("hf-hub:{repository}", pretrained=True)'
        parts.append(f"timm loads the same weights, as its `{name}`:")
        parts.append(_fenced(f"import timm\n\nmodel = {load}", "python"))
        if metadata.preprocessing.order == "crop-resize":
            parts.append(
                "timm resizes before it crops. It sees the same part of the image, but pixels "
                "differ slightly, and so may the accuracy."
            )
    return "\n\n".join(parts)


def _preprocessing(how: Preprocessing) -> str:
    crop = f"{100 * how.crop_fraction:.4g} % of the shorter side"
    order = {
        "crop-resize": f"center crop ({crop}), then resize",
        "resize-crop": f"resize, then center crop ({crop})",
    }
    values = "RGB values" if how.channels == 3 else f"each of {how.channels} channels,"
    return "\n".join(
        [
            "## Preprocessing",
            "",
            f"- {order[how.order]}, to {how.size} x {how.size} pixels",
            f"- filter: {how.interpolation}",
            f"- mean {_numbers(how.mean)} and deviation {_numbers(how.std)} of {values} in 0..1",
        ]
    )


def _figures(metrics: dict[str, Any], entry: WeightsEntry | None) -> str:
    parts = ["## Accuracy"]
    if entry and entry.measured:
        measured = entry.measured
        parts.append(
            f"Measured by the splitattn project on {measured.dataset}, {measured.n} images, on "
            f"{measured.date}, with `{measured.command}`: top-1 {measured.top1} %, "
            f"top-5 {measured.top5} %."
        )
    elif rows := list(_measured_rows(metrics)):
        parts.append(
            "Measured on the validation images of the training, according to the file's metadata:"
        )
        parts.append("\n".join(["| figure | value |", "|---|---:|", *rows]))
    if entry and entry.published:
        published = entry.published
        top5 = "" if published.top5 is None else f", top-5 {published.top5} %"
        parts.append(
            f"Published for ImageNet-1k validation, not measured again: "
            f"top-1 {published.top1} %{top5} ({published.source})."
        )
    if len(parts) == 1:
        parts.append("The accuracy is not recorded.")
    return "\n\n".join(parts)


def _measured_rows(metrics: dict[str, Any]) -> Iterator[str]:
    for key, name in _METRICS.items():
        value = _number(metrics.get(key))
        if math.isfinite(value):
            yield f"| {name} | {value:.{0 if key == 'n' else 4}f} |"


def _training(metadata: ModelMetadata, entry: WeightsEntry | None) -> str:
    parts = ["## Training"]
    if entry:
        parts.append(f"Trained by {entry.source}.")
    if metadata.origin:
        rows = (f"- {one_line(k)}: {one_line(str(v))}" for k, v in metadata.origin.items())
        parts += ["Made from:", "\n".join(rows)]
    if metadata.recipe:
        parts += ["The recipe:", _fenced(json.dumps(metadata.recipe, indent=2), "json")]
    if len(parts) == 1:
        parts.append("The training is not recorded.")
    return "\n\n".join(parts)


def _classes(classes: tuple[str, ...]) -> str:
    lines = [f"{index} {one_line(name)}" for index, name in enumerate(classes[:_CLASSES_SHOWN])]
    if rest := len(classes) - len(lines):
        lines.append(f"... and {rest} more")
    return f"## Classes\n\n{_fenced(chr(10).join(lines), 'text')}"


def _license(license: str | None) -> str:
    text = license or "The license is not recorded."
    return f"## License\n\n{text}"


def _fenced(text: str, language: str) -> str:
    """A code block. Its fence is longer than any run of backticks in `text`."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _quoted(text: str) -> str:
    """A YAML scalar. JSON strings of printable characters are valid YAML."""
    return json.dumps(one_line(text), ensure_ascii=False)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _number(value: object) -> float:
    """`value` as a float, or NaN if it cannot be a measurement."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) < 1e15 else math.nan  # type: ignore[arg-type]
