"""COCO's figures of detections."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitattn.dense.annotated import AnnotatedImages
from splitattn.dense.found import FoundObjects
from splitattn.dense.outlines import to_coco

# Indices into COCO's `stats`.
_STATS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5}
# Prefix of the figures of masks.
_MASK = "mask_"


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """The figures of one class, in percent; None where it has no objects.

    Attributes:
        name: of the class.
        objects: how many of it there are, crowds left out.
        ap, ap50, mask_ap, mask_ap50: see `DetectionScores`.
    """

    name: str
    objects: int
    ap: float | None
    ap50: float | None
    mask_ap: float | None = None
    mask_ap50: float | None = None


@dataclass(frozen=True, kw_only=True)
class DetectionScores:
    """COCO's figures, in percent.

    Attributes:
        figures: "ap" is average precision, the mean over classes and IoU 0.50 to 0.95; "ap50" and
            "ap75" are at IoU 0.50 and 0.75. "ap_small", "ap_medium" and "ap_large" are "ap" of
            objects below 32 x 32 pixels, up to 96 x 96, and larger; sizes without objects are
            missing. "mask_ap" and so on are the same for masks, if the detector finds them.
        by_class: in the order of the classes.
        images, objects: how many were measured.
    """

    figures: dict[str, float]
    by_class: tuple[ClassScore, ...]
    images: int
    objects: int


def score(data: AnnotatedImages, found: Sequence[FoundObjects]) -> DetectionScores:
    """Score what was found in each image of `data`, as pycocotools does it.

    Masks are scored too if something was found with a mask; see `with_outlines`.

    Source: COCO's detection evaluation, with at most 100 detections an image.
    """
    from faster_coco_eval import COCO

    truth = COCO(_ground_truth(data))
    measured = {"": _evaluated(truth, _results(found), "bbox")}
    if any(each.masks is not None for each in found):
        measured[_MASK] = _evaluated(truth, _mask_results(found, data.sizes), "segm")
    counts = np.zeros(len(data.classes), dtype=np.int64)
    for objects in data.objects:
        np.add.at(counts, objects.labels[~objects.crowd], 1)
    return DetectionScores(
        figures={
            f"{kind}{name}": value
            for kind, each in measured.items()
            for name, value in each.figures.items()
        },
        by_class=tuple(
            ClassScore(
                name=name,
                objects=int(counts[i]),
                **{
                    f"{kind}{figure}": _mean(part[:, :, i])
                    for kind, each in measured.items()
                    for figure, part in (("ap", each.precision), ("ap50", each.precision[:1]))
                },
            )
            for i, name in enumerate(data.classes)
        ),
        images=len(data),
        objects=data.count(),
    )


@dataclass(frozen=True, kw_only=True)
class _Evaluated:
    """Figures in percent, and precision by IoU, recall and class."""

    figures: dict[str, float]
    precision: NDArray[np.float64]


def _evaluated(truth: Any, rows: list[dict[str, Any]], kind: str) -> _Evaluated:
    from faster_coco_eval import COCOeval_faster

    # COCO's code cannot load an empty list. A box with score 0, far outside, changes no figure.
    evaluation = COCOeval_faster(
        truth, truth.loadRes(rows or [_nothing()]), kind, print_function=_silent
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats = {name: float(evaluation.stats[i]) for name, i in _STATS.items()}
    return _Evaluated(
        figures={name: 100 * value for name, value in stats.items() if value >= 0},
        precision=np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1],
    )


def _mean(precision: NDArray[np.float64]) -> float | None:
    """The mean in percent, or None if there are no objects, for which COCO writes -1."""
    return float(100 * precision.mean()) if precision.size and precision.min() >= 0 else None


def _ground_truth(data: AnnotatedImages) -> dict[str, Any]:
    """`data` as a COCO file. Ids count from 1: COCO's code takes 0 for no match."""
    annotations: list[dict[str, Any]] = []
    for image, objects in enumerate(data.objects, 1):
        for i, box in enumerate(objects.boxes):
            outline = objects.outlines[i]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(objects.labels[i]) + 1,
                    "bbox": _xywh(box),
                    "area": float(objects.areas[i]),
                    "iscrowd": int(objects.crowd[i]),
                    "segmentation": to_coco((_rectangle(box),) if outline is None else outline),
                }
            )
    return {
        "images": [
            {"id": i, "width": width, "height": height}
            for i, (width, height) in enumerate(data.sizes, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(data.classes, 1)],
    }


def _results(found: Sequence[FoundObjects]) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": int(label) + 1, "bbox": _xywh(box), "score": float(s)}
        for image, objects in enumerate(found, 1)
        for box, label, s in zip(objects.boxes, objects.labels, objects.scores, strict=True)
    ]


def _mask_results(
    found: Sequence[FoundObjects], sizes: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Masks as COCO's results. They have no boxes, so that areas are those of the masks."""
    return [
        {
            "image_id": image,
            "category_id": int(label) + 1,
            "segmentation": mask.to_coco(),
            "score": float(score),
        }
        for image, (objects, size) in enumerate(zip(found, sizes, strict=True), 1)
        for label, score, mask in zip(
            objects.labels, objects.scores, objects.run_lengths(size), strict=False
        )
    ]


def _rectangle(box: NDArray[np.float64]) -> NDArray[np.float64]:
    left, top, right, bottom = box.tolist()
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _nothing() -> dict[str, Any]:
    return {"image_id": 1, "category_id": 1, "bbox": [-9.0, -9.0, 1.0, 1.0], "score": 0.0}


def _xywh(box: NDArray[Any]) -> list[float]:
    left, top, right, bottom = map(float, box)
    return [left, top, right - left, bottom - top]


def _silent(*_: object) -> None:
    """Discards what COCO's code would print."""
