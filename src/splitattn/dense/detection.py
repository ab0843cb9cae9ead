"""Detection as a task: boxes and their classes are learned and scored as COCO does it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from splitattn import distributed
from splitattn.data.loading import epoch_batches
from splitattn.dense.annotated import AnnotatedImages, read_image
from splitattn.dense.detect import detect
from splitattn.dense.detection_report import DetectionDetails, detection_report
from splitattn.dense.detectors import find_head
from splitattn.dense.loading import DenseAugmentation, DenseBatch, dense_loader
from splitattn.dense.resizing import Sides
from splitattn.dense.scoring import FoundObjects, score
from splitattn.errors import DataError, ImageError, InputError
from splitattn.images.decode import RGB
from splitattn.training.recipes import Recipe
from splitattn.training.report import Report
from splitattn.training.run import Run
from splitattn.training.task import Figure, Measurement, Step, StepOutput, Task
from splitattn.training.unreadable import Unreadable
from splitattn.weights.metadata import ModelMetadata


@dataclass(frozen=True, kw_only=True)
class Detection(Task[DenseBatch]):
    """Learn where objects are, and their classes.

    Attributes:
        model: name of the backbone, written into the result.
        head: see `create_detector`.
        train: the images to learn from.
        val: the images to measure on after each epoch, of the same classes in the same order.
    """

    name: ClassVar[str] = "detection"
    unit: ClassVar[str] = "images"
    formats: ClassVar[Mapping[str, Figure]] = {
        "size": Figure(label="", unit="px", decimals=0),
        "loss": Figure(label="loss"),
        "ap": Figure(label="AP", unit="%", decimals=2),
        "ap50": Figure(label="AP50", unit="%", decimals=2),
        "ap75": Figure(label="AP75", unit="%", decimals=2),
    }
    best: ClassVar[str | None] = "ap"

    model: str
    head: str
    train: AnnotatedImages
    val: AnnotatedImages
    _unreadable: Unreadable = field(default_factory=Unreadable, init=False, repr=False)

    @property
    def examples(self) -> int:
        return len(self.train)

    def identity(self) -> dict[str, Any]:
        content = sha256()
        for objects in (*self.train.objects, *self.val.objects):
            content.update(objects.boxes.tobytes() + objects.labels.tobytes() + b";")
        return {
            "model": self.model,
            "head": self.head,
            "classes": list(self.train.classes),
            "images": [len(self.train), len(self.val), content.hexdigest()],
        }

    def check(self, run: Run) -> None:
        if run.recipe.in_chans != RGB:
            raise InputError(f"in_chans must be {RGB} for detection, got {run.recipe.in_chans}")
        if self.train.origin == self.val.origin:
            raise DataError(
                "train and val must be different images, got the same ones for both, from "
                f"{self.train.origin}"
            )
        for split, data in (("train", self.train), ("val", self.val)):
            if not data.count():
                raise DataError(f"{split} must have objects, got none in {len(data)} images")

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        transform = getattr(network, "transform", None)
        if transform is None:
            raise InputError("the network must be one of create_detector")
        expected = recipe.preprocessing
        transform.image_mean, transform.image_std = list(expected.mean), list(expected.std)
        super().prepare(network, recipe)
        self._unreadable.clear()

    def batches(self, run: Run, epoch: int, first_step: int) -> Iterable[DenseBatch]:
        recipe = run.recipe
        return dense_loader(
            self.train,
            DenseAugmentation(
                sides=sides(recipe, recipe.size_in(epoch)),
                zoom=recipe.zoom,
                color_jitter=recipe.color_jitter,
            ),
            batches=epoch_batches(
                len(self.train),
                batch_size=recipe.batch_size,
                seed=recipe.seed,
                epoch=epoch,
                first_step=first_step,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                accumulation=run.accumulation,
            ),
            workers=run.workers,
            seed=recipe.seed,
            epoch=epoch,
        )

    def forward(self, network: Callable[..., Any], batch: DenseBatch, run: Run) -> StepOutput:
        device, first_label = run.device, find_head(self.head).first_label
        images = [image.to(device, non_blocking=True).float() / 255 for image in batch.images]
        targets = [
            {"boxes": boxes.to(device), "labels": labels.to(device) + first_label}
            for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
        ]
        losses: dict[str, Tensor] = network(images, targets)
        loss = torch.stack([*losses.values()]).sum()
        sums: dict[str, Tensor | float] = {
            "loss": loss.detach() * len(images),
            **{f"loss_{name}": value.detach() * len(images) for name, value in losses.items()},
            "unreadable": self._unreadable.note("train", batch.problems),
        }
        return StepOutput(loss, sums)

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        return {name: value / examples for name, value in sums.items() if name != "unreadable"}

    def watch(self, step: Step, sums: Mapping[str, float], run: Run) -> None:  # noqa: ARG002
        found = self._unreadable
        found.in_train += round(sums["unreadable"])
        found.check("train", found.in_train, of=len(self.train), folder=run.output)

    def measure(self, network: nn.Module, run: Run, poll: Callable[[], None]) -> Measurement:
        measured = sides(run.recipe, run.recipe.test_size)
        first_label = find_head(self.head).first_label
        own: list[tuple[int, FoundObjects | str]] = []
        # Image by image, so that neither padding nor the number of processes changes a figure.
        for index in range(distributed.rank(), len(self.val), distributed.world_size()):
            poll()
            try:
                image = read_image(self.val, index)
            except ImageError as error:
                own.append((index, str(error)))
                continue
            own.append((index, detect(network, image, measured, run.device, first_label)))
        everywhere = dict(sorted(each for part in distributed.gathered(own) for each in part))
        problems = [each for each in everywhere.values() if isinstance(each, str)]
        self._unreadable.note("val", problems)
        self._unreadable.check("val", len(problems), of=len(self.val), folder=run.output)
        found = [FoundObjects.none() if isinstance(e, str) else e for e in everywhere.values()]
        scores = score(self.val, found)
        return Measurement(
            figures=scores.figures,
            details=DetectionDetails(scores=scores, found=tuple(found), problems=tuple(problems)),
        )

    def end_epoch(self, epoch: int, run: Run) -> dict[str, float]:
        self._unreadable.gather()
        return {"size": run.recipe.size_in(epoch), "unreadable": len(self._unreadable.lines)}

    def metadata(self, run: Run, measured: Measurement | None) -> ModelMetadata:
        figures = {**measured.figures, "n": len(self.val)} if measured else {}
        recipe = run.recipe
        found = sides(recipe, recipe.test_size)
        return ModelMetadata(
            model=self.model,
            classes=self.train.classes,
            preprocessing=recipe.preprocessing,
            recipe=asdict(recipe),
            metrics=figures,
            head={
                "name": self.head,
                "channels": recipe.head_channels,
                "short_side": found.short,
                "long_side": found.long,
            },
        )

    def write_files(self, folder: Path) -> None:
        self._unreadable.write(folder)

    def report(self, measured: Measurement) -> Report:
        title = f"{self.model} finds {len(self.train.classes)} classes"
        notes = (*self.train.notes, *self.val.notes)
        return detection_report(title, measured.details, self.val, notes)

    def summary(self, measured: Measurement) -> str:
        shown = [self.formats[name].text(measured.figures[name]) for name in ("ap", "ap50")]
        return f"{', '.join(shown)} on {len(self.val)} images"

    def state_dict(self) -> dict[str, Any]:
        return {"unreadable": self._unreadable.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._unreadable.load_state_dict(state["unreadable"])


def sides(recipe: Recipe, short: int) -> Sides:
    """The sides of images whose shorter one is `short`, with the recipe's proportion."""
    return Sides(short=short, long=round(short * recipe.longest_side))
