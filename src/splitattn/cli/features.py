"""`splitattn features`: images become vectors, for search, clusters and small classifiers."""

from contextlib import closing
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitattn.cli.options import Device, Engine, Model, Weights, WhiteLevel, Workers
from splitattn.cli.output import check_output, json_line, say, writing
from splitattn.cli.stdin import check_given, images_given
from splitattn.errors import ImageError, InputError, write_failure

if TYPE_CHECKING:
    from splitattn.features import Features

_ARRAYS = ".npz"
_LINES = (".json", ".jsonl")


def features(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs, URLs, or - for a list or a picture on stdin."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="NumPy arrays `paths` and `features` (.npz), or one JSON object a line (.jsonl), "
            "which otherwise go to stdout."
        ),
    ] = None,
    model: Model = None,
    weights: Weights = None,
    device: Device = "auto",
    engine: Engine = "auto",
    batch_size: Annotated[int, typer.Option(help="Images that the network sees at once.")] = 32,
    workers: Workers = None,
    white_level: WhiteLevel = None,
) -> None:
    """Compute each image's pooled features, a vector: similar images have similar vectors.

    Exit status 1 if some images could not be used; the others have their features all the same.
    """
    paths = check_given("features", paths)
    check_output(output, endings=(_ARRAYS, *_LINES))
    arrays = output is not None and output.suffix.lower() == _ARRAYS
    from splitattn.cli.progress import counting, downloading, starting

    with starting("opening the network"), downloading() as progress:
        from splitattn.features import FeatureExtractor

        extractor = FeatureExtractor(
            model,
            weights,
            device=device,
            engine=engine,
            white_level=white_level,
            progress=progress,
        )
    given, source_of = images_given(paths)
    names, named = tee(given)
    results = extractor.stream(map(source_of, named), batch_size=batch_size, workers=workers)
    found: list[tuple[str, Features]] = []
    done = failed = 0
    lines = None if arrays else output
    with closing(results), counting() as count, writing(lines) as write:
        for name, result in zip(names, results, strict=True):
            done += 1
            failed += isinstance(result, ImageError)
            if not arrays:
                write(_line(name, result, extractor.model, extractor.weights))
            elif isinstance(result, ImageError):
                say(f"error: {result}")
            else:
                found.append((name, result))
            count(1, None)
    if output and arrays:
        _write_arrays(found, output)
    if failed:
        say(f"{failed} of {done} images have no features")
        raise typer.Exit(1)


def _line(name: str, result: "Features | ImageError", model: str, weights: str) -> str:
    if isinstance(result, ImageError):
        return json_line({"path": name, "error": str(result)})
    line = {"path": name, "features": result.tolist(), "model": model, "weights": weights}
    return json_line(line)


def _write_arrays(found: "list[tuple[str, Features]]", output: Path) -> None:
    import numpy as np

    from splitattn.files import replacing

    if not found:
        raise InputError("features needs images that can be read, got none")
    try:
        with replacing(output) as temporary, temporary.open("wb") as file:
            names, features = zip(*found, strict=True)
            np.savez(file, paths=np.array(names), features=np.stack(features))
    except OSError as error:
        raise InputError(write_failure(output, error, "cannot write --output")) from error
