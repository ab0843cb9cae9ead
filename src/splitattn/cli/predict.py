"""`splitattn predict`: images become labels."""

import sys
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitattn.cli import boxes, class_maps
from splitattn.cli.answers import Answering, Format, csv_lines
from splitattn.cli.drawing import Pictures, check_folder
from splitattn.cli.options import (
    Device,
    Engine,
    Model,
    Output,
    OutputNames,
    Threshold,
    Weights,
    WhiteLevel,
    Workers,
)
from splitattn.cli.output import check_output, json_line, say, writing
from splitattn.cli.stdin import check_given, images_given
from splitattn.errors import ImageError, InputError, one_line
from splitattn.files import exists, is_file

if TYPE_CHECKING:
    from PIL import Image

    from splitattn.classifier import Classifier, Prediction
    from splitattn.images.loading import Decoding as DecodingName

    Result = list[Prediction] | ImageError

_CSV_HEADER = ("path", "rank", "label", "index", "probability", "model", "weights", "error")


# The format by the ending of --output, where --format is not given.
_BY_ENDING = {".json": Format.JSON, ".jsonl": Format.JSON, ".csv": Format.CSV}
# What COCO's results are written as.
_WRITTEN_AS = {Format.COCO: Format.JSON}


# For up to so many image files, a quick start saves more time than the slower network costs.
_FEW = 16

# Measured with the model inside the package (docs/log.md): below, three of four first guesses are
# wrong; just above it, about half.
MIN_PROBABILITY = 0.25


class Decoding(StrEnum):
    """How JPEG photographs are decoded."""

    FAST = "fast"
    EXACT = "exact"


def predict(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs, URLs, or - for a list or a picture on stdin."),
    ] = None,
    model: Model = None,
    weights: Weights = None,
    class_names: OutputNames = None,
    topk: Annotated[
        int | None,
        typer.Option(
            help="How many classes to name.",
            min=1,
            show_default="5, or all above --threshold if the weights give several labels",
        ),
    ] = None,
    threshold: Threshold = None,
    min_probability: Annotated[
        float,
        typer.Option(
            help="Below this probability of the best class, the table and the pictures of --draw "
            "say 'not sure'. JSON and CSV stay as they are.",
            min=0.0,
            max=1.0,
        ),
    ] = MIN_PROBABILITY,
    device: Device = "auto",
    engine: Engine = "auto",
    batch_size: Annotated[int, typer.Option(help="Images that the network sees at once.")] = 32,
    workers: Workers = None,
    decode: Annotated[
        Decoding,
        typer.Option(
            help="fast reads large JPEGs at reduced scale, never below twice the network's input."
        ),
    ] = Decoding.FAST,
    white_level: WhiteLevel = None,
    format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="How results are written.",
            show_default="by the ending of --output, or table",
        ),
    ] = None,
    output: Output = None,
    draw: Annotated[
        Path | None,
        typer.Option(
            help="Folder for pictures with their labels, boxes or classes, a JPEG for each image."
        ),
    ] = None,
    class_maps_folder: Annotated[
        Path | None,
        typer.Option(
            "--class-maps",
            help="For a segmenter: folder for masks, a PNG for each image with the number of each "
            "pixel's class.",
        ),
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(
            help="For a detector: leave out objects with a lower score.",
            show_default="0.3",
            min=0,
            max=1,
        ),
    ] = None,
    iou: Annotated[
        float | None,
        typer.Option(
            help="For a detector: of two boxes of a class that overlap by more, keep one.",
            show_default="0.6",
            min=0,
            max=1,
        ),
    ] = None,
) -> None:
    """Label images, or find objects or the class of each pixel, as the weights do.

    Exit status 1 if some images could not be used; the others are answered all the same.
    """
    paths = check_given("predict", paths)
    format = _format_of(output, format)
    from splitattn.cli.progress import counting, starting
    from splitattn.images.paths import is_image_name

    if output is not None and is_image_name(output.name):
        raise InputError(
            f"--output must not be an image, got {output}; for pictures use --draw FOLDER"
        )
    if draw is not None:
        check_folder(draw, "--draw")
    if class_maps_folder is not None:
        check_folder(class_maps_folder, "--class-maps")
    with starting("opening the network"):
        from splitattn.images.paths import expand, passed_over_text
        from splitattn.opening import TASK, task_of

        task = task_of(weights)
        given: dict[str, object] = {"--model": model, "--topk": topk, "--threshold": threshold}
        given |= {"--class-names": class_names, "--white-level": white_level}
        for option, value in given.items():
            if task != TASK and value is not None:
                raise InputError(
                    f"{option} is for classification, {weights} is for {task}: leave it out"
                )
        if task != "detection" and (score is not None or iou is not None):
            rule = "--score and --iou need a detector's weights"
            raise InputError(f"{rule}{_instead(weights, 'leave them out')}")
        if task != "segmentation" and class_maps_folder is not None:
            rule = "--class-maps needs a segmenter's weights"
            raise InputError(f"{rule}{_instead(weights, 'leave it out')}")
        how: dict[str, Any] = {"engine": engine, "device": device, "decoding": decode.value}
        if task == "detection":
            found = boxes.opened(str(weights), **how, score=score, iou=iou)
        elif task == "segmentation":
            found = class_maps.opened(str(weights), **how)
        else:
            found = _opened(
                model,
                weights,
                class_names=class_names,
                topk=topk,
                threshold=threshold,
                min_probability=min_probability,
                batch_size=batch_size,
                workers=workers,
                white_level=white_level,
                quick_start=len(paths) <= _FEW and all(map(is_file, paths)),
                **how,
            )
    passed_over: Counter[str] = Counter()
    given_names, source_of = images_given(paths, passed_over)
    watched = sys.stderr.isatty()
    total = sum(1 for _ in expand(paths)) if watched and "-" not in paths else None
    pictures = [] if draw is None else [Pictures(draw, found.draw)]
    if class_maps_folder is not None:
        assert found.class_map is not None
        pictures.append(
            Pictures(class_maps_folder, found.class_map, option="--class-maps", ending=".png")
        )
    names, named = tee(given_names)
    results = found.results(map(source_of, named))
    begin, end = found.around(format)
    write_as = found.writers[format]
    done = failed = undrawn = 0
    with closing(results), writing(output) as write, counting() as count:
        write(begin)
        for name, result in zip(names, results, strict=True):
            write(write_as(name, result))
            for folder in () if isinstance(result, ImageError) else pictures:
                if problem := folder.add(name, source_of(name), result):
                    say(f"error: {problem}; no picture of it is drawn")
                    undrawn += 1
            done += 1
            failed += isinstance(result, ImageError)
            count(1, total)
        write(end)
    for folder in pictures:
        folder.conclude()
    if passed_over:
        say(f"warning: {passed_over_text(passed_over)}")
    if not done:
        raise InputError("predict needs images, got none: stdin is empty or closed")
    if failed:
        say(f"{failed} of {done} images could not be labeled")
    if undrawn:
        say(f"pictures that could not be drawn: {undrawn}")
    if failed or undrawn:
        raise typer.Exit(1)


def _format_of(output: Path | None, format: Format | None) -> Format:
    """The format to write, checked with the ending of --output, which chooses it by default."""
    check_output(output, endings=() if format else (*_BY_ENDING, ".txt"))
    by_ending = _BY_ENDING.get(output.suffix.lower() if output else "")
    if format is None:
        return by_ending or Format.TABLE
    if by_ending not in (None, _WRITTEN_AS.get(format, format)):
        raise InputError(
            f"--output must not end in that of another format, got {output} with --format "
            f"{format}: leave out --format, or name another file"
        )
    return format


def _instead(weights: str | None, fix: str) -> str:
    """What came in place of weights for the task, and what to do."""
    if weights is None:
        return ": name them (--weights)"
    return f", got {weights}: {fix if exists(weights) else 'no such file or folder'}"


def _opened(
    model: str | None,
    weights: str | None,
    *,
    class_names: Path | None,
    topk: int | None,
    threshold: float | None,
    min_probability: float,
    batch_size: int,
    workers: int | None,
    device: str,
    engine: str,
    decoding: "DecodingName",
    white_level: float | None,
    quick_start: bool,
) -> Answering:
    """A classifier, and how its labels are written and drawn."""
    from splitattn.classifier import Classifier
    from splitattn.cli.progress import downloading

    with downloading() as progress:
        classifier = Classifier(
            model,
            weights,
            device=device,
            engine=engine,
            decoding=decoding,
            white_level=white_level,
            class_names=class_names,
            quick_start=quick_start,
            progress=progress,
        )

    if classifier.activation == "sigmoid":
        # Where there may be several labels, a threshold has left out the improbable ones.
        min_probability = 0.0

    def draw(source: str | bytes, predictions: "list[Prediction]") -> "Image.Image":
        from splitattn.images.decode import decode_reduced
        from splitattn.images.drawing import WIDTH, draw_labels

        white = classifier.preprocessing.white_level
        image = decode_reduced(source, WIDTH, white_level=white).image
        labels = [(p.label, p.probability) for p in predictions]
        return draw_labels(image, labels, min_probability=min_probability)

    return Answering(
        results=lambda sources: classifier.predict_stream(
            sources, topk=topk, threshold=threshold, batch_size=batch_size, workers=workers
        ),
        writers={
            Format.TABLE: partial(label_table, min_probability),
            Format.JSON: partial(_json, classifier),
            Format.CSV: partial(_csv, classifier),
        },
        csv_header=_CSV_HEADER,
        draw=draw,
    )


def label_table(min_probability: float, name: str, result: "Result") -> str:
    """The lines of an image in the table."""
    if isinstance(result, ImageError):
        return f"error: {result}\n"
    lines = (f"{100 * p.probability:8.2f} %  {one_line(p.label)}\n" for p in result)
    doubt = "" if result else "  (no label)"
    if result and result[0].probability < min_probability:
        doubt = "  (not sure)"
    return f"{one_line(name)}{doubt}\n{''.join(lines)}"


def _json(classifier: "Classifier", name: str, result: "Result") -> str:
    line: dict[str, Any] = {"path": name}
    if isinstance(result, ImageError):
        line["error"] = str(result)
    else:
        line["predictions"] = [asdict(prediction) for prediction in result]
        line["model"] = classifier.model
        line["weights"] = classifier.weights
    return json_line(line)


def _csv(classifier: "Classifier", name: str, result: "Result") -> str:
    if isinstance(result, ImageError):
        return csv_lines([(name, "", "", "", "", "", "", str(result))])
    origin = (classifier.model, classifier.weights)
    if not result:  # no label at all
        return csv_lines([(name, "", "", "", "", *origin, "")])
    return csv_lines(
        (name, rank, p.label, p.index, p.probability, *origin, "")
        for rank, p in enumerate(result, start=1)
    )
