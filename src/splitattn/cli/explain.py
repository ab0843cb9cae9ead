"""`splitattn explain`: heat maps of labels."""

from collections.abc import Iterator
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitattn.cli.drawing import Pictures
from splitattn.cli.options import Device, Engine, Model, OutputNames, Weights, WhiteLevel
from splitattn.cli.output import check_output, say, write_output
from splitattn.cli.stdin import check_given, images_given
from splitattn.errors import ImageError, InputError, counted, one_line

if TYPE_CHECKING:
    from splitattn.explanation.explanation import Explanation

_PAGES = (".html", ".htm")


class Method(StrEnum):
    """How a label is explained."""

    AUTO = "auto"
    CAM = "cam"
    LAYERCAM = "layercam"
    RISE = "rise"


def explain(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs, URLs, or - for a list or a picture on stdin."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="A new folder for pictures, a JPEG for each image, or one page that ends in .html."
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help="A class by name or index.", show_default="each image's most probable one"
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="cam is exact; layercam is finer, for small images; rise covers parts of the "
            "image, and works for every exported file."
        ),
    ] = Method.AUTO,
    model: Model = None,
    weights: Weights = None,
    class_names: OutputNames = None,
    device: Device = "auto",
    engine: Engine = "auto",
    white_level: WhiteLevel = None,
) -> None:
    """Explain labels: a heat map over each image, and the share of each split in each block.

    Exit status 1 if some images could not be used; the others have their pictures all the same.
    """
    paths = check_given("explain", paths)
    if output is None:
        raise InputError("explain needs --output: a new folder, or a page that ends in .html")
    is_page = output.suffix.lower() in _PAGES
    if is_page:
        check_output(output)
    pictures = None if is_page else Pictures(output, lambda _, each: each.overlay(), "--output")
    from splitattn.cli.progress import counting, downloading, starting

    with starting("opening the network"), downloading() as progress:
        from splitattn.explanation.explainer import Explainer
        from splitattn.explanation.explanation import write_html

        explainer = Explainer(
            model,
            weights,
            device=device,
            engine=engine,
            white_level=white_level,
            class_names=class_names,
            progress=progress,
        )
    names, source_of = images_given(paths)
    done = failed = 0
    unlisted: OSError | None = None

    def list_line(text: str) -> None:
        """Print `text`; if stdout does not take it, the pictures are made all the same."""
        nonlocal unlisted
        try:
            if unlisted is None:
                write_output(f"{text}\n", None)
        except OSError as error:
            unlisted = error

    def explained() -> "Iterator[tuple[str, Explanation]]":
        nonlocal done, failed
        with counting() as count:
            for path in names:
                done += 1
                try:
                    found = explainer.explain(source_of(path), label, method.value)
                except ImageError as error:
                    failed += 1
                    say(f"error: {error}")
                else:
                    percent = f"{100 * found.probability:.2f} %"
                    list_line(f"{percent:>8}  {one_line(found.label)}  {one_line(path)}")
                    yield path, found
                count(1, None)

    if pictures is not None:
        for path, found in explained():
            pictures.add(path, path, found)
        pictures.conclude()
    else:
        sections = explained()
        if first := next(sections, None):  # if there are none, an old page stays
            write_html(chain([first], sections), output)
            say(f"{output}: {counted(done - failed, 'picture')}")
    if unlisted is not None:
        raise unlisted
    if not done:
        raise InputError("explain needs images, got none: stdin is empty or closed")
    if failed:
        say(f"{failed} of {done} images could not be explained")
        raise typer.Exit(1)
