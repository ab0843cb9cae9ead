"""Properties that hold for every valid input, tested with Hypothesis."""

import io
import json
import os
import string
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from splitattn.errors import InputError, one_line
from splitattn.images.decode import decode
from splitattn.images.paths import SUFFIXES, expand
from splitattn.images.preprocess import preprocess
from splitattn.preprocessing import Preprocessing
from splitattn.training.presets import PRESETS
from splitattn.training.recipe_files import load_recipe
from splitattn.training.recipes import Recipe
from splitattn.weights.checkpoint import read_checkpoint, write_checkpoint
from splitattn.weights.metadata import ModelMetadata, read_metadata

# The same examples every time, and no deadline, so that a busy machine fails no test.
settings.register_profile(
    "splitattn",
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("splitattn")

sides = st.integers(1, 90)
modes = st.sampled_from(
    ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
)


@st.composite
def images(draw: st.DrawFn) -> Image.Image:
    dice = np.random.default_rng(draw(st.integers(0, 9)))
    picture = Image.fromarray(dice.integers(0, 256, (draw(sides), draw(sides), 3), np.uint8))
    mode = draw(modes)
    if mode in ("I;16", "I", "F", "LA", "PA"):
        picture = picture.convert("L")
    return picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)


@given(images())
def test_an_image_of_any_mode_and_size_becomes_rgb_of_that_size(image: Image.Image) -> None:
    decoded = decode(image)
    assert (decoded.mode, decoded.size) == ("RGB", image.size)
    assert np.asarray(decoded).shape == (image.height, image.width, 3)


@given(images(), st.sampled_from(["PNG", "TIFF", "BMP", "GIF", "PPM", "JPEG"]))
def test_a_file_gives_the_picture_that_was_saved_into_it(image: Image.Image, format: str) -> None:
    if (format, image.mode) == ("TIFF", "YCbCr"):
        return  # Pillow 10 writes too few bytes of these
    stream = io.BytesIO()
    try:
        image.save(stream, format)
    except (OSError, ValueError):  # not every format has every mode
        return
    decoded = decode(stream.getvalue())
    assert decoded.size == image.size
    if format in ("PNG", "BMP") and image.mode in ("1", "L", "RGB", "RGBA", "LA"):
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(decode(image)))


@given(
    images(),
    st.integers(1, 40),
    st.floats(0.1, 1.0),
    st.sampled_from(["crop-resize", "resize-crop"]),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_the_network_sees_a_square_of_its_size(
    image: Image.Image, size: int, crop_fraction: float, order: Any, interpolation: Any
) -> None:
    chosen = Preprocessing(
        size=size, crop_fraction=crop_fraction, order=order, interpolation=interpolation
    )
    pixels = preprocess(decode(image), chosen)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == np.uint8


texts = st.text(st.characters(codec="utf-8"), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
metadata = st.builds(
    ModelMetadata,
    model=texts,
    classes=st.lists(texts, max_size=5).map(tuple),
    preprocessing=st.builds(
        Preprocessing, size=st.integers(1, 2048), crop_fraction=st.floats(0.25, 1.0)
    ),
    recipe=st.dictionaries(texts, values, max_size=4),
    metrics=st.dictionaries(texts, values, max_size=4),
)


@given(metadata)
def test_metadata_come_back_as_they_were(written: ModelMetadata) -> None:
    assert ModelMetadata.from_json(written.to_json()) == written


@settings(max_examples=20)
@given(metadata)
def test_metadata_in_a_file_are_read_as_written(written: ModelMetadata) -> None:
    import torch

    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        write_checkpoint(path, {"fc.bias": torch.ones(1)}, written)
        assert read_metadata(path) == read_checkpoint(path).metadata == written


@given(st.binary(max_size=200) | texts.map(str.encode) | values.map(json.dumps).map(str.encode))
def test_text_that_is_no_metadata_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(InputError) as error:
        ModelMetadata.from_json(content.decode(errors="surrogateescape"))
    assert str(error.value).isprintable()


KINDS = {field.name: field.type for field in fields(Recipe)}
NUMBERS = {name: kind for name, kind in KINDS.items() if kind in (int, float)}


def attempted(preset: str, *overrides: str) -> Recipe | str:
    """The recipe, or the reason for its refusal."""
    try:
        return load_recipe(preset, overrides, model="resnest50")
    except InputError as error:
        return str(error)


@given(
    st.sampled_from([name for name in PRESETS if name != "paper"]),
    st.dictionaries(
        st.sampled_from(sorted(NUMBERS)),
        st.integers(-1, 300) | st.floats(-1, 300) | st.floats(0, 1) | st.just(2**63),
        max_size=3,
    ),
)
def test_a_recipe_is_refused_or_survives_being_written(
    preset: str, changes: dict[str, float]
) -> None:
    recipe = attempted(preset, *(f"{name}={value}" for name, value in changes.items()))
    if isinstance(recipe, str):
        assert recipe.isprintable()
        assert changes
        return
    assert {name: getattr(recipe, name) for name in changes} == changes
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.toml"
        path.write_text(recipe.to_toml(), encoding="utf-8")
        assert load_recipe(str(path), model="resnest14") == recipe


@given(st.text(st.characters(exclude_characters="\0"), max_size=40) | st.text(string.printable))
def test_any_override_changes_what_it_names_or_is_reported_in_one_line(override: str) -> None:
    changed = attempted("plain", override)
    if isinstance(changed, str):
        assert changed.isprintable()
        assert len(changed) < 500
        return
    different = {k for k, v in asdict(changed).items() if v != getattr(Recipe(), k)}
    assert different <= {override.partition("=")[0].strip()}


names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))
odd_names = names | st.sampled_from(
    ["-", "--help", "a\nb", " ", "[a]", "*", "http:", os.fsdecode(b"\xff\xfe"), "\x1b[2J", "~"]
)


@given(st.sets(odd_names, max_size=4), st.sampled_from(sorted(SUFFIXES)))
def test_a_folder_stands_for_its_images_whatever_they_are_called(
    stems: set[str], suffix: str
) -> None:
    with TemporaryDirectory() as folder:
        wanted = set()
        for stem in stems:
            path = Path(folder) / f"{stem}{suffix}"
            path.touch()
            if not stem.startswith("."):
                wanted.add(str(path))
        (Path(folder) / "notes.txt").touch()
        found = list(expand([folder]))
        assert found == (sorted(wanted) or [folder])
        # Each path, as an argument or in a list on stdin, means that file.
        assert list(expand(found)) == found
        lines = [path for path in found if path.rstrip("\r\n") == path and "\n" not in path]
        assert list(expand(["-"], [f"{line}\n" for line in lines])) == lines


@given(st.text())
def test_one_line_makes_one_printable_line_and_keeps_it(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert one_line(shown) == shown
