"""A model card: what a weights file says of itself, as Markdown for people and YAML for hubs.

Nothing is written that the file does not say, or the catalogue of a file that it knows by its hash.
The format of the YAML block is that of huggingface.co/docs/hub/model-cards.
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

# A card is for people; `config.json` lists the others.
_CLASSES_SHOWN = 1000

# What the hub calls the data sets that it knows.
_DATASETS = {"imagenet1k": "imagenet-1k"}

_METRICS = {"top1": "top-1 accuracy, %", "top5": "top-5 accuracy, %", "loss": "loss", "n": "images"}


def check_license(license: str | None) -> None:
    """Raise unless `license` could be an SPDX identifier, or is None.

    Raises:
        InputError: it could not.
    """
    if license is not None and not re.fullmatch(r"[\w.+-]{1,100}", license, re.ASCII):
        raise InputError(
            f"a license must be an SPDX identifier such as Apache-2.0, got {license!r:.60}"
        )


def model_card(path: Path, *, repository: str | None = None, license: str | None = None) -> str:
    """The model card of the weights file at `path`.

    Args:
        repository: owner/name of where the card will be read; None is beside the file.
        license: SPDX identifier; None takes that of the catalogue, if the file is one of its.

    Raises:
        InputError: `license` is no identifier.
        WeightsError: the file cannot be read, or says nothing of itself and is not known either.
    """
    check_license(license)
    metadata, entry = read_metadata(path), published(path)
    if entry and not metadata:
        metadata = ModelMetadata(
            model=entry.model, classes=entry.classes, preprocessing=entry.preprocessing
        )
    if not metadata:
        raise WeightsError(
            f"a card needs weights that say what they are, {path} does not: train them here, or "
            "write them with splitattn.save_pretrained"
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
    """The model card of weights of which `metadata`, and the catalogue's `entry`, are true.

    Raises:
        InputError: there is no such model.
    """
    architecture(metadata.model)
    sections = [
        _front_matter(metadata, entry, license),
        CARD_MARK,
        _summary(metadata),
        _usage(metadata, filename, repository),
        _preprocessing(metadata.preprocessing),
        _figures(metadata.metrics, entry),
        _training(metadata.recipe, entry),
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
    """Measured accuracies alone: what others published is not ours to claim."""
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
        # The hub wants an identifier beside the name, and takes any.
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
                "It resizes an image before it crops it: the part of the image is the same, the "
                "pixels are not quite, so that its accuracy can differ a little."
            )
    return "\n\n".join(parts)


def _preprocessing(how: Preprocessing) -> str:
    crop = f"{100 * how.crop_fraction:.4g} % of the shorter side"
    order = {
        "crop-resize": f"the center is cut out, {crop}, and then resized",
        "resize-crop": f"the image is resized and the center cut out, {crop}",
    }
    return "\n".join(
        [
            "## Preprocessing",
            "",
            f"- {order[how.order]}, to {how.size} x {how.size} pixels",
            f"- filter: {how.interpolation}",
            f"- mean {_numbers(how.mean)} and deviation {_numbers(how.std)} of RGB values in 0..1",
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
            "Measured on the validation images of the training, as the weights say of themselves:"
        )
        parts.append("\n".join(["| figure | value |", "|---|---:|", *rows]))
    if entry and entry.published:
        published = entry.published
        top5 = "" if published.top5 is None else f", top-5 {published.top5} %"
        parts.append(
            f"Published, on ImageNet-1k validation, and not measured again for this card: "
            f"top-1 {published.top1} %{top5} ({published.source})."
        )
    if len(parts) == 1:
        parts.append("The weights say nothing about how accurate they are.")
    return "\n\n".join(parts)


def _measured_rows(metrics: dict[str, Any]) -> Iterator[str]:
    for key, name in _METRICS.items():
        value = _number(metrics.get(key))
        if math.isfinite(value):
            yield f"| {name} | {value:.{0 if key == 'n' else 4}f} |"


def _training(recipe: dict[str, Any], entry: WeightsEntry | None) -> str:
    parts = ["## Training"]
    if entry:
        parts.append(f"Trained by {entry.source}.")
    if recipe:
        parts += ["The recipe:", _fenced(json.dumps(recipe, indent=2), "json")]
    if len(parts) == 1:
        parts.append("The weights say nothing about how they were trained.")
    return "\n\n".join(parts)


def _classes(classes: tuple[str, ...]) -> str:
    lines = [f"{index} {one_line(name)}" for index, name in enumerate(classes[:_CLASSES_SHOWN])]
    if rest := len(classes) - len(lines):
        lines.append(f"... and {rest} more")
    return f"## Classes\n\n{_fenced(chr(10).join(lines), 'text')}"


def _license(license: str | None) -> str:
    text = license or "The weights do not say under which license they may be used."
    return f"## License\n\n{text}"


def _fenced(text: str, language: str) -> str:
    """A block of code that nothing in `text` can end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _quoted(text: str) -> str:
    """A YAML scalar: a JSON string is one, if all of its characters are printable."""
    return json.dumps(one_line(text), ensure_ascii=False)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _number(value: object) -> float:
    """`value`, or NaN if it is none that could have been measured."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) < 1e15 else math.nan  # type: ignore[arg-type]
