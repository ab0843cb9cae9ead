"""A recipe comes from a preset, a file or the command line, and refuses what cannot work."""

from dataclasses import replace
from pathlib import Path

import pytest

from splitattn.errors import InputError
from splitattn.training.recipes import RECIPES, Recipe, load_recipe


def test_presets_are_found_by_name() -> None:
    for name, recipe in RECIPES.items():
        assert load_recipe(name) == recipe


def test_a_file_changes_the_plain_recipe_and_overrides_change_the_file(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text('epochs = 10\nlearning_rate = 1\nprecision = "bfloat16"\n')
    expected = Recipe(epochs=10, learning_rate=1.0, precision="bfloat16")
    assert load_recipe(str(path)) == expected
    overrides = ["epochs=7", "precision=float32", "first_train_size = 64"]
    assert load_recipe(str(path), overrides) == replace(
        expected, epochs=7, precision="float32", first_train_size=64
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", "no field is called 'epoch'; did you mean 'epochs'"),
        ("epochs=0", "epochs must be at least 1, got 0"),
        ("epochs=many", "epochs must be int, got 'many'"),
        ("epochs=2.5", "epochs must be int, got 2.5"),
        ("epochs=true", "epochs must be int, got True"),
        ("epochs", "--set must be key=value, got 'epochs'"),
        ("batch_size=1", "batch_size must be at least 2"),
        ("learning_rate=nan", "learning_rate must be above 0"),
        ("momentum=1.0", "momentum must be between 0 and 1"),
        ("precision=int3", "precision must be float32 or bfloat16, got 'int3'"),
        ("warmup_epochs=1000", "warmup_epochs must be 0 or more, below epochs"),
        ("first_train_size=512", "first_train_size must be from 32 to train_size"),
        ("crop_scale=0", "crop_scale must be above 0"),
        ("drop_path=1", "drop_path must be 0 or more, below 1"),
    ],
)
def test_impossible_values_are_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        load_recipe("plain", [override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_recipe_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plain, embedded or a TOML file.*did you mean 'plain'"):
        load_recipe("plian")
    (tmp_path / "broken.toml").write_text("epochs: 3")
    with pytest.raises(InputError, match="must be TOML"):
        load_recipe(str(tmp_path / "broken.toml"))


def test_the_size_grows_from_the_first_to_the_last_epoch() -> None:
    recipe = Recipe(epochs=9, train_size=100, first_train_size=36)
    sizes = [recipe.size_in(epoch) for epoch in range(9)]
    assert sizes[0] == 36
    assert sizes[-1] == 100
    assert sizes == sorted(sizes)
    assert all(size % 8 == 0 for size in sizes[1:-1])
    assert {Recipe().size_in(epoch) for epoch in range(90)} == {224}
