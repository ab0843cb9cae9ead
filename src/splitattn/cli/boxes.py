"""What `splitattn predict` and `evaluate` write and draw for a detector."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from splitattn.cli.answers import Answering, Format, csv_lines, what_was_measured
from splitattn.cli.output import json_line, say
from splitattn.errors import ImageError, one_line

if TYPE_CHECKING:
    from PIL import Image

    from splitattn.dense.detector import DetectedObject, Detector
    from splitattn.dense.evaluating import DetectionEvaluation
    from splitattn.dense.scoring import ClassScore
    from splitattn.images.loading import Decoding

    Result = list[DetectedObject] | ImageError

_SCORE, _IOU = 0.3, 0.6
_FIGURES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "small",
    "ap_medium": "medium",
    "ap_large": "large",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "mask_ap75": "mask AP75",
}
_NUMBER = re.compile("[0-9]{1,15}")
_CSV_HEADER = (
    *("path", "rank", "label", "index", "score", "left", "top", "right", "bottom"),
    *("model", "weights", "error"),
)


def opened(
    weights: str,
    *,
    engine: str,
    device: str,
    decoding: "Decoding",
    score: float | None,
    iou: float | None,
) -> Answering:
    """A detector, and how its boxes are written and drawn.

    Args:
        engine, device, decoding: see `Detector`.
        score, iou: see `Detector`; None is the default.

    Raises:
        InputError: a library is missing.
    """
    from splitattn.dense.detector import Detector

    detector = Detector(
        weights,
        engine=engine,
        device=device,
        decoding=decoding,
        iou=_IOU if iou is None else iou,
    )
    return Answering(
        results=partial(detector.predict_stream, score=_SCORE if score is None else score),
        writers={
            Format.TABLE: _table,
            Format.JSON: partial(_json, detector),
            Format.CSV: partial(_csv, detector),
            Format.COCO: _CocoResults(detector.category_ids),
        },
        csv_header=_CSV_HEADER,
        coco=("[", "\n]\n"),
        draw=_draw,
    )


def _draw(source: str | bytes, objects: "list[DetectedObject]") -> "Image.Image":
    from splitattn.dense.drawing import draw_objects
    from splitattn.images.decode import decode

    return draw_objects(decode(source), objects)


def _table(name: str, result: "Result") -> str:
    if isinstance(result, ImageError):
        return f"error: {result}\n"
    lines = [one_line(name), *(_line(each) for each in result)]
    return "\n".join(lines if result else [*lines, "     nothing found"]) + "\n"


def _line(found: "DetectedObject") -> str:
    left, top, right, bottom = (f"{side:.0f}" for side in found.box)
    return f"{found.score:8.2f}  {one_line(found.label)}  {left}, {top} to {right}, {bottom}"


def _json(detector: "Detector", name: str, result: "Result") -> str:
    from splitattn.dense.as_json import object_as_json

    line: dict[str, Any] = {"path": name}
    if isinstance(result, ImageError):
        line["error"] = str(result)
    else:
        line["objects"] = [object_as_json(each) for each in result]
        line["model"] = detector.model
        line["weights"] = detector.weights
    return json_line(line)


def _csv(detector: "Detector", name: str, result: "Result") -> str:
    if isinstance(result, ImageError):
        return csv_lines([(name, *[""] * 10, str(result))])
    origin = (detector.model, detector.weights)
    return csv_lines(
        (name, rank, each.label, each.index, each.score, *each.box, *origin, "")
        for rank, each in enumerate(result, start=1)
    )


class _CocoResults:
    """Writes objects as COCO's results, one a line.

    The id of an image is its file's name if that is a number, or else its place in the list. If
    that id is taken, it is the largest one so far plus 1.

    Args:
        category_ids: of each class.
    """

    def __init__(self, category_ids: Sequence[int]) -> None:
        self._category_ids = category_ids
        self._place = 0
        self._used: set[int] = set()
        self._rows = 0

    def __call__(self, name: str, result: "Result") -> str:
        self._place += 1
        stem = PurePath(name).stem
        number = int(stem) if _NUMBER.fullmatch(stem) else self._place
        while number in self._used:
            number = max(self._used) + 1
        self._used.add(number)
        if isinstance(result, ImageError):
            say(f"error: {result}")
            return ""
        return "".join(self._row(number, name, each) for each in result)

    def _row(self, number: int, name: str, found: "DetectedObject") -> str:
        left, top, right, bottom = found.box
        row = {
            "image_id": number,
            "category_id": self._category_ids[found.index],
            "bbox": [left, top, right - left, bottom - top],
            "score": found.score,
            "file_name": name,
        }
        if found.mask:
            row["segmentation"] = found.mask.to_coco()
        self._rows += 1
        return f"{',' if self._rows > 1 else ''}\n{json_line(row).rstrip()}"


def as_dict(measured: "DetectionEvaluation") -> dict[str, Any]:
    """Everything that was measured, as JSON has it."""
    return {
        **what_was_measured(measured),
        "n": measured.images,
        "objects": measured.objects,
        **measured.figures,
        "classes": [
            {"label": each.name, "objects": each.objects, **_by_class(each)}
            for each in measured.by_class
        ],
        "problems": list(measured.problems),
    }


def _by_class(score: "ClassScore") -> dict[str, float | None]:
    """Of one class; those of masks only if there are any."""
    boxes = {"ap": score.ap, "ap50": score.ap50}
    masks = {"mask_ap": score.mask_ap, "mask_ap50": score.mask_ap50}
    return boxes | (masks if score.mask_ap is not None else {})


def print_table(measured: "DetectionEvaluation") -> None:
    """The figures of each class, and of all."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    classes = Table(Column("class", overflow="fold"), box=None, pad_edge=False)
    shown = ["ap", "ap50", *(name for name in ("mask_ap", "mask_ap50") if name in measured.figures)]
    for column in ("objects", *(f"{_FIGURES[name]} %" for name in shown)):
        classes.add_column(column, justify="right")
    for each in measured.by_class:
        values = (getattr(each, name) for name in shown)
        figures = ("-" if value is None else f"{value:.1f}" for value in values)
        classes.add_row(escape(one_line(each.name)), str(each.objects), *figures)
    console = Console()
    console.print(classes)
    console.print()
    figures_of_all = "  ".join(
        f"{name} {measured.figures[key]:.2f} %"
        for key, name in _FIGURES.items()
        if key in measured.figures
    )
    console.print(f"{figures_of_all}  n {measured.images}", highlight=False)
