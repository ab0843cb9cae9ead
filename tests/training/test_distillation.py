"""A student learns only from its teacher's answers; its file is an ordinary one."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from splitattn.architectures import ARCHITECTURES
from splitattn.classifier import Classifier
from splitattn.create import create_model
from splitattn.engines.pytorch import TorchEngine
from splitattn.errors import DataError, InputError
from splitattn.images.preprocess import preprocess
from splitattn.nn.resnest import ResNeSt
from splitattn.opening import open_weights
from splitattn.preprocessing import Preprocessing
from splitattn.training.distillation import Distillation
from splitattn.training.loop import train
from splitattn.training.recipes import Recipe
from splitattn.training.task import Step
from splitattn.training.teacher import LinearClassifier, ReusedClassifier, Teacher, resized
from splitattn.weights.card import model_card
from tests.data.datasets import CLASSES, picture
from tests.training.runs import ARCHITECTURE, in_two_processes, log_of, make_run, make_task

LOOK = Preprocessing(
    size=48, crop_fraction=0.9, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25)
)
RECIPE = Recipe(
    task="distillation",
    epochs=2,
    batch_size=4,
    learning_rate=0.5,
    warmup_epochs=1.0,
    train_size=40,
    first_train_size=32,
    test_size=32,
    crop_scale=0.5,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
    label_smoothing=0.0,
    drop_path=0.1,
    ema_decay=0.5,
    saved_precision="fp16",
    temperature=2.0,
).starting_from(LOOK)


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
        yield


def make_teacher(*, features: bool = False) -> Teacher:
    """A teacher that distinguishes the three colors by the means of the channels."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5), nn.ReLU())
    head = nn.Linear(5, 3)
    # Each class is a channel minus the mean of all: blue is 2, green 1, red 0.
    with torch.no_grad():
        body[2].weight.zero_()[:3] = 2 * (torch.eye(3).flip(0) - 1 / 3)
        body[2].bias.fill_(1.0)
        head.weight.zero_()[:, :3] = 4 * torch.eye(3)
    classifier = LinearClassifier(weight=head.weight.detach(), bias=head.bias.detach())
    module = (body if features else nn.Sequential(body, head)).eval()
    return Teacher(
        name="colors",
        classes=CLASSES,
        preprocessing=LOOK,
        engine=TorchEngine(module, torch.device("cpu")),
        classifier=classifier if features else None,
    )


def make_student(seed: int = 0, *, drop_path: float = RECIPE.drop_path) -> ResNeSt:
    torch.manual_seed(seed)
    return create_model(ARCHITECTURE, num_classes=3, drop_path=drop_path)


def make_distillation(folder: Path, teacher: Teacher, *, labeled: bool = False) -> Distillation:
    task = make_task(folder, train=8)
    train, val = task.train, task.val
    if not labeled:
        train, val = (replace(part, classes=(), labels=[0] * len(part)) for part in (train, val))
    return Distillation(model="small", train=train, val=val, teacher=teacher, data="photographs")


def agreement(student: Path, teacher: Teacher) -> float:
    """Percent of the validation images on which `predict` agrees with the teacher."""
    pictures = [picture(label, 1000 + i) for label in range(3) for i in range(4)]
    guesses = Classifier(weights=student).predict(pictures, topk=1)
    pixels = np.stack([preprocess(image, LOOK) for image in pictures])
    answers = teacher.for_logits().run(pixels, LOOK).argmax(1)
    return 100 * float(np.mean([g[0].index == a for g, a in zip(guesses, answers, strict=True)]))


@pytest.mark.parametrize("imitation", ["logits", "features"])
def test_a_student_learns_without_labels_and_leaves_an_ordinary_file(
    tmp_path: Path, imitation: Any
) -> None:
    teacher = make_teacher(features=imitation == "features")
    task = make_distillation(tmp_path, teacher)
    recipe = replace(
        RECIPE,
        imitation=imitation,
        epochs=4,
        learning_rate=0.1,
        clip_norm=5.0,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
        drop_path=0.0,
    )
    run = make_run(tmp_path, recipe)
    network = make_student(drop_path=0.0)
    measured = train(network, task, run)
    path = run.output / "model.safetensors"
    assert measured.figures.keys() == {"agreement"}
    assert measured.figures["agreement"] == pytest.approx(agreement(path, teacher))
    assert measured.figures["agreement"] > 80
    # The file has the usual keys and shapes, and the values of the network in memory.
    saved = load_file(path)
    assert {k: tuple(v.shape) for k, v in saved.items()} == ARCHITECTURE.shapes(3)
    assert all(torch.equal(network.state_dict()[k], v.float()) for k, v in saved.items())
    metadata = open_weights(weights=path).metadata
    assert metadata.classes == CLASSES
    assert metadata.preprocessing == replace(LOOK, size=32)
    assert metadata.origin == {"teacher": "colors", "data": "photographs"}
    assert metadata.metrics == {**measured.figures, "n": 12}
    card = model_card(path)
    assert "- teacher: colors\n- data: photographs\n" in card
    assert (
        f"| agreement with the teacher's first guess, % | {measured.figures['agreement']:.4f} |"
        in card
    )
    assert "agreement" in (run.output / "report.html").read_text()


# Without regularization whose random numbers depend on the process.
TOGETHER = replace(
    RECIPE,
    imitation="features",
    epochs=1,
    warmup_epochs=0.5,
    learning_rate=0.01,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
    drop_path=0.0,
    sync_batch_norm=True,
    saved_precision="fp32",
)


def distill(folder: Path) -> None:
    """Distill on the images of `folder`/data, in one process or as one of several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
        task = make_distillation(folder, make_teacher(features=True))
        train(make_student(drop_path=0.0), task, make_run(folder, TOGETHER))


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    distill(one)
    two.mkdir()
    (two / "data").symlink_to(one / "data")
    in_two_processes(distill, two)
    for ours, theirs in zip(log_of(two / "out"), log_of(one / "out"), strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=1e-3)
    weights = [load_file(folder / "out" / "model.safetensors") for folder in (two, one)]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-4)


def test_a_student_that_answers_nan_ends_the_training(tmp_path: Path) -> None:
    task = make_distillation(tmp_path, make_teacher())
    student = make_student()
    with torch.no_grad():
        student.fc.bias.fill_(torch.nan)
    with pytest.raises(InputError, match="student's answers must be finite, got others"):
        task.measure(student.eval(), make_run(tmp_path, RECIPE), lambda *_: None)


@pytest.mark.parametrize("imitation", ["logits", "features"])
def test_a_resumed_distillation_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, imitation: Any
) -> None:
    task = make_distillation(tmp_path, make_teacher(features=imitation == "features"))
    run = make_run(tmp_path, replace(RECIPE, imitation=imitation))
    train(make_student(), task, replace(run, output=tmp_path / "whole"))

    def stop(progress: Step) -> None:
        if progress.step == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(make_student(), task, run, on_step=stop)
    train(make_student(seed=7), task, run, resume=True)
    assert log_of(run.output) == log_of(tmp_path / "whole")
    for name in ("model.safetensors", "best.safetensors"):
        assert (run.output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_distillation_goes_on_for_more_epochs(tmp_path: Path) -> None:
    task = make_distillation(tmp_path, make_teacher())
    run = make_run(tmp_path, RECIPE)
    train(make_student(), task, run)
    longer = replace(run, recipe=replace(RECIPE, epochs=RECIPE.epochs + 2))
    train(make_student(seed=7), task, longer, resume=True)
    epochs = [line["epoch"] for line in log_of(run.output) if line["kind"] == "epoch"]
    assert epochs == list(range(RECIPE.epochs + 2))


def test_labels_give_top1_and_are_mixed_into_the_loss(tmp_path: Path) -> None:
    task = make_distillation(tmp_path, make_teacher(), labeled=True)
    run = make_run(tmp_path, replace(RECIPE, label_weight=0.25, mixup_alpha=0.0, cutmix_alpha=0.0))
    crops = next(iter(task.batches(run, epoch=0, first_step=0)))
    logits = torch.randn(4, 3)
    answers = torch.from_numpy(task.teacher.engine.run(crops.images.images.numpy(), LOOK))
    ours, theirs = ((x / 2).softmax(1) for x in (logits, answers))
    divergence = 4 * (theirs * (theirs.log() - ours.log())).sum(1).mean()
    rows = range(4)
    crossentropy = -logits.log_softmax(1)[rows, crops.images.labels].mean()
    output = task.forward(lambda _: logits, crops, run)
    torch.testing.assert_close(output.loss, 0.75 * divergence + 0.25 * crossentropy)

    # If the student is the teacher, agreement is 100 % and top-1 is that of the teacher.
    network = make_teacher().engine._network  # type: ignore[attr-defined]
    run = make_run(tmp_path, replace(RECIPE, test_size=48))
    figures = task.measure(network, run, lambda *_: None).figures
    pixels = np.stack([preprocess(picture(i // 4, 1000 + i % 4), LOOK) for i in range(12)])
    right = task.teacher.engine.run(pixels, LOOK).argmax(1) == np.arange(12) // 4
    assert figures == {"agreement": 100.0, "top1": pytest.approx(100 * right.mean())}


def test_teacher_and_student_see_the_same_crop_each_at_its_size(tmp_path: Path) -> None:
    task = make_distillation(tmp_path, make_teacher())
    run = make_run(tmp_path, replace(RECIPE, mixup_alpha=0.0, cutmix_alpha=0.0))
    crops = next(iter(task.batches(run, epoch=0, first_step=0)))
    assert (crops.images.images.shape[-1], crops.student_size) == (48, 32)
    seen: list[torch.Tensor] = []

    def student(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return logits

    shown = crops.images.images
    logits = torch.from_numpy(task.teacher.engine.run(shown.numpy(), LOOK)).requires_grad_()
    # A student that gives the teacher's logits has no loss.
    output = task.forward(student, crops, run)
    assert output.loss.item() == pytest.approx(0, abs=1e-6)
    assert output.sums["agreeing"] == 4
    small = resized(shown.float(), 32) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (LOOK.mean, LOOK.std))
    torch.testing.assert_close(seen[0], (small - mean) / std, rtol=0, atol=1e-5)


def test_the_folded_classifier_equals_projection_and_classifier() -> None:
    torch.manual_seed(0)
    reused = ReusedClassifier(
        6, LinearClassifier(weight=torch.randn(5, 7), bias=torch.randn(5)), seed=3
    )
    x = torch.randn(4, 6)
    features, logits = reused(x)
    assert features.shape == (4, 7)
    torch.testing.assert_close(reused.folded()(x), logits)
    torch.testing.assert_close(reused.eval()(x), logits)
    assert [name for name, _ in reused.named_parameters()] == [
        "projection.weight",
        "projection.bias",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_weight": 0.5}, "label_weight needs images with labels of the teacher's classes"),
        ({"in_chans": 1, "mean": (0.5,), "std": (0.5,)}, "is for RGB images, got a student for 1"),
        ({"imitation": "features"}, "needs the teacher's classifier and a student with a dense"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    task = make_distillation(tmp_path, make_teacher())
    run = make_run(tmp_path, replace(RECIPE, **changes))
    with pytest.raises((DataError, InputError), match=message):
        train(make_student(), task, run)
    assert not run.output.exists()
