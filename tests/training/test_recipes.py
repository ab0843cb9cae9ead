"""A recipe comes from a preset, a file or the command line, and refuses what cannot work."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitattn.architectures import ARCHITECTURES
from splitattn.create import create_model
from splitattn.data.augmentation import Augmentation
from splitattn.errors import InputError
from splitattn.preprocessing import Preprocessing, center_crop
from splitattn.training.presets import PRESETS
from splitattn.training.recipe_files import default_model, load_recipe
from splitattn.training.recipes import Recipe
from splitattn.weights.catalogue import default_preprocessing, embedded_entry

FAST = [name for name in ARCHITECTURES if name.startswith("resnest50_fast_")]
PUBLISHED = [f"resnest{depth}" for depth in (14, 26, 50, 101, 200, 269)]
OF_PAPER = [*PUBLISHED, *FAST]


def test_a_file_changes_the_plain_recipe_and_overrides_change_the_file(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text('epochs = 10\nlearning_rate = 1\nprecision = "bf16"\n')
    expected = Recipe(epochs=10, learning_rate=1.0, precision="bf16")
    assert load_recipe(str(path), model="resnest50") == expected
    overrides = ["epochs=7", "precision=fp32", "first_train_size = 64", "sync_batch_norm=true"]
    assert load_recipe(str(path), overrides, model="resnest50") == replace(
        expected, epochs=7, precision="fp32", first_train_size=64, sync_batch_norm=True
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("epochs = 7", encoding=encoding)
    assert load_recipe(str(path)).epochs == 7


def test_values_may_be_written_as_in_python() -> None:
    overrides = ["sync_batch_norm=True", "learning_rate=.1", "mixup_alpha = 1.", "clip_norm=1"]
    assert load_recipe("plain", overrides, model="resnest50") == Recipe(
        sync_batch_norm=True, learning_rate=0.1, mixup_alpha=1.0, clip_norm=1.0
    )


def test_a_smaller_last_size_than_the_first_makes_the_first_smaller_too(tmp_path: Path) -> None:
    usual = load_recipe("modern", model="resnest50")
    assert (usual.first_train_size, usual.train_size) == (128, 176)
    small = load_recipe("modern", ["train_size=64"], model="resnest50")
    assert (small.first_train_size, small.train_size) == (48, 64)  # 128 * 64 / 176 = 46.5
    for size, first in ((128, 128), (60, 40), (40, 32), (32, 32)):  # at least 32, at most the last
        small = load_recipe("modern", [f"train_size={size}"], model="resnest50")
        assert (small.first_train_size, small.train_size) == (first, size)
    with pytest.raises(InputError, match="recipe: train_size must be 32 to 4096, got 16"):
        load_recipe("modern", ["train_size=16"], model="resnest50")
    path = tmp_path / "same.toml"
    path.write_text('preset = "modern"\ntrain_size = 100\nfirst_train_size = 100\n')
    same = load_recipe(str(path), ["train_size=60"], model="resnest50")
    assert (same.first_train_size, same.train_size) == (60, 60)  # 100 * 60 / 100, and not 64
    with pytest.raises(InputError, match="first_train_size must be from 32 to train_size"):
        load_recipe("modern", ["train_size=64", "first_train_size=96"], model="resnest50")


def test_fewer_epochs_than_those_of_the_warm_up_shorten_the_warm_up(tmp_path: Path) -> None:
    short = load_recipe("finetune", ["epochs=1"], model="resnest50")
    assert (short.epochs, short.warmup_epochs) == (1, 0.1)
    path = tmp_path / "short.toml"
    path.write_text('preset = "modern"\nepochs = 3\n')
    assert load_recipe(str(path), model="resnest50").warmup_epochs == 5 * 3 / 120
    # Not if it fits, and not if the warm-up was given.
    assert load_recipe("plain", ["epochs=6"], model="resnest50").warmup_epochs == 5.0
    with pytest.raises(InputError, match="warmup_epochs must be 0 or more, below"):
        load_recipe("plain", ["epochs=1", "warmup_epochs=2"], model="resnest50")


def test_a_file_may_change_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preset = "modern"\nepochs = 3\nwarmup_epochs = 1\ndropout = 0\n')
    expected = replace(
        load_recipe("modern", model="resnest101"), epochs=3, warmup_epochs=1.0, dropout=0.0
    )
    assert load_recipe(str(path), model="resnest101") == expected
    for wrong in ('"moderm"', "3"):
        path.write_text(f"preset = {wrong}")
        with pytest.raises(InputError, match="preset must be one of plain, tiny") as raised:
            load_recipe(str(path), model="resnest101")
        assert "\n" not in str(raised.value)
    path.write_text('preset = "moderm"')
    with pytest.raises(InputError, match="did you mean 'modern'"):
        load_recipe(str(path), model="resnest101")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", ["resnest50", "resnest200", "resnest269"])
def test_a_recipe_survives_being_written_and_read(tmp_path: Path, preset: str, model: str) -> None:
    overrides = ["seed=9223372036854775807", "weight_decay=1e-20", "mean=[0.5, 0, 1e-3]"]
    recipe = load_recipe(preset, overrides, model=model)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert load_recipe(str(path), model="resnest14") == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", "no field is called 'epoch'; did you mean 'epochs'"),
        ("preset=modern", "no field is called 'preset'"),
        ("epochs=0", "epochs must be 1 to 100000, got 0"),
        ("epochs=many", "epochs must be a whole number, got 'many'"),
        ("epochs=2.5", "epochs must be a whole number, got 2.5"),
        ("epochs=true", "epochs must be a whole number, got True"),
        ("epochs", "--set must be key=value, got 'epochs'"),
        ("learning_rate=", "--set must be key=value, got 'learning_rate=' without a value"),
        ("lr=", "no field is called 'lr'; did you mean 'learning_rate'"),
        ("lr=0.1", "no field is called 'lr'; did you mean 'learning_rate'"),
        ("batch=8", "no field is called 'batch'; did you mean 'batch_size'"),
        ("batch_size=0", "batch_size must be 1 to 1000000, got 0"),
        ("batch_per_device=0", "batch_per_device must be at least 1, got 0"),
        ("batch_size=1", "mixup_alpha must be 0 if batch_size is 1"),
        ("learning_rate=nan", "learning_rate must be a finite number, got nan"),
        ("weight_decay=inf", "weight_decay must be a finite number, got inf"),
        ("momentum=1.0", "momentum must be between 0 and 1"),
        (
            "precision=int3",
            "precision must be one of fp32, bf16, fp16, auto, got 'int3'",
        ),
        ("auto_augment=imagnet", "got 'imagnet'; did you mean 'imagenet'"),
        ("crop=efficient", "got 'efficient'; did you mean 'efficientnet'"),
        ("interpolation=3", "interpolation must be one of bilinear, bicubic, got 3"),
        ("class_weights=true", "class_weights must be one of none, balanced, got True"),
        ("teacher=3", "teacher must be text, got 3"),
        ("saved_precision=float8", "saved_precision must be one of fp32, fp16"),
        ("warmup_epochs=1000", "warmup_epochs must be 0 or more, below epochs"),
        ("first_train_size=512", "from 32 to train_size, which is 224 (set both), got 512"),
        ("first_train_size=16", "first_train_size must be from 32 to train_size"),
        ("test_size=99999", "size must be 1 to 4096, got 99999"),
        ("test_crop_fraction=0", "test_crop_fraction must be above 0, at most 1, got 0.0"),
        ("test_interpolation=nearest", "test_interpolation must be one of bilinear, bicubic, got"),
        ("mean=0.5", "mean must be a list of numbers, one for each channel, such as [0.5,"),
        ("std=[1, 1]", "std must be 3 numbers, as in_chans says, got (1.0, 1.0)"),
        ("std=[1, 1, true]", "std must be a list of numbers"),
        ("std=[1, 1, 0]", "std must be positive"),
        ("mean=[0, nan, 0]", "mean and std must have a number for each channel"),
        ("crop_scale=0", "crop_scale must be above 0"),
        ("color_jitter=1.5", "color_jitter must be from 0 to 1"),
        ("lighting=-0.1", "lighting must be from 0 to 1"),
        ("random_erasing=2", "random_erasing must be from 0 to 1, got 2.0"),
        ("drop_path=1", "drop_path must be 0 or more, below 1"),
        ("dropout=1", "dropout must be 0 or more, below 1"),
        ("dropout=much", "dropout must be a number, got 'much'"),
        ("ema_decay=1", "ema_decay must be 0 or more, below 1"),
        ("clip_norm=-1", "clip_norm must be 0 or more"),
        ("layer_decay=0", "layer_decay must be above 0, at most 1"),
        ("frozen_stages=6", "frozen_stages must be 0 to 5"),
        ("cutmix_alpha=-1", "cutmix_alpha must be 0 to 1000"),
        ("sync_batch_norm=1", "sync_batch_norm must be true or false, got 1"),
    ],
)
def test_impossible_values_are_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        load_recipe("plain", [override], model="resnest50")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_batches_of_one_image_require_no_mixing() -> None:
    assert Recipe(batch_size=1, mixup_alpha=0.0).batch_size == 1
    with pytest.raises(InputError, match="cutmix_alpha must be 0 if batch_size is 1"):
        Recipe(batch_size=1, mixup_alpha=0.0, cutmix_alpha=1.0)


def test_momentum_is_for_sgd() -> None:
    assert load_recipe("plain", ["momentum=0.8"]).momentum == 0.8
    assert load_recipe("finetune", task="detection").optimizer == "adamw"
    with pytest.raises(InputError, match=r"momentum does nothing .* 'adamw', got 0\.8: leave it"):
        load_recipe("finetune", ["momentum=0.8"], task="detection")


def test_class_balance_is_by_sampling_or_weights_but_not_both() -> None:
    assert load_recipe("plain", ["sampling=balanced"]).sampling == "balanced"
    with pytest.raises(InputError, match="class_weights must be 'none' if sampling is 'bal"):
        load_recipe("plain", ["sampling=balanced", "class_weights=balanced"])


def test_an_unknown_recipe_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    expected = "one of plain, .*, finetune, distill, .* or a TOML file.*did you mean 'plain'"
    with pytest.raises(InputError, match=expected):
        load_recipe("plian", model="resnest50")
    (tmp_path / "broken.toml").write_text("epochs: 3")
    with pytest.raises(InputError, match="must be TOML"):
        load_recipe(str(tmp_path / "broken.toml"), model="resnest50")


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("[train]\nepochs = 3", "train"),
        ("train.epochs = 3", "train"),
        ("epochs = {a = 1}", "epochs"),
    ],
)
def test_fields_in_a_table_are_refused_however_it_is_written(
    text: str, table: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_recipe(str(path), model="resnest50")
    assert str(error.value) == (
        f"recipe file {path}: fields must not be in a table, got '{table}'; write each on a line "
        "of its own, such as epochs = 3"
    )


@pytest.mark.parametrize("overrides", ["epochs=2", {"epochs": 2}])
def test_overrides_are_a_list(overrides: Any) -> None:
    with pytest.raises(InputError, match=r"must be a list such as \['epochs=2'\], got"):
        load_recipe("plain", overrides, model="resnest50")


def test_the_size_grows_from_the_first_to_the_last_epoch() -> None:
    recipe = Recipe(epochs=9, train_size=100, first_train_size=36)
    sizes = [recipe.size_in(epoch) for epoch in range(9)]
    assert sizes[0] == 36
    assert sizes[-1] == 100
    assert sizes == sorted(sizes)
    assert all(size % 8 == 0 for size in sizes[1:-1])
    assert [recipe.augmentation(epoch).size for epoch in range(9)] == sizes
    assert {Recipe().size_in(epoch) for epoch in range(90)} == {224}


def test_with_one_epoch_the_size_is_the_last_and_drop_block_removes_its_full_share() -> None:
    recipe = Recipe(
        epochs=1, warmup_epochs=0.0, first_train_size=64, train_size=128, drop_block=0.1
    )
    assert recipe.size_in(0) == 128
    assert recipe.drop_block_in(0) == 0.1
    assert recipe.augmentation(0).size == 128


def test_a_recipe_says_how_images_are_prepared() -> None:
    recipe = load_recipe("paper", model="resnest269")
    assert recipe.preprocessing == Preprocessing(size=416, crop_fraction=416 / 448)
    assert recipe.augmentation(7) == Augmentation(
        size=320,
        crop_scale=0.1,
        crop="efficientnet",
        interpolation="bicubic",
        auto_augment="imagenet",
        color_jitter=0.4,
        lighting=0.1,
    )
    erasing = replace(recipe, random_erasing=0.25)
    assert erasing.augmentation(0).random_erasing == 0.25


@pytest.mark.parametrize("model", ARCHITECTURES)
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "paper"])
def test_other_presets_are_for_every_model(preset: str, model: str) -> None:
    recipe = load_recipe(preset, model=model)
    assert recipe.size_in(0) <= recipe.size_in(recipe.epochs - 1) <= max(recipe.test_size, 224)


@pytest.mark.parametrize(
    (
        "model",
        "batch_size",
        "devices",
        "peak",
        "train_size",
        "test_size",
        "fraction",
        "drop_block",
        "dropout",
    ),
    [
        ("resnest14", 1024, 8, 0.4, 224, 224, 0.875, 0.0, None),
        ("resnest26", 1024, 8, 0.4, 224, 224, 0.875, 0.1, None),
        ("resnest50", 8192, 64, 3.2, 224, 224, 0.875, 0.1, None),
        ("resnest50_fast_2s2x40d", 8192, 64, 3.2, 224, 224, 0.875, 0.1, None),
        ("resnest101", 4096, 64, 1.6, 224, 256, 0.8889, 0.1, None),
        ("resnest200", 2048, 64, 0.8, 256, 320, 0.9091, 0.1, 0.2),
        ("resnest269", 2048, 64, 0.8, 320, 416, 0.9286, 0.1, 0.2),
    ],
)
def test_the_paper_recipe_is_that_of_the_published_logs(
    model: str,
    batch_size: int,
    devices: int,
    peak: float,
    train_size: int,
    test_size: int,
    fraction: float,
    drop_block: float,
    dropout: float | None,
) -> None:
    recipe = load_recipe("paper", model=model)
    assert (recipe.batch_size, recipe.train_size) == (batch_size, train_size)
    assert recipe.batch_per_device == batch_size / devices
    assert recipe.learning_rate * recipe.batch_size / 256 == pytest.approx(peak)
    assert recipe.size_in(0) == train_size
    assert recipe.test_size == test_size
    assert recipe.test_crop_fraction == pytest.approx(fraction, abs=5e-5)
    assert (recipe.drop_block, recipe.dropout) == (drop_block, dropout)


@pytest.mark.parametrize("model", OF_PAPER)
def test_the_paper_recipes_agree_in_everything_else(model: str) -> None:
    recipe = load_recipe("paper", model=model)
    large = model == "resnest269"
    assert recipe == Recipe(
        epochs=270,
        learning_rate=0.1,
        warmup_epochs=5.0,
        momentum=0.9,
        weight_decay=1e-4,
        label_smoothing=0.1,
        mixup_alpha=0.2,
        cutmix_alpha=0.0,
        auto_augment="imagenet",
        color_jitter=0.4,
        lighting=0.1,
        random_erasing=0.0,
        crop="efficientnet" if large else "random-resized",
        interpolation="bicubic" if large else "bilinear",
        crop_scale=0.1 if large else 0.08,
        drop_path=0.0,
        sync_batch_norm=False,
        ema_decay=0.0,
        clip_norm=0.0,
        layer_decay=1.0,
        frozen_stages=0,
        precision="fp32",
        **{
            name: getattr(recipe, name)
            for name in (
                "batch_size",
                "batch_per_device",
                "train_size",
                "test_size",
                "test_crop_fraction",
                "drop_block",
                "dropout",
            )
        },
    )


@pytest.mark.parametrize("preset", ["paper", "modern", "finetune"])
def test_a_recipe_is_the_same_whatever_the_model_is_called(preset: str) -> None:
    theirs = load_recipe(preset, model="timm/resnest14d.gluon_in1k")
    assert theirs == load_recipe(preset, model="resnest14")


@pytest.mark.parametrize("model", sorted(set(ARCHITECTURES) - set(OF_PAPER)))
def test_the_paper_recipe_refuses_other_models_with_an_alternative(model: str) -> None:
    with pytest.raises(InputError) as raised:
        load_recipe("paper", model=model)
    assert model in str(raised.value)
    assert str(raised.value).endswith("use modern")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("preset", ["paper", "modern", "finetune"])
def test_an_unknown_model_is_named(preset: str) -> None:
    with pytest.raises(InputError, match="did you mean 'resnest50'"):
        load_recipe(preset, model="resnest5O")


@pytest.mark.parametrize(
    ("model", "first", "last", "test", "fraction"),
    [
        ("resnest50", 128, 176, 224, 0.875),
        ("resnest152", 128, 176, 224, 0.875),
        ("resnest101", 144, 208, 256, 256 / 288),
        ("resnest269", 240, 336, 416, 416 / 448),
    ],
)
def test_the_modern_recipe_grows_its_crops_up_to_below_the_test_size(
    model: str, first: int, last: int, test: int, fraction: float
) -> None:
    recipe = load_recipe("modern", model=model)
    assert (recipe.size_in(0), recipe.size_in(recipe.epochs - 1)) == (first, last)
    assert recipe.preprocessing == Preprocessing(size=test, crop_fraction=fraction)


@pytest.mark.parametrize("preset", ["modern", "finetune"])
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_a_model_is_measured_at_its_own_size(preset: str, model: str) -> None:
    recipe = load_recipe(preset, model=model)
    size = default_preprocessing(model).size
    assert recipe.test_size == size
    if preset == "finetune":
        assert recipe.size_in(0) == recipe.train_size == size
        assert recipe.test_crop_fraction is None  # the size of the weights
    else:
        assert recipe.test_crop_fraction == (size / (size + 32) if size >= 128 else 1.0)


@pytest.mark.parametrize("model", ["resnest14", "resnest50", "resnest269", "resnest26_tiny"])
def test_fine_tuning_prepares_images_as_the_weights_expect(
    model: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = default_preprocessing(model)
    recipe = load_recipe("finetune", model=model).starting_from(expected)
    assert recipe.preprocessing == expected
    # The official crop follows the size; another size causes no warning here.
    larger = replace(load_recipe("finetune", model="resnest50"), test_size=288)
    larger = larger.starting_from(default_preprocessing("resnest50"))
    assert larger.preprocessing == center_crop(288)
    assert not caplog.messages


def test_settings_of_a_recipe_replace_those_of_the_weights_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = Preprocessing(
        size=224,
        crop_fraction=0.95,
        interpolation="bilinear",
        order="resize-crop",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    overrides = ["test_interpolation=bicubic", "std=[0.5, 0.5, 0.5]", "mean=[0, 1, 0.25]"]
    recipe = load_recipe("plain", overrides, model="resnest50").starting_from(expected)
    assert recipe.preprocessing == replace(expected, interpolation="bicubic", mean=(0.0, 1.0, 0.25))
    assert recipe.starting_from(expected) == recipe
    assert caplog.messages[:2] == [
        "recipe: test_interpolation is bicubic, but the weights to start from expect bilinear",
        "recipe: mean is (0.0, 1.0, 0.25), but the weights to start from expect (0.5, 0.5, 0.5)",
    ]


@pytest.mark.parametrize(
    "content",
    [
        "learning_rate = 1" + "0" * 400,
        "learning_rate = 1" + "0" * 5000,
        "epochs = 1" + "0" * 400,
        "epochs = " + "[" * 5000,
        "train_size = 1000000000",
        "epochs" + ".a" * 2000 + " = 1",
        "preset" + ".a" * 2000 + " = 1",
        "preset = [1]",
        # A parser whose time is quadratic in the number of parts would take minutes.
        "a." * 50_000 + "a = 1",
        "\x00",
    ],
)
def test_hostile_files_are_reported_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    with pytest.raises(InputError) as raised:
        load_recipe(str(path), model="resnest50")
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "nul\0", "\udcff", "line\nbreak"])
def test_a_name_that_no_file_can_have_is_reported_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match="recipe must be one of") as raised:
        load_recipe(name, model="resnest50")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_model_is_the_embedded_one_for_recipes_that_start_from_weights(
    preset: str, tmp_path: Path
) -> None:
    tuned = embedded_entry().model
    recipe = load_recipe(preset)
    tunes = preset in ("finetune", "distill", "paper_coco", "paper_ade20k")
    assert recipe.pretrained == tunes
    assert default_model(recipe) == (tuned if recipe.pretrained else "resnest50")
    assert recipe == load_recipe(preset, model=default_model(recipe))
    # A file decides by its preset or its own field, and an override replaces both.
    path = tmp_path / "mine.toml"
    path.write_text(f'preset = "{preset}"\n')
    assert load_recipe(str(path)) == recipe
    path.write_text(f'preset = "{preset}"\npretrained = true\n')
    assert load_recipe(str(path), model="resnest50").pretrained
    assert not load_recipe(str(path), ["pretrained=false"], model="resnest50").pretrained


def test_network_arguments_build_the_network_that_the_recipe_means() -> None:
    recipe = Recipe(drop_path=0.2, drop_block=0.1, dropout=0.3)
    network = create_model("resnest14", **recipe.network_arguments())
    assert network.drop.p == 0.3
    assert network.layer4[-1].drop_path.p == pytest.approx(0.2)
    assert float(network.layer4[-1].drop_block1.probability) == pytest.approx(0.1)
