"""`splitattn bulk`: label any number of images, here or on a Ray cluster."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from splitattn.cli.options import Engine, Model, OutputNames, Weights, Workers
from splitattn.cli.output import conclude, say
from splitattn.errors import counted

if TYPE_CHECKING:
    from splitattn.bulk.summary import BulkReport

_SHOWN_ERRORS = 5  # kinds of errors


def bulk(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A folder, s3:// or gs:// address, a .csv or .txt list of paths, or Parquet.",
        ),
    ],
    target: Annotated[
        str, typer.Argument(metavar="DST", help="A folder, or an s3:// or gs:// address.")
    ],
    model: Model = None,
    weights: Weights = None,
    class_names: OutputNames = None,
    engine: Engine = "auto",
    cluster: Annotated[
        str, typer.Option(help="local, ray for Ray on this machine, or a Ray cluster's address.")
    ] = "local",
    actors: Annotated[
        int | None,
        typer.Option(
            help="Shards that are labeled at once.",
            show_default="1; on Ray one for every 4 processors",
            min=1,
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images in a part.", min=1)] = 10_000,
    topk: Annotated[
        int | None,
        typer.Option(
            help="How many classes to name.",
            show_default="5, or all above 0.5 if the weights give several labels",
            min=1,
        ),
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Keep each image's features, too.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(help="Continue the run at the target, or refuse a target that holds one."),
    ] = True,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Label again the images that failed.")
    ] = False,
    most_errors: Annotated[
        float,
        typer.Option(
            help="Stop if a larger share of the images of a part, or of all, are errors.",
            min=0,
            max=1,
        ),
    ] = 0.1,
    workers: Workers = None,
) -> None:
    """Label a bucket or folder into Parquet files. After a stop, repeat the command.

    Exit status 1 if some images could not be labeled.
    """
    from splitattn.cli.progress import shards_progress, starting

    with starting("starting"):
        from splitattn.bulk.bulk import label_bulk
        from splitattn.images.paths import passed_over_text

    passed_over: Counter[str] = Counter()
    with shards_progress() as (on_listed, on_shard):
        report = label_bulk(
            source,
            target,
            model=model,
            weights=weights,
            engine=engine,
            class_names=class_names,
            cluster=cluster,
            actors=actors,
            shard_size=shard_size,
            topk=topk,
            features=features,
            resume=resume,
            retry_errors=retry_errors,
            most_errors=most_errors,
            workers=workers,
            passed_over=passed_over,
            on_listed=on_listed,
            on_shard=on_shard,
        )
    if passed_over:
        say(f"warning: {passed_over_text(passed_over)}")
    for line in error_lines(report):
        say(line)
    conclude(summary_text(target, report))
    if report.errors:
        raise typer.Exit(1)


def error_lines(report: "BulkReport") -> Iterator[str]:
    """A line for each of the most common errors, with the first image that has it."""
    for kind, count in islice(report.error_kinds.items(), _SHOWN_ERRORS):
        first = "".join(f", the first {path}" for path in report.error_paths.get(kind, ())[:1])
        yield f"error: {counted(count, 'image')}{first}: {kind}"
    if (more := len(report.error_kinds) - _SHOWN_ERRORS) > 0:
        yield f"error: {counted(more, 'more kind')} of errors: see summary.html"


def summary_text(target: str, report: "BulkReport") -> str:
    """One line for people and logs."""
    pace = ", all listed and labeled before"
    if report.labeled_now:
        pace = f", {report.rate:.1f} images/s"
    return (
        f"{target}: {counted(report.images, 'image')} in {counted(report.shards, 'part')}, "
        f"{counted(report.errors, 'error')}"
        f"{pace}; see summary.html there"
    )
