"""`splitattn export`: a network becomes a file for another engine."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from splitattn.cli.options import Model, Weights


class Format(StrEnum):
    """What the file is."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCH_EXPORT = "torch_export"


class Precision(StrEnum):
    """What its numbers are."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


def export(
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="The file: .onnx, .xml (OpenVINO) or .pt2.")
    ],
    model: Model = None,
    weights: Weights = None,
    layout: Annotated[
        Format | None, typer.Option("--format", help="By default, by the ending of OUT.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="What its numbers are.")] = Precision.FP32,
    calibration: Annotated[
        str | None, typer.Option(metavar="DATA", help="DATA or any folder of images, for int8.")
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Take images of other sizes too.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that decode images.", min=0)] = 1,
) -> None:
    """Write a network for another engine; `predict --weights OUT` runs it.

    It is compared with the network on photographs first. Exit status 1 if it differs, and then
    there is no file.
    """
    from splitattn.cli.progress import counting, downloading
    from splitattn.create import load_trained
    from splitattn.engines.export import ExportError, check_arguments, metadata_of_weights
    from splitattn.engines.export import export as write
    from splitattn.weights.resolve import resolve

    # Before anything is downloaded for it.
    check_arguments(output, format=layout, precision=precision, calibration=calibration)
    with downloading() as progress:
        resolved = resolve(model, weights, progress=progress)
    network = load_trained(resolved)
    try:
        with counting(None, shown=precision is Precision.INT8 and sys.stderr.isatty()) as advance:
            report = write(
                network,
                output,
                metadata=metadata_of_weights(resolved, num_classes=network.num_classes),
                format=layout,
                precision=precision,
                calibration=calibration,
                dynamic_size=dynamic_size,
                workers=workers,
                on_images=advance,
            )
    except ExportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(report.parity)
    if report.agreement:
        typer.echo(report.agreement)
    typer.echo(
        f"{report.path}: {resolved.model} in {report.precision}, {report.size / 2**20:.1f} MiB, "
        f"measured in {report.engine}"
    )
