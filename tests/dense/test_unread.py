"""Settings that a detector or a segmenter does not read are refused in one line."""

from pathlib import Path

import pytest

from splitattn import launch
from splitattn.errors import InputError
from splitattn.training.recipe_files import load_recipe
from splitattn.training.recipes import CHOICES
from tests.dense.datasets import write_masked_splits, write_splits
from tests.dense.runs import make_mask_task, make_run, make_task

ONE_STAGE = "one stage; use faster_rcnn or mask_rcnn, or set it to"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {
        "detection": write_splits(root / "boxes", train=2, val=1, outlines=True),
        "segmentation": write_masked_splits(root / "masks", train=2, val=1),
    }


@pytest.mark.parametrize(
    ("task", "head"),
    [("detection", "fcos"), ("detection", "mask_rcnn"), ("segmentation", "fpn")],
)
@pytest.mark.parametrize(
    "override",
    [
        "test_crop_fraction=0.5",
        "test_interpolation=bilinear",
        "test_order=resize-crop",
        "white_level=4095.0",
        "mixup_alpha=0.2",
        "crop_scale=0.5",
    ],
)
def test_fields_that_dense_tasks_do_not_read_are_refused(
    tmp_path: Path, data: dict[str, Path], task: str, head: str, override: str
) -> None:
    name = override.split("=")[0]
    toml = override.replace("=", "='") + "'" if name in CHOICES else override
    (tmp_path / "own.toml").write_text(f"preset = 'finetune'\n{toml}\n")
    for recipe, changes in (("finetune", [override]), (str(tmp_path / "own.toml"), [])):
        with pytest.raises(InputError, match=f"^{name} does nothing for {task}, got .*: leave it"):
            launch.train(
                data[task],
                tmp_path / "run",
                model="resnest26_tiny",
                head=head,
                recipe=recipe,
                overrides=[*changes, "batch_size=2"],
                device="cpu",
            )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("head", "override", "rule"),
    [
        ("fcos", "regions_per_image=64", f"detection, got 64: head fcos has {ONE_STAGE} 512"),
        ("fcos", "box_head=4conv1fc", f"detection, got '4conv1fc': head fcos has {ONE_STAGE} 2fc"),
        ("retinanet", "regions_per_image=64", f"got 64: head retinanet has {ONE_STAGE} 512"),
        ("fpn", "regions_per_image=64", "segmentation, got 64: leave it out"),
    ],
)
def test_fields_of_the_second_stage_are_refused_without_one(
    tmp_path: Path, head: str, override: str, rule: str
) -> None:
    task = make_task(tmp_path, head=head) if head != "fpn" else make_mask_task(tmp_path)
    recipe = load_recipe("finetune", ["batch_size=2", override], task=task.name)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rule):
        task.check(make_run(tmp_path / "run", recipe))


@pytest.mark.parametrize("preset", ["plain", "finetune"])
@pytest.mark.parametrize("head", ["fcos", "mask_rcnn"])
def test_every_preset_is_accepted_for_every_head(tmp_path: Path, head: str, preset: str) -> None:
    recipe = load_recipe(preset, ["batch_size=2"], task="detection")
    task = make_task(tmp_path, head=head)
    task.check(make_run(tmp_path / "run", recipe))


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_classes_of_annotated_images_are_not_named_elsewhere(
    tmp_path: Path, data: dict[str, Path], task: str
) -> None:
    with pytest.raises(InputError, match=f"--class-names is .* names.txt for {task}: leave it out"):
        launch.train(data[task], tmp_path / "run", class_names="names.txt", device="cpu")


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_stored_recipe_lacks_unread_fields_and_can_be_used_again(
    tmp_path: Path, data: dict[str, Path], task: str
) -> None:
    """Of what the weights expect, the mean is stored, and the crop, which is not read, is not."""
    changes = (
        *("epochs=1", "warmup_epochs=0.5", "batch_size=2", "head_channels=64"),
        *("train_size=32", "first_train_size=32", "test_size=32"),
    )

    def trained(name: str, recipe: str, changes: tuple[str, ...]) -> str:
        result = launch.train(
            data[task],
            tmp_path / name,
            model="resnest26_tiny",
            recipe=recipe,
            overrides=changes,
            device="cpu",
            workers=0,
        )
        return (result.output / "recipe.toml").read_text()

    first = trained("first", "finetune", changes)
    assert "\nmean = [0." in first
    assert "\ntest_crop_fraction" not in first
    assert trained("second", str(tmp_path / "first" / "recipe.toml"), ()) == first
