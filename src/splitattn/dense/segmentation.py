"""Segmentation as a task: the class of every pixel is learned, and scored by overlap."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitattn import distributed
from splitattn.data.normalization import normalize
from splitattn.dense.mask_loading import MaskBatch, mask_loader
from splitattn.dense.mask_scoring import ScoredMasks, SegmentationScores, score_masks
from splitattn.dense.masks import IGNORED, MaskedImages, one_class_fault
from splitattn.dense.segment import segment
from splitattn.dense.segmentation_report import SegmentationDetails, segmentation_report
from splitattn.dense.segmenters import find_output_stride
from splitattn.dense.sheet import mask_augmentation_in
from splitattn.dense.task import DenseTask, sides
from splitattn.dense.torch_segment import torch_logits
from splitattn.errors import DataError, InputError
from splitattn.graph.segmentation import MULTIPLE
from splitattn.training.recipes import Recipe
from splitattn.training.report import Report
from splitattn.training.run import Run
from splitattn.training.task import Figure, Measurement, StepOutput


@dataclass(frozen=True, kw_only=True)
class Segmentation(DenseTask[MaskBatch, MaskedImages]):
    """Learn the class of every pixel.

    Attributes:
        head: one of `create_segmenter`.
        output_stride: of the backbone. It is written into the result's metadata, because tensors
            do not show it. None is the head's default.
    """

    name: ClassVar[str] = "segmentation"
    formats: ClassVar[Mapping[str, Figure]] = {
        "size": Figure(label="", unit="px", decimals=0),
        "loss": Figure(label="loss"),
        "miou": Figure(label="mIoU", unit="%", decimals=2),
        "accuracy": Figure(label="accuracy", unit="%", decimals=2),
    }
    best: ClassVar[str | None] = "miou"

    output_stride: int | None = None

    @property
    def unread(self) -> dict[str, str]:
        two_stages = dict.fromkeys(("box_head", "regions_per_image"), "leave it out")
        return super().unread | two_stages | dict.fromkeys(("mosaic", "multi_scale"), "use zoom")

    def identity(self) -> dict[str, Any]:
        content = sha256(self.train.pixels.tobytes() + b";" + self.val.pixels.tobytes())
        return {
            "model": self.model,
            "head": self.head,
            "output_stride": find_output_stride(self.head, self.output_stride),
            "classes": list(self.train.classes),
            "images": [len(self.train), len(self.val), content.hexdigest()],
        }

    def check(self, run: Run) -> None:
        super().check(run)
        if fault := one_class_fault(self.train):
            raise DataError(f"train {fault}")

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        if not hasattr(network, "backbone"):
            raise InputError("the network must be one of create_segmenter")
        stride = find_output_stride(self.head, self.output_stride)
        if (got := getattr(network.backbone, "output_stride", stride)) != stride:
            raise InputError(
                f"the network must have output stride {stride}, as the task says, got {got}: "
                f"pass output_stride={got} to Segmentation"
            )
        if recipe.auxiliary_weight and getattr(network, "auxiliary", None) is None:
            raise InputError(
                "auxiliary_weight must be 0 for a network without an auxiliary head, got "
                f"{recipe.auxiliary_weight}: create_segmenter makes one with auxiliary=True"
            )
        super().prepare(network, recipe)
        self.begin()

    def fold(self, network: Any) -> None:
        """Remove the auxiliary head, which the result does not have."""
        network.auxiliary = None

    def head_facts(self, recipe: Recipe) -> dict[str, Any]:  # noqa: ARG002
        return {"output_stride": find_output_stride(self.head, self.output_stride)}

    def batches(self, run: Run, epoch: int, first_step: int) -> Iterable[MaskBatch]:
        recipe = run.recipe
        return mask_loader(
            self.train,
            mask_augmentation_in(recipe, epoch),
            batches=self.indices(run, epoch, first_step),
            workers=run.workers,
            seed=recipe.seed,
            epoch=epoch,
        )

    def forward(self, network: Callable[..., Any], batch: MaskBatch, run: Run) -> StepOutput:
        recipe, device = run.recipe, run.device
        images = normalize(batch.images.to(device, non_blocking=True), recipe.preprocessing)
        images = images.contiguous(memory_format=torch.channels_last)
        masks = batch.masks.to(device, non_blocking=True).long()
        outputs = network(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        logits, *auxiliary = (
            F.interpolate(each.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
            for each in outputs
        )
        loss = self._loss(logits, masks, recipe)
        for each in auxiliary:
            loss = loss + recipe.auxiliary_weight * self._loss(each, masks, recipe)
        counted = masks != IGNORED
        right = (logits.detach().argmax(1) == masks) & counted
        shares = right.sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)
        sums: dict[str, Tensor | float] = {
            "loss": loss.detach() * len(masks),
            "accuracy": 100 * shares.sum(),
            "unreadable": self.note_train(batch.problems),
        }
        return StepOutput(loss, sums)

    def _loss(self, logits: Tensor, masks: Tensor, recipe: Recipe) -> Tensor:
        balanced = recipe.class_weights == "balanced"
        loss = F.cross_entropy(
            logits,
            masks,
            weight=self._balancing_weights.to(masks.device) if balanced else None,
            ignore_index=IGNORED,
            label_smoothing=recipe.label_smoothing,
            reduction="sum",
        )
        # A crop may show nothing but pixels of no class.
        return loss / (masks != IGNORED).sum().clamp(min=1)

    @cached_property
    def _balancing_weights(self) -> Tensor:
        """Weights of the classes (C,): 1 / sqrt(share of the pixels), with mean 1 over pixels.

        With 1 / share, as for images, the rarest class would outweigh all others.
        """
        pixels = torch.from_numpy(self.train.pixels.sum(0)).double()
        weights = (pixels.sum() / pixels.clamp(min=1)).sqrt()
        weights[pixels == 0] = 0.0
        return (weights * pixels.sum() / (weights * pixels).sum()).float()

    def measure(
        self, network: nn.Module, run: Run, on_measured: Callable[[int, int], None]
    ) -> Measurement:
        recipe = run.recipe
        answer = partial(
            segment,
            torch_logits(network, run.device),
            sides=sides(recipe, recipe.test_size, MULTIPLE),
            preprocessing=recipe.preprocessing,
        )
        own = score_masks(self.val, answer, self.own_images(), on_measured)
        scored = ScoredMasks.merged(distributed.gathered(own))
        self.note_val(scored.problems, run)
        scores = SegmentationScores(
            classes=self.val.classes,
            confusion=scored.confusion,
            images=len(self.val) - len(scored.problems),
        )
        details = SegmentationDetails(scores=scores, worst=scored.worst, problems=scored.problems)
        return Measurement(figures=scores.figures, details=details)

    def report(self, run: Run, measured: Measurement) -> Report:  # noqa: ARG002
        title = f"{self.model} tells {len(self.train.classes)} classes apart, pixel by pixel"
        return segmentation_report(title, measured.details, self.val, self.notes)

    def summary(self, measured: Measurement) -> str:
        shown = [self.formats[name].text(measured.figures[name]) for name in ("miou", "accuracy")]
        return f"{', '.join(shown)} on {measured.details.scores.images} images"
