"""Networks for gray images and other numbers of channels, from training to labels."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import splitattn
from splitattn.cli import main
from splitattn.create import create_model
from splitattn.data.augmentation import Augmentation
from splitattn.data.training_transforms import training_transform
from splitattn.errors import DataError, ImageError, InputError, WeightsError
from splitattn.images.preprocess import load_pixels, normalize, preprocess
from splitattn.preprocessing import Preprocessing, center_crop, with_channels
from splitattn.training.recipe_files import load_recipe
from splitattn.training.recipes import Recipe
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata, read_metadata

SIDE = 32


def write_gray(root: Path, *, n: int) -> None:
    """Write two classes of gray images that differ by less than one step of 8 bits."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, middle in (("dark", 32_800), ("light", 32_960)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = middle + rng.integers(-10, 10, (SIDE, SIDE))
                Image.fromarray(pixels.astype(np.uint16)).save(folder / f"{i}.png")


def test_gray_images_keep_16_bits_from_training_to_an_exported_file(
    tmp_path: Path,
) -> None:
    data, run, file = tmp_path / "data", tmp_path / "run", tmp_path / "gray.onnx"
    write_gray(data, n=4)
    settings = [
        *("mean=[0.5017]", "std=[0.0012]", "white_level=65535", "test_size=32", "train_size=32"),
        *("epochs=1", "warmup_epochs=0", "batch_size=2", "learning_rate=5", "frozen_stages=5"),
        *("crop_scale=1", "precision='fp32'"),
    ]
    overrides = ["--workers", "0"]
    overrides += [part for setting in settings for part in ("--set", setting)]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["train", str(data), "--output", str(run), "--in-chans", "1", *overrides])
    described = read_metadata(run / "model.safetensors")
    assert described is not None
    assert described.preprocessing.mean == (0.5017,)
    assert described.preprocessing.std == (0.0012,)
    assert described.preprocessing.white_level == 65535
    # In eight bits both classes would be equal, and top-1 50 %.
    assert splitattn.evaluate(str(data), weights=run, engine="onnxruntime").top1 == 100
    splitattn.export(file, weights=run)
    images = sorted((data / "val").glob("*/*.png"))
    exported = splitattn.Classifier(weights=file)
    assert exported.preprocessing == described.preprocessing
    labels = [best.label for (best, *_) in exported.predict(images, topk=1)]
    assert labels == [path.parent.name for path in images]


def weights_of(folder: Path, channels: int, *, mean: tuple[float, ...] | None = None) -> Path:
    """Write random weights whose metadata describe images of `channels` channels."""
    torch.manual_seed(0)
    model = create_model("resnest26_tiny", num_classes=3, in_chans=channels).eval()
    how = with_channels(replace(center_crop(SIDE), mean=(0.4,) * 3, std=(0.2,) * 3), channels)
    metadata = ModelMetadata(
        model="resnest26_tiny",
        classes=("a", "b", "c"),
        preprocessing=how if mean is None else replace(how, mean=mean, std=mean),
    )
    path = folder / f"{channels}.safetensors"
    write_checkpoint(path, model.state_dict(), metadata)
    return path


def test_a_network_of_four_channels_labels_arrays_and_transparent_images(tmp_path: Path) -> None:
    path, file = weights_of(tmp_path, 4), tmp_path / "four.onnx"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
    np.save(tmp_path / "bytes.npy", pixels)
    np.save(tmp_path / "fractions.npy", (pixels / 255).astype(np.float32))
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    sources = [pixels, *(tmp_path / name for name in ("bytes.npy", "fractions.npy", "rgba.png"))]
    splitattn.export(file, weights=path)
    expected = None
    for weights in (path, file):
        classifier = splitattn.Classifier(weights=weights, engine="onnxruntime")
        for (best, *_), source in zip(classifier.predict(sources), sources, strict=True):
            expected = expected or best
            assert best.label == expected.label, source
            assert best.probability == pytest.approx(expected.probability, abs=1e-4)
        with pytest.raises(ImageError, match="images of 4 channels, got 3"):
            classifier.predict(np.zeros((40, 40, 3), np.uint8))


def test_weights_are_refused_where_nothing_says_how_their_channels_are_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, three = tmp_path / "bare.pth", weights_of(tmp_path, 2, mean=(0.5,) * 3)
    torch.save(create_model("resnest26_tiny", num_classes=3, in_chans=4).state_dict(), bare)
    photograph = tmp_path / "photograph.png"
    Image.new("RGB", (40, 40)).save(photograph)
    for verb in (["predict", str(photograph)], ["export", str(tmp_path / "out.onnx")]):
        with pytest.raises(SystemExit, match=r"^2$"):
            main([*verb, "--model", "resnest26_tiny", "--weights", str(bare)])
        assert "images of 4 channels" in capsys.readouterr().err
    with pytest.raises(WeightsError, match=r"of 2 channels, but their mean .* known for 3"):
        splitattn.Classifier(weights=three)
    assert not (tmp_path / "out.onnx").exists()


GRAY = Preprocessing(size=24, crop_fraction=0.75, mean=(0.3,), std=(0.1,))


@pytest.mark.parametrize("order", ["crop-resize", "resize-crop"])
def test_gray_is_cropped_and_resized_as_rgb_is(order: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70), np.uint8)
    how = replace(GRAY, order=order)  # type: ignore[arg-type]
    rgb = preprocess(
        Image.fromarray(pixels).convert("RGB"), replace(how, mean=(0,) * 3, std=(1,) * 3)
    )
    gray = load_pixels(pixels, how)
    assert gray.shape == (1, 24, 24)
    # Pillow rounds RGB pixels after each pass.
    np.testing.assert_allclose(gray[0] * 255, rgb[0], atol=1.6)
    np.testing.assert_allclose(normalize(gray[None], how), (gray[None] - 0.3) / 0.1, atol=1e-5)


def test_colors_become_gray_by_their_luma() -> None:
    for color, luma in (((255, 0, 0), 0.299), ((0, 255, 0), 0.587), ((0, 0, 255), 0.114)):
        gray = load_pixels(Image.new("RGB", (30, 30), color), GRAY)
        np.testing.assert_allclose(gray, luma, atol=0.003)
    transparent = Image.new("LA", (30, 30), (0, 0))
    np.testing.assert_allclose(load_pixels(transparent, GRAY), 1)


def test_other_channels_take_the_average_mean_and_deviation() -> None:
    how = with_channels(replace(GRAY, mean=(0.1, 0.2, 0.6), std=(0.1, 0.2, 0.3)), 2)
    assert how.mean == pytest.approx((0.3, 0.3))
    assert how.std == pytest.approx((0.2, 0.2))
    recipe = load_recipe("finetune", ["in_chans=2"], model="resnest50").starting_from(how)
    assert recipe.preprocessing.mean == pytest.approx((0.3, 0.3))
    assert recipe.network_arguments()["in_chans"] == 2


def test_a_recipe_has_a_mean_for_each_channel() -> None:
    with pytest.raises(InputError, match="mean must be 1 numbers, as in_chans says, got"):
        Recipe(in_chans=1, mean=(0.5, 0.5, 0.5))
    with pytest.raises(InputError, match="auto_augment must be none for 4 channels"):
        Recipe(in_chans=4, auto_augment="trivial")
    with pytest.raises(InputError, match="lighting must be 0 for 1 channels"):
        Recipe(in_chans=1, lighting=0.1)


@pytest.mark.parametrize("crop", ["random-resized", "efficientnet"])
@pytest.mark.parametrize("policy", ["none", "rand", "trivial"])
def test_gray_images_are_augmented_in_floats(crop: str, policy: str) -> None:
    augmentation = Augmentation(
        size=16,
        crop=crop,  # type: ignore[arg-type]
        interpolation="bicubic",
        auto_augment=policy,  # type: ignore[arg-type]
        color_jitter=0.4,
        random_erasing=0.5,
        mean=(0.3,),
    )
    transform = training_transform(augmentation)
    ramp = torch.linspace(0, 1, 40 * 50).view(1, 40, 50)
    torch.manual_seed(0)
    for _ in range(20):
        image = transform(ramp)
        assert image.shape == (1, 16, 16)
        assert image.dtype == torch.float32
        assert 0 <= image.min() <= image.max() <= 1
    rgb = training_transform(replace(augmentation, mean=(0.3,) * 3))
    assert rgb(Image.new("RGB", (50, 40))).dtype == torch.uint8


def test_a_csv_of_arrays_is_a_data_set(tmp_path: Path) -> None:
    path = weights_of(tmp_path, 5)
    rng = np.random.default_rng(0)
    rows = [("a", 0), ("b", 1), ("c", 2)]
    for name, _ in rows:
        np.save(tmp_path / f"{name}.npy", rng.random((40, 40, 5), np.float32))
    with (tmp_path / "val.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        writer.writerows((f"{name}.npy", name) for name, _ in rows)
    measured = splitattn.evaluate(str(tmp_path / "val.csv"), weights=path, engine="onnxruntime")
    assert measured.n == 3


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "LA", "RGBA"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_evaluate_refuses_images_of_other_channels_but_gray_and_color(
    tmp_path: Path, mode: str, channels: int
) -> None:
    """Gray and RGB are converted into each other; other channels must match the network."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8))
    for label in "abc":
        (tmp_path / "data" / label).mkdir(parents=True)
        wide = Image.fromarray(np.asarray(pixels).astype(np.uint16) * 257)
        image = wide if mode == "I;16" else pixels.convert(mode)
        image.save(tmp_path / "data" / label / "0.png")
    weights = weights_of(tmp_path, channels)
    has = {"L": 1, "I;16": 1, "RGB": 3, "LA": 2, "RGBA": 4}[mode]
    if channels in (2, 4) and channels != has:
        with pytest.raises(DataError, match=f"takes images of {channels} channels, got {has}: "):
            splitattn.evaluate(str(tmp_path / "data"), weights=weights, engine="onnxruntime")
        return
    measured = splitattn.evaluate(str(tmp_path / "data"), weights=weights, engine="onnxruntime")
    if channels in (1, 3):  # all modes store the same picture
        classifier = splitattn.Classifier(weights=weights, engine="onnxruntime")
        [guesses] = classifier.predict([pixels], topk=3)
        loss = -np.mean([np.log(guess.probability) for guess in guesses])
        assert measured.loss == pytest.approx(loss, rel=0.02)
    assert measured.n == 3
