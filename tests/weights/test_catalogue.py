import json
import math
import re
from pathlib import Path

import pytest
import torchvision

from splitattn.architectures import ARCHITECTURES
from splitattn.errors import InputError, WeightsError
from splitattn.preprocessing import Preprocessing
from splitattn.weights import catalogue
from splitattn.weights.cache import is_intact, local_path
from splitattn.weights.catalogue import (
    CATALOGUE,
    WeightsEntry,
    class_names,
    default_preprocessing,
    embedded_entry,
    entries,
    find_entry,
    lemmas,
    named,
)
from splitattn.weights.checkpoint import read_checkpoint
from splitattn.weights.resolve import resolve
from tests.weights.conftest import make_entry

PUBLISHED = [entry for entry in CATALOGUE if not entry.embedded]


def name(entry: WeightsEntry) -> str:
    return entry.name


@pytest.mark.parametrize("entry", PUBLISHED, ids=name)
def test_an_entry_names_a_model_a_file_and_its_hash_consistently(entry: WeightsEntry) -> None:
    assert entry.model in ARCHITECTURES
    assert re.fullmatch("[0-9a-f]{8}", entry.sha256)
    assert entry.filename.endswith(f"{entry.model}-{entry.sha256}.pth")
    assert all(url.startswith("https://") for url in entry.urls)
    assert all(url.endswith(f"/{entry.filename}") for url in entry.urls)
    assert len(entry.classes) == 1000
    assert entry.license == "Apache-2.0"
    assert entry.published
    assert entry.published.source


def test_files_sizes_and_figures_are_those_that_were_published() -> None:
    """The published file names, sizes and top-1 in percent, written out a second time."""
    published = {
        "gluon_resnest14-9c8fe254.pth": (224, 75.516),
        "gluon_resnest26-50eb607c.pth": (224, 78.476),
        "resnest50-528c19ca.pth": (224, 81.03),
        "resnest101-22405ba7.pth": (256, 82.83),
        "resnest200-75117900.pth": (320, 83.84),
        "resnest269-0cc87c48.pth": (416, 84.54),
        "resnest50_fast_1s1x64d-d8fbf808.pth": (224, 80.33),
        "resnest50_fast_2s1x64d-44938639.pth": (224, 80.53),
        "resnest50_fast_4s1x64d-f74f3fc3.pth": (224, 80.76),
        "resnest50_fast_1s2x40d-32830b84.pth": (224, 80.59),
        "resnest50_fast_2s2x40d-9d126481.pth": (224, 80.61),
        "resnest50_fast_4s2x40d-41d14ed0.pth": (224, 81.14),
        "resnest50_fast_1s4x24d-d4a4f76f.pth": (224, 80.99),
    }
    found = {
        entry.filename: (entry.preprocessing.size, entry.published and entry.published.top1)
        for entry in PUBLISHED
    }
    assert found == published


def test_names_and_files_are_unique() -> None:
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
    assert len({entry.filename for entry in CATALOGUE}) == len(CATALOGUE)


def test_the_eleven_official_checkpoints_and_six_mirrors_are_there() -> None:
    official = [entry for entry in PUBLISHED if entry.tag == "in1k"]
    assert len(official) == 11
    assert {entry.model for entry in official if len(entry.urls) == 2} == {
        "resnest50",
        "resnest101",
        "resnest200",
        "resnest269",
        "resnest50_fast_4s2x40d",
        "resnest50_fast_1s4x24d",
    }


@pytest.mark.parametrize(
    ("model", "size"),
    [("resnest50", 224), ("resnest101", 256), ("resnest200", 320), ("resnest269", 416)],
)
def test_official_weights_are_tested_at_their_own_size_with_the_official_crop(
    model: str, size: int
) -> None:
    assert find_entry(model).preprocessing == Preprocessing(
        size=size, crop_fraction=size / (size + 32), interpolation="bicubic", order="crop-resize"
    )


def test_gluon_weights_are_tested_as_timm_does() -> None:
    assert find_entry("resnest14", "gluon_in1k").preprocessing == Preprocessing(
        size=224, crop_fraction=0.875, interpolation="bilinear", order="resize-crop"
    )


def test_imagenet_classes_are_torchvisions() -> None:
    meta = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta
    assert lemmas("imagenet1k") == tuple(meta["categories"])


def test_imagenet_classes_have_short_and_different_names() -> None:
    names = class_names("imagenet1k")
    assert len({name.casefold() for name in names}) == 1000
    assert all((name == name.strip() and 2 < len(name) <= 30) or name == "ox" for name in names)
    expected = {
        **{0: "tench", 134: "crane (bird)", 207: "golden retriever", 264: "Cardigan Welsh corgi"},
        **{285: "Egyptian cat", 296: "polar bear", 387: "red panda", 468: "taxi", 474: "cardigan"},
        **{504: "coffee mug", 517: "crane (machine)", 553: "filing cabinet", 620: "laptop"},
        **{638: "maillot", 639: "one-piece swimsuit", 657: "missile", 812: "space shuttle"},
        **{880: "unicycle", 934: "hot dog", 967: "espresso", 970: "mountain", 999: "toilet paper"},
    }
    assert {index: names[index] for index in expected} == expected


def test_tiny_imagenet_classes_are_200_different_names() -> None:
    names = class_names("tiny_imagenet200")
    assert len(names) == len(set(names)) == 200
    assert all(name == name.strip() and name for name in names)
    assert names[0] == "goldfish"
    assert names[-1] == "acorn"


@pytest.mark.parametrize("model", [None, "resnest26_tiny", "resnest26_tiny.distilled_in1k"])
def test_retired_weights_are_replaced_by_others_with_a_warning(model: str | None) -> None:
    with pytest.warns(UserWarning, match="weights tiny_imagenet: distilled_in1k stands in") as told:
        found = resolve(model, "tiny_imagenet")
    assert (found.tag, len(found.classes or ()), len(told)) == ("distilled_in1k", 1000, 1)


def test_retired_weights_are_not_in_the_catalogue() -> None:
    """`weights verify` and `fetch` must not name others as them."""
    with pytest.raises(WeightsError, match="has no weights called 'tiny_imagenet'"):
        find_entry("resnest26_tiny", "tiny_imagenet")


def test_weights_are_not_replaced_by_those_of_another_model() -> None:
    with pytest.raises(WeightsError, match="'tiny_imagenet' is neither a tag of resnest50"):
        resolve("resnest50", "tiny_imagenet")


def test_the_embedded_weights_are_whole_and_small() -> None:
    entry = embedded_entry()
    assert len(entry.sha256) == 64
    assert is_intact(entry)
    assert local_path(entry).stat().st_size <= 24_000_000
    assert len(entry.classes) == len(read_checkpoint(local_path(entry)).tensors["fc.bias"])


def test_the_embedded_weights_say_what_was_measured() -> None:
    entry = embedded_entry()
    stored = Path(__file__).parents[2] / "benchmarks" / "embedded.json"
    measured = json.loads(stored.read_text(encoding="utf-8"))
    assert entry.measured
    assert (measured["weights"], measured["sha256"]) == (entry.tag, entry.sha256)
    found = measured["sets"]["imagen-737"]["fp32"]
    assert (found["n"], found["top1"], found["top5"]) == (
        *(entry.measured.n, entry.measured.top1, entry.measured.top5),
    )
    assert measured["environment"]["date"] == entry.measured.date


def test_the_embedded_entry_is_the_first_without_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    linked, embedded = make_entry("https://weights.invalid/a"), make_entry(tag="inside")
    monkeypatch.setattr(catalogue, "CATALOGUE", (linked, embedded))
    assert embedded_entry() is embedded
    monkeypatch.setattr(catalogue, "CATALOGUE", (linked,))
    with pytest.raises(WeightsError, match="name a model"):
        embedded_entry()


def test_the_default_entry_of_a_model_is_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make_entry(tag="first"), make_entry(tag="second")
    monkeypatch.setattr(catalogue, "CATALOGUE", (first, second))
    assert find_entry("resnest50") is first
    assert find_entry("resnest50", "second") is second
    assert entries("resnest50") == (first, second)
    assert entries("resnest101") == ()


def test_an_unknown_tag_gets_the_nearest_one() -> None:
    with pytest.raises(WeightsError, match="'in2k'; did you mean 'in1k'"):
        find_entry("resnest50", "in2k")
    with pytest.raises(WeightsError, match="'best'; it has in1k"):
        find_entry("resnest50", "best")


def test_an_unknown_model_gets_the_nearest_one() -> None:
    with pytest.raises(InputError, match="did you mean 'resnest50'"):
        find_entry("resnet50")


def test_a_model_without_weights_says_so_and_still_has_a_preprocessing() -> None:
    with pytest.raises(WeightsError, match="resnest152"):
        find_entry("resnest152")
    assert default_preprocessing("resnest152").size == 224
    assert default_preprocessing("resnest200").size == 320


@pytest.mark.parametrize(
    "fault",
    [
        {"size": 0},
        {"crop_fraction": 0.0},
        {"crop_fraction": 1.5},
        {"interpolation": "nearest"},
        {"order": "resize"},
        {"std": (0.2, 0.2, 0.0)},
        {"mean": (0.5,)},
        {"mean": (0.5, 0.5, math.nan)},
        {"mean": (0.5, math.inf, 0.5)},
        {"crop_fraction": 1e-300},
        {"size": 4096, "crop_fraction": 0.2},
    ],
    ids=str,
)
def test_a_preprocessing_outside_its_range_is_refused(fault: dict[str, object]) -> None:
    fields: dict[str, object] = {"size": 224, "crop_fraction": 0.875}
    with pytest.raises(InputError):
        Preprocessing(**fields | fault)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "resnest14d.gluon_in1k",
        "resnest26d.gluon_in1k",
        "resnest50d.in1k",
        "resnest101e.in1k",
        "resnest200e.in1k",
        "resnest269e.in1k",
        "resnest50d_4s2x40d.in1k",
        "resnest50d_1s4x24d.in1k",
    ],
)
def test_every_name_on_timms_hub_is_an_entry(name: str) -> None:
    model, tag = named(f"timm/{name}")
    assert find_entry(f"timm/{name}") is find_entry(model, tag) is find_entry(name)
    assert find_entry(model, tag).tag == tag


def test_a_tag_in_a_name_is_checked_with_the_tags_there_are() -> None:
    assert named("resnest50d") == ("resnest50", None)
    for name in ("resnest50d.in21k", "timm/resnest50d.in21k"):
        for ask in (named, find_entry):
            with pytest.raises(
                WeightsError, match=r"resnest50 has no weights called 'in21k'.*'in1k'"
            ):
                ask(name)
    with pytest.raises(WeightsError, match="no weights called 'ra4'; it has in1k"):
        named("resnest101e.ra4")
    with pytest.raises(WeightsError, match="called ''"):
        named("resnest50d.")
    with pytest.raises(WeightsError, match="no weights of resnest152 are published"):
        named("resnest152.in1k")
    with pytest.raises(InputError, match="did you mean 'resnest101e'"):
        named("resnest_101e.in1k")


def test_a_tag_that_is_asked_for_comes_before_that_in_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = (make_entry(tag=tag) for tag in ("first", "second", "third"))
    monkeypatch.setattr(catalogue, "CATALOGUE", (first, second, third))
    assert find_entry("timm/resnest50d") is first
    assert find_entry("timm/resnest50d.second") is second
    assert find_entry("timm/resnest50d.second", "third") is third
    assert entries("timm/resnest50d.second") == (first, second, third)
