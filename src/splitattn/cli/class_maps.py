"""What `splitattn predict` and `evaluate` write and draw for a segmenter."""

from functools import partial
from typing import TYPE_CHECKING, Any

from splitattn.cli.answers import Answering, Format, csv_lines, what_was_measured
from splitattn.cli.output import json_line
from splitattn.errors import ImageError, one_line

if TYPE_CHECKING:
    from PIL import Image

    from splitattn.dense.segmenter import SegmentedImage, Segmenter
    from splitattn.dense.segmenter_evaluating import SegmentationEvaluation
    from splitattn.images.loading import Decoding

    Result = SegmentedImage | ImageError

_CSV_HEADER = ("path", "rank", "label", "index", "share", "model", "weights", "error")


def opened(weights: str, *, engine: str, device: str, decoding: "Decoding") -> Answering:
    """A segmenter, and how its class maps are written and drawn."""
    from splitattn.dense.segmenter import Segmenter

    segmenter = Segmenter(weights, engine=engine, device=device, decoding=decoding)
    return Answering(
        results=segmenter.predict_stream,
        writers={
            Format.TABLE: _table,
            Format.JSON: partial(_json, segmenter),
            Format.CSV: partial(_csv, segmenter),
        },
        csv_header=_CSV_HEADER,
        draw=_draw,
        class_map=_class_map,
    )


def _draw(source: str | bytes, found: "SegmentedImage") -> "Image.Image":
    from splitattn.dense.mask_drawing import draw_classes
    from splitattn.images.decode import decode

    return draw_classes(decode(source), found.class_map, found.classes)


def _class_map(_: str | bytes, found: "SegmentedImage") -> "Image.Image":
    from splitattn.dense.mask_drawing import numbered

    return numbered(found.class_map, found.classes)


def _table(name: str, result: "Result") -> str:
    if isinstance(result, ImageError):
        return f"error: {result}\n"
    lines = (f"{100 * each.share:8.2f} %  {one_line(each.label)}\n" for each in result.shares)
    return f"{one_line(name)}\n{''.join(lines)}"


def _json(segmenter: "Segmenter", name: str, result: "Result") -> str:
    from splitattn.dense.as_json import classes_as_json

    line: dict[str, Any] = {"path": name}
    if isinstance(result, ImageError):
        line["error"] = str(result)
    else:
        line["classes"] = classes_as_json(result)
        line["model"] = segmenter.model
        line["weights"] = segmenter.weights
    return json_line(line)


def _csv(segmenter: "Segmenter", name: str, result: "Result") -> str:
    if isinstance(result, ImageError):
        return csv_lines([(name, *[""] * 6, str(result))])
    origin = (segmenter.model, segmenter.weights)
    return csv_lines(
        (name, rank, each.label, each.index, each.share, *origin, "")
        for rank, each in enumerate(result.shares, start=1)
    )


def as_dict(measured: "SegmentationEvaluation") -> dict[str, Any]:
    """Everything that was measured, as JSON has it."""
    return {
        **what_was_measured(measured),
        "n": measured.images,
        **measured.figures,
        "classes": [
            {"label": each.name, "pixels": each.pixels, "iou": each.iou, "accuracy": each.accuracy}
            for each in measured.by_class()
        ],
        "confusion": measured.confusion.tolist(),
        "problems": list(measured.problems),
    }


def print_table(measured: "SegmentationEvaluation") -> None:
    """The figures of each class, and of all."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    classes = Table(Column("class", overflow="fold"), box=None, pad_edge=False)
    for column in ("pixels %", "IoU %", "accuracy %"):
        classes.add_column(column, justify="right")
    pixels = max(int(measured.confusion.sum()), 1)
    for each in measured.by_class():
        shares = (100 * each.pixels / pixels, each.iou, each.accuracy)
        cells = ("-" if share is None else f"{share:.1f}" for share in shares)
        classes.add_row(escape(one_line(each.name)), *cells)
    console = Console()
    console.print(classes)
    console.print()
    figures = measured.figures
    console.print(
        f"mIoU {figures['miou']:.2f} %  accuracy {figures['accuracy']:.2f} %  "
        f"mean accuracy {figures['mean_accuracy']:.2f} %  n {measured.images}",
        highlight=False,
    )
