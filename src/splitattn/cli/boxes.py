"""What `splitattn predict` writes and draws for a detector."""

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from splitattn.cli.answers import Answering, Format, csv_lines
from splitattn.cli.output import json_line
from splitattn.errors import ImageError, one_line

if TYPE_CHECKING:
    from PIL import Image

    from splitattn.dense.detector import DetectedObject, Detector

    Result = list[DetectedObject] | ImageError

_SCORE, _IOU = 0.3, 0.6
_CSV_HEADER = (
    *("path", "rank", "label", "index", "score", "left", "top", "right", "bottom"),
    *("model", "weights", "error"),
)


def opened(weights: str, *, device: str, score: float | None, iou: float | None) -> Answering:
    """A detector, and how its boxes are written and drawn.

    Args:
        score, iou: see `Detector`; None is the default.

    Raises:
        InputError: a library is missing.
    """
    from splitattn.libraries import require

    require("a detector", "torch", "torchvision")
    from splitattn.dense.detector import Detector

    detector = Detector(weights, device=device, iou=_IOU if iou is None else iou)
    return Answering(
        results=partial(detector.predict_stream, score=_SCORE if score is None else score),
        writers={
            Format.TABLE: _table,
            Format.JSON: partial(_json, detector),
            Format.CSV: partial(_csv, detector),
        },
        csv_header=_CSV_HEADER,
        draw=_draw,
    )


def _draw(source: str | bytes, objects: "list[DetectedObject]") -> "Image.Image":
    from splitattn.dense.drawing import draw_boxes
    from splitattn.images.decode import decode

    return draw_boxes(
        decode(source),
        [each.box for each in objects],
        [each.index for each in objects],
        [f"{one_line(each.label)} {each.score:.0%}" for each in objects],
    )


def _table(name: str, result: "Result") -> str:
    if isinstance(result, ImageError):
        return f"error: {result}\n"
    lines = [one_line(name), *(_line(each) for each in result)]
    return "\n".join(lines if result else [*lines, "     nothing found"]) + "\n"


def _line(found: "DetectedObject") -> str:
    left, top, right, bottom = (f"{side:.0f}" for side in found.box)
    return f"{found.score:8.2f}  {one_line(found.label)}  {left}, {top} to {right}, {bottom}"


def _json(detector: "Detector", name: str, result: "Result") -> str:
    line: dict[str, Any] = {"path": name}
    if isinstance(result, ImageError):
        line["error"] = str(result)
    else:
        line["objects"] = [asdict(each) for each in result]
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
