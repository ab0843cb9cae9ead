"""`splitattn data`: look at a data set as training sees it; make a small one."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitattn.cli.options import DataClassNames
from splitattn.errors import InputError, write_failure

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


class Kind(StrEnum):
    """What a small data set says about its images."""

    LABELS = "labels"
    BOXES = "boxes"
    MASKS = "masks"


app = typer.Typer(help="Look at a data set, or make a small one.", no_args_is_help=True)


@app.command()
def show(
    data: Annotated[str, typer.Argument(help="Folder, Parquet, CSV file or torchvision:NAME.")],
    output: Annotated[Path, typer.Option(help="The picture: .png, .jpg or .webp.")] = Path(
        "batch.png"
    ),
    recipe: Annotated[
        str, typer.Option(help="A preset or a TOML file, as for train.")
    ] = "finetune",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: key=value.")
    ] = None,
    class_names: DataClassNames = None,
    images: Annotated[int, typer.Option(help="How many images.", min=1, max=600)] = 24,
) -> None:
    """Draw a training batch, augmented and mixed by the recipe, with its labels, boxes or masks."""
    import io

    from splitattn.cli.output import check_output, conclude
    from splitattn.cli.progress import starting
    from splitattn.files import is_folder, replacing
    from splitattn.libraries import require

    require("data show", "torch", "torchvision")
    check_output(output)
    kind = _FORMATS.get(output.suffix.lower())
    if kind is None:
        raise InputError(f"--output must end in {', '.join(_FORMATS)}, got {output}")
    if is_folder(data) and Path(data).resolve() in output.resolve().parents:
        raise InputError(
            f"--output must be outside the data set, got {output}, which would be taken for a part "
            "of it"
        )
    with starting("drawing the images"):
        from splitattn.dense.masks import is_masked
        from splitattn.dense.open import annotation_format

        draw = _labels
        if annotation_format(data):
            draw = _boxes
        elif is_masked(data):
            draw = _masks
        sheet, text = draw(data, recipe, overrides or (), class_names, images)
    picture = io.BytesIO()
    sheet.save(picture, kind)
    try:
        with replacing(output) as temporary:
            temporary.write_bytes(picture.getvalue())
    except OSError as error:
        raise InputError(write_failure(output, error, "cannot write --output")) from error
    conclude(f"{output}: {text}")


def _labels(
    data: str, recipe: str, overrides: Iterable[str], class_names: Path | None, count: int
) -> "tuple[Image.Image, str]":
    from splitattn.data.sources import open_data
    from splitattn.training.recipe_files import load_recipe

    chosen = load_recipe(recipe, overrides)
    found = open_data(data, "train", class_names)
    from splitattn.training.sheet import batch_sheet

    text = (
        f"{min(count, len(found))} of the {len(found)} images of {len(found.classes)} classes in "
        f"{found.origin}"
    )
    return batch_sheet(found, chosen, count=count), text


def _boxes(
    data: str, recipe: str, overrides: Iterable[str], class_names: Path | None, count: int
) -> "tuple[Image.Image, str]":
    from splitattn.dense.open import open_annotated

    if class_names is not None:
        raise InputError(f"{data} names its classes: leave out --class-names")
    from splitattn.training.recipe_files import load_recipe

    chosen = load_recipe(recipe, overrides, task="detection")
    found = open_annotated(data, "train")
    from splitattn.dense.sheet import annotated_sheet

    text = (
        f"{min(count, len(found))} of the {len(found)} images with {found.count()} objects of "
        f"{len(found.classes)} classes in {found.origin}"
    )
    return annotated_sheet(found, chosen, count=count), text


def _masks(
    data: str, recipe: str, overrides: Iterable[str], class_names: Path | None, count: int
) -> "tuple[Image.Image, str]":
    from splitattn.cli.output import say
    from splitattn.dense.masks import one_class_fault, open_masked

    if class_names is not None:
        raise InputError(f"{data} names its classes: leave out --class-names")
    from splitattn.training.recipe_files import load_recipe

    chosen = load_recipe(recipe, overrides, task="segmentation")
    found = open_masked(data, "train")
    if fault := one_class_fault(found):
        say(f"warning: {found.origin} {fault}")
    from splitattn.dense.sheet import mask_sheet

    text = (
        f"{min(count, len(found))} of the {len(found)} images with masks of {len(found.classes)} "
        f"classes in {found.origin}"
    )
    return mask_sheet(found, chosen, count=count), text


@app.command()
def toy(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    kind: Annotated[
        Kind,
        typer.Option(help="labels to classify, boxes to detect (COCO), or masks to segment."),
    ] = Kind.LABELS,
) -> None:
    """Make a data set of five classes from the photographs inside the package."""
    from splitattn.cli.output import conclude
    from splitattn.cli.progress import starting

    with starting("making the data set"):
        from splitattn.data.toy import write_toy_data

        count = write_toy_data(folder, kind)
    conclude(f"{folder}: {count} images; splitattn train {folder} --output run")
