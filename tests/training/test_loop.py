"""Training learns, stops, goes on bit for bit, and leaves a file that needs nothing else."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from splitattn.architectures import Architecture
from splitattn.classifier import Classifier
from splitattn.create import create_model
from splitattn.data.sources import open_data
from splitattn.errors import DataError, InputError, WeightsError
from splitattn.nn.resnest import ResNeSt
from splitattn.training.loop import (
    Progress,
    Run,
    learning_rate,
    make_optimizer,
    mixup_loss,
    train,
)
from splitattn.training.recipes import Recipe
from splitattn.weights.metadata import read_metadata
from tests.data.datasets import CLASSES, picture, write_image_folder

RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    learning_rate=1.0,
    warmup_epochs=1.0,
    train_size=32,
    test_size=32,
    crop_scale=0.5,
    drop_path=0.1,
    drop_block=0.1,
)
ARCHITECTURE = Architecture(layers=(1, 1, 1, 1), planes=16, stem_width=8)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    data = str(write_image_folder(tmp_path / "data", train=16, val=4))
    return Run(
        name="resnest14",
        recipe=RECIPE,
        train=open_data(data, "train"),
        val=open_data(data, "val"),
        output=tmp_path / "out",
        device=torch.device("cpu"),
        workers=0,
    )


def network(recipe: Recipe = RECIPE) -> ResNeSt:
    torch.manual_seed(recipe.seed)
    return create_model(
        ARCHITECTURE, num_classes=3, drop_path=recipe.drop_path, drop_block=recipe.drop_block
    )


def test_training_learns_and_its_file_classifies_alone(run: Run) -> None:
    recipe = Recipe(
        epochs=5,
        batch_size=8,
        learning_rate=0.3,
        warmup_epochs=1.0,
        mixup_alpha=0.0,
        train_size=32,
        test_size=32,
        crop_scale=0.5,
        saved_precision="float16",
    )
    run = replace(run, recipe=recipe)
    torch.manual_seed(0)
    model = create_model("resnest14", num_classes=3)
    measured = train(model, run)
    assert measured.top1 >= 90
    path = run.output / "model.safetensors"
    metadata = read_metadata(path)
    assert metadata is not None
    assert metadata.classes == CLASSES
    assert metadata.recipe == asdict(recipe)
    assert metadata.metrics == {
        "top1": measured.top1,
        "top5": measured.top5,
        "loss": measured.loss,
        "n": 12,
    }
    assert path.stat().st_size < 2.1 * sum(weight.numel() for weight in model.parameters())
    classifier = Classifier(weights=path)
    guesses = [classifier.predict(picture(label, 1000), topk=1)[0] for label in (0, 1, 2)]
    assert [guess.label for guess in guesses] == list(CLASSES)


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    run: Run, tmp_path: Path
) -> None:
    whole, interrupted = network(), network()
    train(whole, replace(run, output=tmp_path / "whole"))

    class StopError(Exception):
        pass

    def interrupt(progress: Progress) -> None:
        if progress.epoch == 1 and progress.step == 3:
            raise StopError

    with pytest.raises(StopError):
        train(interrupted, run, on_step=interrupt)
    resumed = network(replace(RECIPE, seed=99))  # a new process need not remember anything
    train(resumed, run, resume=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "whole", run.output)
    ]
    assert [line["epoch"] for line in logs[1]] == [0, 1, 2]
    for ours, theirs in zip(*logs, strict=True):
        assert ours["train_loss"] == theirs["train_loss"]
        assert ours["val_top1"] == theirs["val_top1"]


def test_the_seed_decides_everything(run: Run, tmp_path: Path) -> None:
    run = replace(run, recipe=replace(RECIPE, epochs=2))
    models = []
    for seed in (0, 0, 1):
        recipe = replace(run.recipe, seed=seed)
        models.append(network(recipe))
        train(
            models[-1], replace(run, recipe=recipe, output=tmp_path / str(len(models)), workers=1)
        )
    weights = [model.fc.state_dict()["weight"] for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_output_folder_with_a_training_in_it_is_not_overwritten(run: Run) -> None:
    run = replace(run, recipe=replace(RECIPE, epochs=2))
    train(network(), run)
    before = (run.output / "last.pt").read_bytes()
    with pytest.raises(InputError, match="add --resume to continue it"):
        train(network(), run)
    with pytest.raises(InputError, match="as it began, got another learning_rate"):
        train(network(), replace(run, recipe=replace(run.recipe, learning_rate=0.5)), resume=True)
    assert (run.output / "last.pt").read_bytes() == before
    with pytest.raises(InputError, match="as it began, got another model"):
        train(network(), replace(run, name="resnest26"), resume=True)
    swapped = ("green", "blue", "red")
    other = replace(run, train=run.train.renamed(swapped), val=run.val.renamed(swapped))
    with pytest.raises(InputError, match="as it began, got another classes"):
        train(network(), other, resume=True)
    with pytest.raises(WeightsError, match="no checkpoint of this training") as raised:
        train(create_model("resnest14", num_classes=3), run, resume=True)
    assert "\n" not in str(raised.value)
    (run.output / "last.pt").write_bytes(before[:1000])
    with pytest.raises(WeightsError, match="no checkpoint of this training") as raised:
        train(network(), run, resume=True)
    assert "\n" not in str(raised.value)


def test_drop_block_grows_epoch_by_epoch(run: Run) -> None:
    model = network()
    seen: dict[int, float] = {}

    def note(progress: Progress) -> None:
        seen[progress.epoch] = float(model.layer4[0].drop_block1.probability)

    train(model, run, on_step=note)
    assert seen == pytest.approx({0: 0.0, 1: 0.05, 2: 0.1})


def test_a_loss_that_is_not_finite_stops_with_advice(run: Run) -> None:
    model = network()
    nn.init.constant_(model.fc.bias, math.inf)
    with pytest.raises(InputError, match=r"at step 0 with learning rate .*lower learning_rate"):
        train(model, run)
    assert not (run.output / "last.pt").exists()


def test_data_that_does_not_fit_is_refused_before_anything_is_spent(run: Run) -> None:
    with pytest.raises(DataError, match="one full batch of 512 images, got 48"):
        train(network(), replace(run, recipe=replace(RECIPE, batch_size=512)))
    other = replace(run.val, classes=("blue", "green", "yellow"))
    with pytest.raises(DataError, match="2 in only one of them: red, yellow"):
        train(network(), replace(run, val=other))
    with pytest.raises(DataError, match="must be different images, got the same ones for both"):
        train(network(), replace(run, val=run.train))
    assert not run.output.exists()
    run.output.write_text("a file, not a folder")
    with pytest.raises(InputError, match="output must be a folder to write to"):
        train(network(), run)


def test_the_learning_rate_warms_up_and_follows_a_cosine_to_zero() -> None:
    recipe = Recipe(epochs=10, warmup_epochs=2.0, batch_size=512, learning_rate=0.1)
    rates = [learning_rate(recipe, step, 100) for step in range(1000)]
    assert rates[0] == pytest.approx(0.2 / 201)
    assert rates[99] == pytest.approx(0.1 * 200 / 201)
    assert rates[200] == pytest.approx(0.2)
    assert max(rates) == rates[200]
    assert rates[600] == pytest.approx(0.1)
    assert 0 < rates[999] < 1e-5
    assert np.all(np.diff(rates[:200]) > 0)
    assert np.all(np.diff(rates[200:]) < 0)


def test_norms_and_biases_are_not_decayed() -> None:
    model = network()
    decayed, others = make_optimizer(model, RECIPE).param_groups
    assert decayed["weight_decay"] == RECIPE.weight_decay
    assert others["weight_decay"] == 0
    assert decayed["nesterov"]
    names = {id(weight): name for name, weight in model.named_parameters()}
    # By name, the official code decays these six.
    norms = ["conv1.1", "conv1.4", *(f"layer{stage}.0.downsample.2" for stage in (1, 2, 3, 4))]
    undecayed = {names[id(weight)] for weight in others["params"]}
    assert {f"{norm}.weight" for norm in norms} <= undecayed
    shapes = {weight.ndim for weight in decayed["params"]}
    assert shapes == {2, 4}
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert all(weight.ndim == 1 for weight in others["params"])


def test_mixup_mixes_the_batch_with_its_reverse() -> None:
    recipe = Recipe(mixup_alpha=0.4, label_smoothing=0.1)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
    head = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    loss = mixup_loss(head, images, labels, recipe, np.random.default_rng(3))
    share = np.random.default_rng(3).beta(0.4, 0.4)
    assert 0.01 < share < 0.99
    smooth = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
    target = share * smooth + (1 - share) * smooth.flip(0)
    mixed = share * images + (1 - share) * images.flip(0)
    expected = -(target * head(mixed).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_without_mixup_the_images_stay_as_they_are() -> None:
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
    head = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    recipe = Recipe(mixup_alpha=0.0, label_smoothing=0.0)
    loss = mixup_loss(head, images, labels, recipe, np.random.default_rng(3))
    torch.testing.assert_close(loss, F.cross_entropy(head(images), labels))


def test_an_unreadable_training_image_is_counted(run: Run) -> None:
    Path(str(run.train.images[0])).write_bytes(b"nothing")
    train(network(), replace(run, recipe=replace(RECIPE, epochs=2, batch_size=16)))
    log = [json.loads(line) for line in (run.output / "log.jsonl").read_text().splitlines()]
    assert [line["unreadable"] for line in log] == [1, 1]
