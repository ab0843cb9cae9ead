"""The training loop: a built network and a data set go in, trained weights come out."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitattn.data.loading import derive_seed, train_loader
from splitattn.data.sources import LabelledImages
from splitattn.errors import DataError, InputError, WeightsError
from splitattn.evaluation import Evaluation, evaluate
from splitattn.files import replacing
from splitattn.images.preprocess import normalise
from splitattn.nn.resnest import ResNeSt
from splitattn.training.recipes import Recipe
from splitattn.weights.catalogue import Preprocessing
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands, told after every step.

    `loss` is that of the step, `seconds` what the step took.
    """

    epoch: int
    step: int
    steps_per_epoch: int
    loss: float
    learning_rate: float
    images: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training needs besides the network: how, on what, where to.

    Attributes:
        name: the model's name, written into the result.
        recipe: how.
        train: the images to learn from.
        val: the images to measure on after each epoch.
        output: folder for `last.pt`, `log.jsonl` and `model.safetensors`.
        device: where to compute.
        workers: processes that decode images.
    """

    name: str
    recipe: Recipe
    train: LabelledImages
    val: LabelledImages
    output: Path
    device: torch.device
    workers: int = 1

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared when the network is measured."""
        return Preprocessing(size=self.recipe.test_size, crop_fraction=1.0)

    @property
    def checkpoint(self) -> Path:
        """What a resumed training goes on from."""
        return self.output / "last.pt"

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training images."""
        return len(self.train) // self.recipe.batch_size


def train(
    model: ResNeSt,
    run: Run,
    *,
    resume: bool = False,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Evaluation:
    """Train `model` in place and write `model.safetensors` into the output folder.

    After each epoch a checkpoint, `last.pt`, replaces the previous one, and a line is added to
    `log.jsonl`. On the CPU, a run that is resumed from it equals an uninterrupted one bit for bit.

    Args:
        resume: continue from the output folder's checkpoint, where there is one.
        on_step: told after each step.
        on_epoch: told each line of the log.

    Raises:
        DataError: the data set is too small for the recipe, or validates on what it trains on, or
            the splits differ in their classes.
        InputError: the output folder holds another training or cannot be written; the loss is no
            longer finite.
    """
    _check_data(run)
    recipe = run.recipe
    model.to(run.device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, recipe)
    log: list[dict[str, Any]] = []
    if run.checkpoint.exists():
        if not resume:
            raise InputError(
                f"output must be a new folder, got {run.output} with a training in it; "
                "add --resume to continue it"
            )
        log = _restore(model, optimizer, run)
    else:
        _make_output(run)

    for epoch in range(len(log), recipe.epochs):
        model.set_drop_block(recipe.drop_block * epoch / max(recipe.epochs - 1, 1))
        line = _train_epoch(model, optimizer, run, epoch, on_step)
        measured = _evaluate(model, run)
        line |= {"val_loss": measured.loss, "val_top1": measured.top1, "val_top5": measured.top5}
        log.append(line)
        _save(model, optimizer, run, log)
        on_epoch(line)
    return _finish(model, run)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of `step`: linear warm-up from zero, then half a cosine to zero.

    The peak is `recipe.learning_rate * batch_size / 256` (arXiv 1706.02677, section 2.1).
    """
    peak = recipe.learning_rate * recipe.batch_size / 256
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
    return peak * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Nesterov SGD that decays the weights of convolutions and dense layers and nothing else.

    The kind of the module decides, not its name: by name, the official code decays six norms.
    """
    decayed = [
        module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    is_decayed = {id(weight) for weight in decayed}
    others = [weight for weight in model.parameters() if id(weight) not in is_decayed]
    return torch.optim.SGD(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=True,
    )


def mixup_loss(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    generator: np.random.Generator,
) -> Tensor:
    """Cross-entropy of a batch mixed with its own reverse (arXiv 1710.09412), one share for all.

    Images (B, 3, H, W), labels (B,), the result a scalar.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)

    if not recipe.mixup_alpha:
        return loss(model(images).float(), labels)
    share = generator.beta(recipe.mixup_alpha, recipe.mixup_alpha)
    logits = model(images.lerp(images.flip(0), 1 - share)).float()
    return share * loss(logits, labels) + (1 - share) * loss(logits, labels.flip(0))


def _check_data(run: Run) -> None:
    if run.train.classes != run.val.classes:
        odd = set(run.train.classes) ^ set(run.val.classes)
        raise DataError(
            f"train and val must have the same classes, got {len(odd)} in only one of them: "
            f"{', '.join(sorted(odd)[:5])}"
        )
    if run.train.origin == run.val.origin:
        raise DataError(
            "train and val must be different images, got the same ones for both, from "
            f"{run.train.origin}; put some of them into val/"
        )
    if not run.steps_per_epoch:
        raise DataError(
            f"training needs at least one full batch of {run.recipe.batch_size} images, "
            f"got {len(run.train)}; set batch_size lower"
        )


def _train_epoch(
    model: ResNeSt,
    optimizer: torch.optim.Optimizer,
    run: Run,
    epoch: int,
    on_step: Callable[[Progress], None],
) -> dict[str, Any]:
    recipe = run.recipe
    # Every random choice of an epoch follows from the seed and the epoch, so a checkpoint between
    # epochs needs no random state.
    torch.manual_seed(derive_seed(recipe.seed, epoch))
    generator = np.random.default_rng((recipe.seed, epoch))
    loader = train_loader(
        run.train,
        size=recipe.size_in(epoch),
        crop_scale=recipe.crop_scale,
        batch_size=recipe.batch_size,
        workers=run.workers,
        seed=recipe.seed,
        epoch=epoch,
    )
    model.train()
    losses: list[float] = []
    unreadable = 0
    begin = last = perf_counter()
    for i, batch in enumerate(loader):
        unreadable += len(batch.problems)
        if len(batch.labels) < 2:
            continue
        step = epoch * run.steps_per_epoch + i
        rate = learning_rate(recipe, step, run.steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = normalise(batch.images.to(run.device), run.preprocessing)
        images = images.contiguous(memory_format=torch.channels_last)
        low = recipe.precision != "float32"
        with torch.autocast(run.device.type, torch.bfloat16, enabled=low):
            loss = mixup_loss(model, images, batch.labels.to(run.device), recipe, generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise InputError(
                f"the loss must stay finite, got {losses[-1]} at step {step} with learning rate "
                f"{rate:.4g}; lower learning_rate or raise warmup_epochs"
            )
        now = perf_counter()
        on_step(
            Progress(
                epoch=epoch,
                step=i,
                steps_per_epoch=run.steps_per_epoch,
                loss=losses[-1],
                learning_rate=rate,
                images=len(batch.labels),
                seconds=now - last,
            )
        )
        last = now
    return {
        "epoch": epoch,
        "size": recipe.size_in(epoch),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "train_loss": sum(losses) / max(len(losses), 1),
        "unreadable": unreadable,
        "seconds": round(perf_counter() - begin, 1),
    }


def _evaluate(model: ResNeSt, run: Run) -> Evaluation:
    return evaluate(model, run.val, run.preprocessing, device=run.device, workers=run.workers)


def _make_output(run: Run) -> None:
    try:
        run.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(run.output, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"output must be a folder to write to, got {path}: {error.strerror or error}")


def _identity(run: Run) -> dict[str, Any]:
    """What must be the same for a training to be the same."""
    return {"model": run.name, "classes": list(run.train.classes), "recipe": asdict(run.recipe)}


def _save(
    model: ResNeSt, optimizer: torch.optim.Optimizer, run: Run, log: list[dict[str, Any]]
) -> None:
    state = {
        "identity": _identity(run),
        "weights": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "log": log,
    }
    try:
        with replacing(run.checkpoint) as path:
            torch.save(state, path)
        with replacing(run.output / "log.jsonl") as path:
            path.write_text("".join(f"{json.dumps(line)}\n" for line in log), encoding="utf-8")
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = error if isinstance(error, OSError) else OSError(" ".join(str(error).split()))
        raise _unwritable(run.output, reason) from error


def _restore(model: ResNeSt, optimizer: torch.optim.Optimizer, run: Run) -> list[dict[str, Any]]:
    """Load the checkpoint of this very training; the log of the epochs that it has seen."""
    try:
        state = torch.load(run.checkpoint, weights_only=True, map_location="cpu")
        found, expected = state["identity"], _identity(run)
        changed = [key for key in ("model", "classes") if found[key] != expected[key]]
        changed += [k for k, v in expected["recipe"].items() if found["recipe"].get(k) != v]
        if changed:
            raise InputError(
                f"a training resumes as it began, got another {', '.join(changed)}; "
                "choose a new output folder"
            )
        model.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        return list(state["log"])
    except InputError:
        raise
    except Exception as error:  # whatever damaged bytes make torch raise
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{run.checkpoint} is no checkpoint of this training ({reason}); "
            "choose a new output folder"
        ) from error


def _finish(model: ResNeSt, run: Run) -> Evaluation:
    """Round the weights to how they are saved, measure those, and write them."""
    state = {
        key: value.half()
        if run.recipe.saved_precision == "float16" and value.ndim > 1
        else value.clone()
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    measured = _evaluate(model, run)
    metadata = ModelMetadata(
        model=run.name,
        classes=run.train.classes,
        preprocessing=run.preprocessing,
        recipe=asdict(run.recipe),
        metrics={
            "top1": measured.top1,
            "top5": measured.top5,
            "loss": measured.loss,
            "n": measured.n,
        },
    )
    write_checkpoint(run.output / "model.safetensors", state, metadata)
    return measured
