"""`splitattn export`: a network becomes a file for another engine."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from splitattn.cli.options import Model, OutputNames, Weights, Workers
from splitattn.cli.output import conclude, say
from splitattn.engines.table import formats

_ENDINGS = ", ".join(f"{row.suffix} ({name})" for name, row in formats().items())


class Precision(StrEnum):
    """The number format of a file."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


def export(
    output: Annotated[Path, typer.Argument(metavar="OUT", help=f"The file: {_ENDINGS}.")],
    model: Model = None,
    weights: Weights = None,
    class_names: OutputNames = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", help=f"{', '.join(formats())}.", show_default="by the ending of OUT"
        ),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="Number format of the file.")
    ] = Precision.FP32,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="DATA or a folder of images, to calibrate int8 and to compare the file.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="The only batch size that the file takes.", show_default="any", min=1),
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Take images of other sizes too.")
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(help="ONNX operator version, 11 to 20.", show_default="13, for old runtimes"),
    ] = None,
    class_maps: Annotated[
        bool,
        typer.Option(
            "--class-maps",
            help="Give class maps too: what each place adds to a logit, for explain.",
        ),
    ] = False,
    workers: Workers = None,
) -> None:
    """Write a network for another engine; `predict --weights OUT` runs it.

    The file is first compared with the network on photographs. If it differs, the
    exit status is 1 and there is no file.
    """
    from splitattn.cli.progress import downloading, exporting, starting

    with starting("starting"):
        from splitattn.exporting import ExportError
        from splitattn.workflows import export as write

    try:
        with (
            downloading() as progress,
            exporting() as (on_step, on_images),
        ):
            report = write(
                output,
                model=model,
                weights=weights,
                format=format,
                precision=precision.value,
                calibration=calibration,
                batch_size=batch_size,
                dynamic_size=dynamic_size,
                opset=opset,
                class_maps=class_maps,
                class_names=class_names,
                workers=workers,
                progress=progress,
                on_images=on_images,
                on_step=on_step,
            )
    except ExportError as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error
    conclude(str(report.parity))
    if report.agreement:
        conclude(str(report.agreement))
    conclude(
        f"{report.path}: {report.model} in {report.precision}, {report.size / 2**20:.1f} MiB, "
        f"measured in {report.engine}"
    )
