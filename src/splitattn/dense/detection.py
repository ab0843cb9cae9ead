"""Detection as a task: boxes and their classes are learned and scored as COCO does it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from splitattn import distributed
from splitattn.dense.annotated import AnnotatedImages, read_image
from splitattn.dense.detection_report import DetectionDetails, detection_report
from splitattn.dense.detectors import DETECTION_HEADS, find_head
from splitattn.dense.finding import find
from splitattn.dense.found import FoundObjects
from splitattn.dense.loading import DenseBatch, dense_loader
from splitattn.dense.outlines import to_coco
from splitattn.dense.scoring import score
from splitattn.dense.sheet import augmentation_in
from splitattn.dense.task import DenseTask, sides
from splitattn.dense.torch_finding import TorchFinder
from splitattn.errors import DataError, ImageError, InputError
from splitattn.graph.detection import IOU
from splitattn.training.recipes import Recipe
from splitattn.training.report import Report
from splitattn.training.run import Run
from splitattn.training.task import Figure, Measurement, StepOutput


@dataclass(frozen=True, kw_only=True)
class Detection(DenseTask[DenseBatch, AnnotatedImages]):
    """Learn where objects are, and their classes; `head` is one of `create_detector`."""

    name: ClassVar[str] = "detection"
    formats: ClassVar[Mapping[str, Figure]] = {
        "size": Figure(label="", unit="px", decimals=0),
        "loss": Figure(label="loss"),
        "ap": Figure(label="AP", unit="%", decimals=2),
        "ap50": Figure(label="AP50", unit="%", decimals=2),
        "ap75": Figure(label="AP75", unit="%", decimals=2),
    }
    best: ClassVar[str | None] = "ap"
    masks: ClassVar[bool] = False

    @property
    def unread(self) -> dict[str, str]:
        others = ("class_weights", "label_smoothing", "auxiliary_weight")
        found = super().unread | dict.fromkeys(others, "leave it out")
        if find_head(self.head).stages == 1:
            heads = " or ".join(name for name, row in DETECTION_HEADS.items() if row.stages == 2)
            fix = f"head {self.head} has one stage; use {heads}, or set it to"
            found["box_head"] = f"{fix} {Recipe.box_head}"
            found["regions_per_image"] = f"{fix} {Recipe.regions_per_image}"
        return found

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
        super().check(run)
        for split, data in (("train", self.train), ("val", self.val)):
            if not data.count():
                raise DataError(f"{split} must have objects, got none in {len(data)} images")

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        transform = getattr(network, "transform", None)
        if transform is None:
            raise InputError("the network must be one of create_detector")
        expected = recipe.preprocessing
        transform.image_mean, transform.image_std = list(expected.mean), list(expected.std)
        if heads := getattr(network, "roi_heads", None):
            heads.fg_bg_sampler.batch_size_per_image = recipe.regions_per_image
        super().prepare(network, recipe)
        self.begin()

    def head_facts(self, recipe: Recipe) -> dict[str, Any]:
        two_stages = find_head(self.head).stages == 2
        ids = [*self.train.category_ids]
        return {
            **({"box_head": recipe.box_head} if two_stages else {}),
            **({"category_ids": ids} if ids else {}),
        }

    def batches(self, run: Run, epoch: int, first_step: int) -> Iterable[DenseBatch]:
        recipe = run.recipe
        return dense_loader(
            self.train,
            augmentation_in(recipe, epoch),
            batches=self.indices(run, epoch, first_step),
            workers=run.workers,
            seed=recipe.seed,
            epoch=epoch,
            masks=self.masks,
        )

    def forward(self, network: Callable[..., Any], batch: DenseBatch, run: Run) -> StepOutput:
        device, first_label = run.device, find_head(self.head).first_label
        images = [image.to(device, non_blocking=True).float() / 255 for image in batch.images]
        targets = [
            {"boxes": boxes.to(device), "labels": labels.to(device) + first_label}
            for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
        ]
        for target, masks in zip(targets, batch.masks or (), strict=False):
            target["masks"] = masks.to(device)
        losses: dict[str, Tensor] = network(images, targets)
        loss = torch.stack([*losses.values()]).sum()
        sums: dict[str, Tensor | float] = {
            "loss": loss.detach() * len(images),
            **{
                f"loss_{name.removeprefix('loss_')}": value.detach() * len(images)
                for name, value in losses.items()
            },
            "unreadable": self.note_train(batch.problems),
        }
        return StepOutput(loss, sums)

    def measure(
        self, network: nn.Module, run: Run, on_measured: Callable[[int, int], None]
    ) -> Measurement:
        measured = sides(run.recipe, run.recipe.test_size)
        finder = TorchFinder(network, run.device, find_head(self.head).first_label)
        own: list[tuple[int, FoundObjects | str]] = []
        for index in self.own_images():
            on_measured(1, len(self.val))
            try:
                image = read_image(self.val, index)
            except ImageError as error:
                own.append((index, str(error)))
                continue
            own.append((index, find(finder, image, measured, iou=IOU)))
        everywhere = dict(sorted(each for part in distributed.gathered(own) for each in part))
        problems = tuple(each for each in everywhere.values() if isinstance(each, str))
        self.note_val(problems, run)
        found = [FoundObjects.none() if isinstance(e, str) else e for e in everywhere.values()]
        scores = score(self.val, found)
        return Measurement(
            figures=scores.figures,
            details=DetectionDetails(scores=scores, found=tuple(found), problems=problems),
        )

    def report(self, run: Run, measured: Measurement) -> Report:  # noqa: ARG002
        title = f"{self.model} finds {len(self.train.classes)} classes"
        return detection_report(title, measured.details, self.val, self.notes)

    def summary(self, measured: Measurement) -> str:
        kind = "mask_" if self.masks else ""
        shown = [
            self.formats[name].text(measured.figures.get(name, 0.0))
            for name in (f"{kind}ap", f"{kind}ap50")
        ]
        return f"{', '.join(shown)} on {len(self.val)} images"


@dataclass(frozen=True, kw_only=True)
class Instances(Detection):
    """Learn where objects are, their classes and their pixels; see `with_outlines`."""

    formats: ClassVar[Mapping[str, Figure]] = {
        **Detection.formats,
        "mask_ap": Figure(label="mask AP", unit="%", decimals=2),
        "mask_ap50": Figure(label="mask AP50", unit="%", decimals=2),
        "mask_ap75": Figure(label="mask AP75", unit="%", decimals=2),
    }
    best: ClassVar[str | None] = "mask_ap"
    masks: ClassVar[bool] = True

    def identity(self) -> dict[str, Any]:
        outlines = sha256()
        for objects in (*self.train.objects, *self.val.objects):
            outlines.update(repr([o and to_coco(o) for o in objects.outlines]).encode())
        return super().identity() | {"outlines": outlines.hexdigest()}

    def head_facts(self, recipe: Recipe) -> dict[str, Any]:
        return super().head_facts(recipe) | {"masks": True}
