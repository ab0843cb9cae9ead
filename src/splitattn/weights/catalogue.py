"""The table of published weights. Data only: nothing here downloads or imports torch."""

from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Literal

from splitattn.architectures import architecture, split_name
from splitattn.errors import WeightsError, nearest
from splitattn.preprocessing import Preprocessing, center_crop

ClassSet = Literal["imagenet1k", "tiny_imagenet200"]


@dataclass(frozen=True, kw_only=True)
class PublishedMetrics:
    """ImageNet-1k validation accuracy in percent, as the weights' publisher states it."""

    top1: float
    top5: float | None
    source: str


@dataclass(frozen=True, kw_only=True)
class MeasuredMetrics:
    """Accuracy in percent that this project measured itself.

    Attributes:
        top1, top5: percent of the images.
        n: number of images.
        dataset: data set and split.
        command: the command that measures it again.
        date: when it was measured, as YYYY-MM-DD.
    """

    top1: float
    top5: float
    n: int
    dataset: str
    command: str
    date: str


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """One set of weights.

    Attributes:
        model: key of the weights' architecture in `ARCHITECTURES`.
        tag: the weights' name, unique for the model.
        filename: of the file in the cache, or in the package if the weights are embedded.
        urls: where to download it, best first; empty for weights embedded in the package.
        sha256: hexadecimal digits of the file's hash: all of them, or the first ones if the
            publisher states no more.
        size: bytes in the file, if known.
        preprocessing: used to measure the published or measured accuracy.
        class_set: name of the list of classes that the outputs stand for.
        license: SPDX identifier.
        source: who trained the weights.
        published: the publisher's figures.
        measured: this project's own figures.
    """

    model: str
    tag: str
    filename: str
    urls: tuple[str, ...]
    sha256: str
    preprocessing: Preprocessing
    class_set: ClassSet
    license: str
    source: str
    published: PublishedMetrics | None = None
    measured: MeasuredMetrics | None = None
    size: int | None = None

    @property
    def pinned(self) -> bool:
        """Whether the whole hash is known, so that no other file can have it."""
        return len(self.sha256) == 64

    @property
    def most_bytes(self) -> int:
        """The largest allowed file in bytes: its tensors as float64, plus a tenth."""
        shapes = architecture(self.model).shapes(len(self.classes))
        return self.size or sum(map(prod, shapes.values())) * 8 * 11 // 10 + (1 << 20)

    @property
    def name(self) -> str:
        """`model:tag`, as the command line writes it."""
        return f"{self.model}:{self.tag}"

    @property
    def embedded(self) -> bool:
        """Whether the file ships inside the package."""
        return not self.urls

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by output index."""
        return class_names(self.class_set)


@cache
def class_names(class_set: ClassSet) -> tuple[str, ...]:
    """The names in one of the package's class lists, by output index."""
    return _lines(f"{class_set}.txt")


@cache
def lemmas(class_set: ClassSet) -> tuple[str, ...]:
    """The first WordNet name of each class in one of the package's lists, by output index.

    For ImageNet these are torchvision's names, which other projects and data sets use.
    """
    if class_set == "imagenet1k":
        return _lines(f"{class_set}_lemmas.txt")
    return class_names(class_set)


@cache
def wordnet_ids(class_set: ClassSet) -> tuple[str, ...]:
    """The WordNet ids (n01440764) of one of the package's class lists, by output index."""
    return _lines(f"{class_set}_wordnet.txt")


def _lines(name: str) -> tuple[str, ...]:
    path = Path(__file__).parent / "classes" / name
    return tuple(path.read_text("utf-8").splitlines())


_RELEASES = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1"
_TIMM_RELEASES = "https://github.com/rwightman/pytorch-image-models/releases/download"
_OFFICIAL = "github.com/zhanghang1989/ResNeSt/blob/master"
_TIMM = "github.com/huggingface/pytorch-image-models/blob/main"
_README = f"ResNeSt README, PyTorch weights ({_OFFICIAL}/README.md)"
_ABLATION = f"ResNeSt ablation.md, PyTorch weights ({_OFFICIAL}/ablation.md)"
_TIMM_RESULTS = f"timm results ({_TIMM}/results/results-imagenet.csv)"


def _official(
    model: str, sha256: str, *, size: int, top1: float, source: str, mirrored: bool
) -> WeightsEntry:
    filename = f"{model}-{sha256}.pth"
    urls = [f"{_RELEASES}/{filename}"]
    if mirrored:
        urls.append(f"{_TIMM_RELEASES}/v0.1-resnest/{filename}")
    return WeightsEntry(
        model=model,
        tag="in1k",
        filename=filename,
        urls=tuple(urls),
        sha256=sha256,
        preprocessing=center_crop(size),
        class_set="imagenet1k",
        license="Apache-2.0",
        source="ResNeSt authors, trained with MXNet Gluon and converted to PyTorch",
        published=PublishedMetrics(top1=top1, top5=None, source=source),
    )


def _main(model: str, sha256: str, *, size: int, top1: float) -> WeightsEntry:
    return _official(model, sha256, size=size, top1=top1, source=_README, mirrored=True)


def _fast(model: str, sha256: str, *, top1: float, mirrored: bool = False) -> WeightsEntry:
    return _official(model, sha256, size=224, top1=top1, source=_ABLATION, mirrored=mirrored)


def _gluon(model: str, sha256: str, *, top1: float, top5: float) -> WeightsEntry:
    filename = f"gluon_{model}-{sha256}.pth"
    return WeightsEntry(
        model=model,
        tag="gluon_in1k",
        filename=filename,
        urls=(f"{_TIMM_RELEASES}/v0.1-weights/{filename}",),
        sha256=sha256,
        preprocessing=Preprocessing(
            size=224, crop_fraction=0.875, interpolation="bilinear", order="resize-crop"
        ),
        class_set="imagenet1k",
        license="Apache-2.0",
        source="GluonCV, converted to PyTorch by timm",
        published=PublishedMetrics(top1=top1, top5=top5, source=_TIMM_RESULTS),
    )


_EMBEDDED = WeightsEntry(
    model="resnest26_tiny",
    tag="distilled_in1k",
    filename="resnest26_tiny-bf11439d.safetensors",
    urls=(),
    sha256="bf11439d53d3c570f7c777b7215ef6c8871218c4a0919ddd9e5450bc32214a6e",
    size=20088176,
    preprocessing=Preprocessing(size=128, crop_fraction=0.9),
    class_set="imagenet1k",
    license="Apache-2.0",
    source=(
        "this project, distilled from EfficientNet-Lite2 on photographs of public "
        "repositories and Tiny ImageNet (docs/photographs.md)"
    ),
    measured=MeasuredMetrics(
        top1=34.87,
        top5=57.8,
        n=737,
        dataset="imagen-737 (ordinary photographs of 150 of the 1,000 classes; not in the package)",
        command="splitattn evaluate imagen-737",
        date="2026-12-01",
    ),
)

# The first entry of a model is its default; the embedded model is the first without a URL.
CATALOGUE: tuple[WeightsEntry, ...] = (
    _gluon("resnest14", "9c8fe254", top1=75.516, top5=92.512),
    _gluon("resnest26", "50eb607c", top1=78.476, top5=94.300),
    _main("resnest50", "528c19ca", size=224, top1=81.03),
    _main("resnest101", "22405ba7", size=256, top1=82.83),
    _main("resnest200", "75117900", size=320, top1=83.84),
    _main("resnest269", "0cc87c48", size=416, top1=84.54),
    _EMBEDDED,
    _fast("resnest50_fast_1s1x64d", "d8fbf808", top1=80.33),
    _fast("resnest50_fast_2s1x64d", "44938639", top1=80.53),
    _fast("resnest50_fast_4s1x64d", "f74f3fc3", top1=80.76),
    _fast("resnest50_fast_1s2x40d", "32830b84", top1=80.59),
    _fast("resnest50_fast_2s2x40d", "9d126481", top1=80.61),
    _fast("resnest50_fast_4s2x40d", "41d14ed0", top1=81.14, mirrored=True),
    _fast("resnest50_fast_1s4x24d", "d4a4f76f", top1=80.99, mirrored=True),
)

# Model and tag of weights that the package no longer has, and those that stand in for them.
_RETIRED = {("resnest26_tiny", "tiny_imagenet"): _EMBEDDED}


def entries(model: str | None = None) -> tuple[WeightsEntry, ...]:
    """The catalogue's entries, in table order: of `model`, whose tag is ignored, or of all models.

    Raises:
        InputError: there is no model of that name.
    """
    if model is None:
        return CATALOGUE
    name, _ = split_name(model)
    return tuple(entry for entry in CATALOGUE if entry.model == name)


def list_weights(model: str | None = None) -> list[WeightsEntry]:
    """Catalogue entries of `model`, or of all models. The first of a model is its default.

    Raises:
        InputError: there is no such model.
    """
    return list(entries(model))


def find_entry(model: str, tag: str | None = None) -> WeightsEntry:
    """The entry of `model` called `tag`; without a tag the one in the model's name, or its first.

    Raises:
        InputError: there is no model of that name.
        WeightsError: the model has no such weights; the message names the nearest tag.
    """
    candidates = entries(model)
    model, own_tag = split_name(model)
    tag = own_tag if tag is None else tag
    if not candidates:
        raise WeightsError(f"no weights of {model} are published: name a local file instead")
    if tag is None:
        return candidates[0]
    for entry in candidates:
        if entry.tag == tag:
            return entry
    tags = [entry.tag for entry in candidates]
    hint = nearest(tag, tags) or f"; it has {', '.join(tags)}"
    raise WeightsError(f"{model} has no weights called {tag!r}{hint}")


def stand_in(model: str | None, tag: str) -> WeightsEntry | None:
    """The entry that replaces weights that the package no longer has, or None.

    Args:
        model: name of an architecture, or None for any.
        tag: as it was in the catalogue.
    """
    for (of, retired), entry in _RETIRED.items():
        if tag == retired and model in (None, of):
            return entry
    return None


def named(name: str) -> tuple[str, str | None]:
    """Parse a model's name, ours or another project's, into our name and the tag, or None.

    Raises:
        InputError: there is no such model.
        WeightsError: the model has no weights of that tag.
    """
    model, tag = split_name(name)
    if tag is not None:
        find_entry(model, tag)
    return model, tag


def embedded_entry() -> WeightsEntry:
    """The weights inside the package, the default if neither model nor weights are named.

    Raises:
        WeightsError: this build of the package holds none.
    """
    for entry in CATALOGUE:
        if entry.embedded:
            return entry
    raise WeightsError("this build of splitattn embeds no weights: name a model, or a weights file")


def default_preprocessing(model: str) -> Preprocessing:
    """Preprocessing for weights of `model` without metadata: its default entry's, or 224 pixels.

    Raises:
        InputError: there is no model of that name.
    """
    candidates = entries(model)
    return candidates[0].preprocessing if candidates else center_crop(224)
