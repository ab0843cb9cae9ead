"""Training learns, stops and resumes bit for bit; its file needs nothing else."""

import errno
import math
import signal
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from splitattn.architectures import ARCHITECTURES
from splitattn.classifier import Classifier
from splitattn.create import create_model
from splitattn.errors import DataError, InputError, WeightsError
from splitattn.evaluation import Evaluation, measure
from splitattn.training import loop, output
from splitattn.training.classification import Classification
from splitattn.training.loop import check, train
from splitattn.training.recipe_files import load_recipe
from splitattn.training.recipes import Recipe
from splitattn.training.run import Run
from splitattn.training.task import Step
from splitattn.weights.checkpoint import read_checkpoint
from splitattn.weights.metadata import ModelMetadata, read_metadata
from tests.data.datasets import CLASSES, picture
from tests.training.runs import (
    ARCHITECTURE,
    RECIPE,
    log_of,
    make_run,
    make_task,
    network,
    with_recipe,
)


@pytest.fixture
def task(tmp_path: Path) -> Classification:
    return make_task(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


def test_training_learns_and_its_file_classifies_alone(
    task: Classification, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    recipe = Recipe(
        epochs=5,
        batch_size=4,
        learning_rate=0.1,
        warmup_epochs=1.0,
        mixup_alpha=0.0,
        train_size=32,
        test_size=32,
        crop_scale=0.5,
        saved_precision="fp16",
    )
    run = replace(run, recipe=recipe)
    model = network(recipe)
    measured = train(model, task, run)
    assert measured.figures["top1"] >= 90
    path = run.output / "model.safetensors"
    metadata = read_metadata(path)
    assert metadata is not None
    assert metadata.classes == CLASSES
    assert metadata.recipe == asdict(recipe)
    assert metadata.metrics == {**measured.figures, "n": 12}
    assert path.stat().st_size < 2.1 * sum(weight.numel() for weight in model.parameters())
    classifier = Classifier(weights=path)
    guesses = [classifier.predict(picture(label, 1000), topk=1)[0] for label in (0, 1, 2)]
    assert [guess.label for guess in guesses] == list(CLASSES)


@pytest.mark.parametrize("stopped_at", ["in the middle of an epoch", "while measuring"])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    task: Classification,
    run: Run,
    tmp_path: Path,
    stopped_at: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, interrupted = network(), network()
    measured = train(whole, task, replace(run, output=tmp_path / "whole"))
    assert task.examples // RECIPE.batch_size == 6
    step = 8 if stopped_at == "in the middle of an epoch" else 11

    def stop(progress: Step) -> None:
        if progress.step == step:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(interrupted, task, run, on_step=stop)
    assert f"stopped and saved after step {step + 1} of 18; --resume continues" in caplog.text
    # Other weights: a new process does not have those of the old one.
    resumed = network(replace(RECIPE, seed=99))
    seen: list[int] = []
    again = train(
        resumed, task, run, resume=True, on_step=lambda progress: seen.append(progress.step)
    )
    assert seen == list(range(step + 1, 18))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert log_of(run.output) == log_of(tmp_path / "whole")
    assert again.figures == measured.figures
    for name in ("model.safetensors", "best.safetensors"):
        assert (run.output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert train(resumed, task, run, resume=True).figures == measured.figures
    assert "finished, epoch 3 of 3, and is only measured again; --set epochs=N" in caplog.text


def test_layers_that_an_earlier_training_froze_learn_again(task: Classification, run: Run) -> None:
    recipe = replace(RECIPE, epochs=1, warmup_epochs=0.0)
    model = network(recipe)
    model.freeze_stages(5)
    before = deepcopy(model.state_dict())
    train(model, task, replace(run, recipe=recipe))
    same = [key for key, value in model.state_dict().items() if torch.equal(value, before[key])]
    assert not [key for key in same if key.endswith(("conv1.weight", "running_mean"))]


def test_accumulated_gradients_are_those_of_the_whole_batch(
    task: Classification, run: Run, tmp_path: Path
) -> None:
    # Frozen norms, since batch norm depends on how a batch is divided.
    recipe = Recipe(
        epochs=1,
        batch_size=8,
        learning_rate=0.1,
        warmup_epochs=0.0,
        mixup_alpha=0.0,
        train_size=32,
        test_size=32,
        frozen_stages=5,
    )
    weights = []
    for batch_per_device in (8, 4, 3):
        model = network(recipe)
        output = tmp_path / str(batch_per_device)
        train(
            model,
            task,
            replace(run, recipe=recipe, output=output, batch_per_device=batch_per_device),
        )
        weights.append(model.fc.state_dict()["weight"])
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)
    assert not torch.equal(weights[0], network(recipe).fc.state_dict()["weight"])
    # Eight images do not divide into equal parts of at most three. The batch becomes three parts
    # of two, and the learning rate follows.
    metadata = read_metadata(tmp_path / "3" / "model.safetensors")
    assert metadata is not None
    assert metadata.recipe["batch_size"] == 6
    rates = [line["learning_rate"] for line in log_of(tmp_path / "3")[:1]]
    assert rates == [0.1 * 6 / 256]


def test_a_class_without_a_readable_validation_image_is_refused_before_the_training(
    tmp_path: Path, run: Run
) -> None:
    task = make_task(tmp_path)
    first = min((tmp_path / "data" / "val").iterdir())
    for path in first.iterdir():
        path.write_text("no image")
    with pytest.raises(
        DataError, match=rf"validation images .* got none of \d+ for '{first.name}'"
    ):
        check(task, run.with_real_batch())


def test_training_with_batches_of_one_is_possible_with_a_warning(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task(tmp_path, train=4)
    run = with_recipe(run, batch_size=1, mixup_alpha=0.0, cutmix_alpha=0.0, epochs=2)
    run = replace(run, recipe=replace(run.recipe, warmup_epochs=0.0, learning_rate=0.1))
    measured = train(network(run.recipe), task, run)
    assert math.isfinite(measured.figures["loss"])
    assert "one example at a time" in caplog.text
    caplog.clear()
    pairs = with_recipe(replace(run, output=tmp_path / "pairs"), batch_size=2)
    train(network(pairs.recipe), task, pairs)
    assert "one example at a time" not in caplog.text


def test_the_best_epoch_is_kept_beside_the_last(
    task: Classification, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Figures that get better, then worse, which a real training might not do.
    right_by_class = iter([(2, 1, 1), (4, 3, 3), (4, 2, 2)])

    def told(*arguments: Any, **options: Any) -> Evaluation:
        measured = measure(*arguments, **options)
        right = np.array(next(right_by_class))
        wrong = np.roll(np.diag(measured.confusion.sum(1) - right), 1, axis=1)
        return replace(measured, confusion=np.diag(right) + wrong)

    monkeypatch.setattr(Classification, "_measured", staticmethod(told))
    run = with_recipe(run, epochs=3)
    train(network(), task, run)
    top1 = [line["val_top1"] for line in log_of(run.output) if line["kind"] == "epoch"]
    assert top1 == pytest.approx([100 / 3, 1000 / 12, 800 / 12])
    best, last = (read_checkpoint(run.output / f"{name}.safetensors") for name in ("best", "model"))
    for kept, figure in ((best, top1[1]), (last, top1[2])):
        assert kept.metadata is not None
        assert kept.metadata.metrics["top1"] == figure
        assert kept.metadata.recipe == asdict(run.recipe)
    assert any(not np.array_equal(w, last.tensors[k]) for k, w in best.tensors.items())


def test_the_metadata_of_a_result_describe_its_training(task: Classification, run: Run) -> None:
    run = with_recipe(run, epochs=2)
    train(network(), task, run)
    assert load_recipe(str(run.output / "recipe.toml"), model="resnest14") == run.recipe
    saved = torch.load(run.checkpoint)
    metadata = ModelMetadata.from_json(saved["metadata"])
    result = read_metadata(run.output / "model.safetensors")
    assert result is not None
    assert metadata == replace(result, metrics={})
    assert saved["identity"]["classes"] == list(CLASSES)
    report = (run.output / "report.html").read_text()
    assert "small on 3 classes" in report
    assert "trivial" in report
    lines = log_of(run.output)
    assert [line["kind"] for line in lines].count("epoch") == 2
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == list(range(1, 13))
    assert not (run.output / "unreadable.txt").exists()


def test_balanced_weights_make_every_class_count_alike(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    few = replace(task.train, labels=[0, 0, 0, 0, 0, 0, 1, 1, 2][: len(task.train)])
    task = replace(task, train=few)
    assert task._balancing_weights.tolist() == pytest.approx([9 / 18, 9 / 6, 9 / 3], rel=0)


def test_the_seed_decides_everything(task: Classification, run: Run, tmp_path: Path) -> None:
    run = replace(run, recipe=replace(RECIPE, epochs=2))
    models = []
    for seed in (0, 0, 1):
        recipe = replace(run.recipe, seed=seed)
        models.append(network(recipe))
        train(
            models[-1],
            task,
            replace(run, recipe=recipe, output=tmp_path / str(len(models)), workers=1),
        )
    weights = [model.fc.state_dict()["weight"] for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_output_folder_to_which_another_training_writes_is_refused(
    task: Classification, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_PATIENCE", 0.0)
    refused = []

    def start_another(_: Step) -> None:
        if not refused:
            with pytest.raises(InputError, match="output must be used by one training only"):
                train(network(), task, run)
            refused.append(True)

    train(network(), task, run, on_step=start_another)
    assert refused
    assert not (run.output / ".lock").exists()
    train(network(), task, run, resume=True)


def test_a_training_that_ends_meanwhile_is_not_overwritten(
    task: Classification, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(run, recipe=replace(RECIPE, epochs=1, warmup_epochs=0.0))

    def wait(folder: Path) -> FileLock:
        monkeypatch.undo()
        train(network(), task, run)
        return output.claim(folder)

    monkeypatch.setattr(loop, "claim", wait)
    with pytest.raises(InputError, match="add --resume to continue it"):
        train(network(), task, run)


def test_a_training_needs_no_file_system_with_locks(
    task: Classification, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    assert train(network(), task, run)


def test_an_output_folder_with_a_training_in_it_is_not_overwritten(
    task: Classification, run: Run
) -> None:
    run = replace(run, recipe=replace(RECIPE, epochs=2))
    train(network(), task, run)
    before = (run.output / "last.pt").read_bytes()
    with pytest.raises(InputError, match="add --resume to continue it"):
        train(network(), task, run)
    with pytest.raises(
        InputError,
        match=r"other settings: learning_rate was 1\.0, now 0\.5; use the original settings or",
    ):
        train(
            network(),
            task,
            replace(run, recipe=replace(run.recipe, learning_rate=0.5)),
            resume=True,
        )
    assert (run.output / "last.pt").read_bytes() == before
    with pytest.raises(InputError, match="model was small, now larger;"):
        train(network(), replace(task, model="larger"), run, resume=True)
    swapped = ("green", "blue", "red")
    other = replace(task, train=task.train.renamed(swapped), val=task.val.renamed(swapped))
    with pytest.raises(
        InputError, match="other settings: classes differ; use the original settings or"
    ):
        train(network(), other, run, resume=True)
    larger = create_model(
        replace(ARCHITECTURE, planes=32), num_classes=3, **RECIPE.network_arguments()
    )
    with pytest.raises(WeightsError, match="not a checkpoint of this training") as raised:
        train(larger, task, run, resume=True)
    assert "\n" not in str(raised.value)
    (run.output / "last.pt").write_bytes(before[:1000])
    with pytest.raises(WeightsError, match="not a checkpoint of this training") as raised:
        train(network(), task, run, resume=True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("epochs", "shares"), [(1, [0.1]), (3, [0.0, 0.05, 0.1])])
def test_drop_block_grows_epoch_by_epoch_to_its_full_share(
    task: Classification, run: Run, epochs: int, shares: list[float]
) -> None:
    run = with_recipe(run, epochs=epochs, warmup_epochs=0.0)
    model = network()
    seen: dict[int, float] = {}

    def note(progress: Step) -> None:
        seen[progress.epoch] = float(model.layer4[0].drop_block1.probability)

    train(model, task, run, on_step=note)
    assert seen == pytest.approx(dict(enumerate(shares)))


def test_resuming_where_there_is_no_training_warns_and_begins_one(
    task: Classification, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run = with_recipe(run, epochs=1, warmup_epochs=0.0)
    for _ in range(2):
        train(network(), task, run, resume=True)
    warning = f"{run.output} has no training to resume: a new one begins"
    assert [record.message for record in caplog.records].count(warning) == 1
    assert caplog.text.count("to resume") == 1


def test_image_size_and_drop_block_follow_more_epochs(task: Classification, run: Run) -> None:
    run = with_recipe(run, epochs=2, train_size=64, first_train_size=32)
    train(network(), task, run)
    model = network()
    seen: dict[int, float] = {}

    def note(progress: Step) -> None:
        seen[progress.epoch] = float(model.layer4[0].drop_block1.probability)

    train(model, task, with_recipe(run, epochs=5), resume=True, on_step=note)
    assert seen == pytest.approx({2: 0.05, 3: 0.075, 4: 0.1})
    sizes = [line["size"] for line in log_of(run.output) if line["kind"] == "epoch"]
    assert sizes == [32, 64, 48, 56, 64]
    metadata = read_metadata(run.output / "model.safetensors")
    assert metadata is not None
    assert metadata.recipe is not None
    assert metadata.recipe["epochs"] == 5


def test_a_loss_that_explodes_stops_with_advice(task: Classification, run: Run) -> None:
    run = with_recipe(run, learning_rate=1e-9, epochs=5)
    model = network()
    model.fc.bias.data = torch.tensor([0.0, 0.0, 1000.0])
    seen: list[float] = []
    with pytest.raises(InputError, match=r"stay below 11, got [\d.]+ at step 9 with .*clip_norm"):
        train(model, task, run, on_step=lambda progress: seen.append(progress.figures["loss"]))
    assert len(seen) == 9
    assert not (run.output / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_not_saved_as_a_result(
    task: Classification, run: Run
) -> None:
    run = with_recipe(run, epochs=1, warmup_epochs=0.0, ema_decay=0.0)
    model = network()

    def spoil(progress: Step) -> None:
        if progress.step == progress.steps - 1:
            model.fc.bias.data.fill_(math.nan)

    with pytest.raises(InputError, match=r"stay finite, got nan in validation after step 6"):
        train(model, task, run, on_step=spoil)
    assert not (run.output / "model.safetensors").exists()


@pytest.mark.parametrize("batch_size", [1, 12, 64, 128, 254])
@pytest.mark.parametrize("batch_per_device", [1, 3, 5, 6, 7, 10, 128])
def test_any_batch_per_device_makes_equal_parts(
    run: Run, batch_size: int, batch_per_device: int
) -> None:
    run = with_recipe(run, batch_size=batch_size, mixup_alpha=0.0, cutmix_alpha=0.0)
    real = replace(run, batch_per_device=batch_per_device).with_real_batch()
    assert real == real.with_real_batch()
    assert real.recipe.batch_size == real.accumulation * real.batch_per_device
    assert real.batch_per_device <= batch_per_device
    assert batch_size / 2 < real.recipe.batch_size <= batch_size


def test_a_batch_of_one_image_cannot_be_mixed(task: Classification, run: Run) -> None:
    with pytest.raises(DataError, match="at least 2 images on a device at once, got 1"):
        train(network(), task, replace(run, batch_per_device=1))


@pytest.mark.parametrize("name", ["drop_path", "drop_block"])
def test_a_network_that_contradicts_its_recipe_is_refused(
    task: Classification, run: Run, name: str
) -> None:
    without = network(replace(RECIPE, **{name: 0.0}))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"built with the recipe's {name}, 0.1, got one without"):
        train(without, task, run)
    with pytest.raises(InputError, match=f"built with the recipe's {name}, 0.0, got one with;"):
        train(network(), task, with_recipe(run, **{name: 0.0}))
    assert not run.output.exists()


def test_a_training_does_not_resume_with_other_images(task: Classification, run: Run) -> None:
    run = with_recipe(run, epochs=2)
    train(network(), task, run)
    fewer = replace(task.train, labels=list(task.train.labels)[:-1])
    with pytest.raises(InputError, match="cannot resume with other settings: images differ"):
        train(network(), replace(task, train=fewer), run, resume=True)
    # Folds of equal size have equal labels, so labels alone cannot tell them apart.
    fold = replace(task.train, part="all but fold 2/5")
    with pytest.raises(InputError, match="cannot resume with other settings: parts differ"):
        train(network(), replace(task, train=fold), run, resume=True)


def test_a_loss_that_is_not_finite_stops_with_advice(task: Classification, run: Run) -> None:
    model = network()
    nn.init.constant_(model.fc.bias, math.inf)
    with pytest.raises(InputError, match=r"at step 0 with learning rate .*lower learning_rate"):
        train(model, task, run)
    assert not (run.output / "last.pt").exists()


def test_data_that_does_not_fit_is_refused_before_training(task: Classification, run: Run) -> None:
    with pytest.raises(DataError, match="number of training images, 48, got 512"):
        train(network(), task, replace(run, recipe=replace(RECIPE, batch_size=512)))
    other = replace(task.val, classes=("blue", "green", "yellow"))
    with pytest.raises(
        DataError,
        match="got 'red' only in train and 'yellow' only in val; use the same names in both; where "
        "a class has no images, an empty folder will do",
    ):
        train(network(), replace(task, val=other), run)
    turned = replace(task.val, classes=task.val.classes[::-1])
    with pytest.raises(DataError, match="classes in the same order, got two orders; list them"):
        train(network(), replace(task, val=turned), run)
    with pytest.raises(DataError, match="must be different images, got the same ones for both"):
        train(network(), replace(task, val=task.train), run)
    one = replace(task.train, classes=("blue",), labels=[0] * len(task.train))
    with pytest.raises(DataError, match="at least two classes, got only 'blue'"):
        train(network(), replace(task, train=one), run)
    assert not run.output.exists()
    run.output.write_text("a file, not a folder")
    with pytest.raises(InputError, match="output must be a folder to write to"):
        train(network(), task, run)


def test_a_few_unreadable_images_are_listed_and_many_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task(tmp_path, train=34)
    run = make_run(tmp_path, replace(RECIPE, epochs=2, batch_size=51))
    broken = [Path(str(task.train.images[i])) for i in (0, 50)]
    broken[0].write_bytes(b"nothing")
    train(network(), task, run)
    epochs = [line for line in log_of(run.output) if line["kind"] == "epoch"]
    assert [line["unreadable"] for line in epochs] == [1, 1]
    [line] = (run.output / "unreadable.txt").read_text().splitlines()
    assert line.startswith(f"train: {broken[0]}: ")
    told = [text for text in caplog.messages if "could not be read" in text]
    assert told == [f"1 image could not be read so far, see {run.output / 'unreadable.txt'}"]

    broken[1].write_bytes(b"nothing")
    run = replace(run, output=tmp_path / "again")
    with pytest.raises(DataError, match=r"at most 1 % of the 102 images in train .*got 2 so far"):
        train(network(), task, run)
    lines = (run.output / "unreadable.txt").read_text().splitlines()
    assert {line.split(": ")[1] for line in lines} == {str(path) for path in broken}
