"""`splitattn serve`: an HTTP service and a web page."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitattn.cli.options import Device, Engine, Model, OutputNames, Weights, Workers
from splitattn.errors import InputError

if TYPE_CHECKING:
    from splitattn.images.limits import Limits
    from splitattn.serving.served import Model as Served

_LOCAL = ("localhost", "127.0.0.1", "::1")
_MIB = 2**20
_IMAGES = 32


def serve(
    model: Model = None,
    weights: Weights = None,
    class_names: OutputNames = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is all addresses of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    device: Device = "auto",
    engine: Engine = "auto",
    max_batch: Annotated[int, typer.Option(help="Images that the network sees at once.")] = 8,
    max_wait: Annotated[
        float, typer.Option(help="Milliseconds to wait for a fuller batch while idle.", min=0.0)
    ] = 0.0,
    max_queue: Annotated[
        int, typer.Option(help="Images that may wait; more are refused with 429.")
    ] = 128,
    max_queued_mib: Annotated[
        int, typer.Option(help="MiB of requests that may wait; more are refused with 429.")
    ] = 256,
    max_body_mib: Annotated[int, typer.Option(help="MiB of one request.")] = 32,
    max_images: Annotated[
        int | None,
        typer.Option(help="Images of one request.", show_default="32, but at most --max-queue"),
    ] = None,
    deadline: Annotated[
        float, typer.Option(help="Seconds until a request is given up with 504.")
    ] = 10.0,
    drain_wait: Annotated[
        float,
        typer.Option(
            help="Seconds after SIGTERM in which requests are taken while /readyz is 503."
        ),
    ] = 0.0,
    workers: Workers = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="A file with the key that 'Authorization: Bearer KEY' must have."),
    ] = None,
    trusted_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A host name that requests may use; may be repeated.",
            show_default="localhost where only this machine can connect, else any",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option(help="Explain labels, which loads the network a second time.")
    ] = True,
    page: Annotated[bool, typer.Option(help="Serve the web page.")] = True,
) -> None:
    """Serve a model over HTTP, with a web page, in one process.

    Logs go to stderr, one JSON object a line. SIGTERM ends it when all accepted
    requests are answered.
    """
    from splitattn.libraries import require

    require("splitattn serve", "starlette", "uvicorn", "python_multipart", "prometheus_client")
    from splitattn.cli.progress import starting

    with starting("starting"):
        from splitattn.serving.logs import log_as_json
        from splitattn.serving.settings import Settings

        log_as_json()
        settings = Settings(
            max_batch=max_batch,
            max_wait=max_wait / 1000,
            max_queue=max_queue,
            max_queued_bytes=max_queued_mib * _MIB,
            max_body=max_body_mib * _MIB,
            max_images=min(_IMAGES, max_queue) if max_images is None else max_images,
            deadline=deadline,
            drain_wait=drain_wait,
            workers=workers,
            explain=explain,
            page=page,
            key=None if api_key_file is None else _key(api_key_file),
            trusted_hosts=tuple(trusted_host or (_LOCAL if host in _LOCAL else ())),
        )
        opened = _opened(
            model,
            weights,
            class_names=class_names,
            engine=engine,
            device=device,
            limits=settings.limits,
        )
        # Not before: the web framework takes as long to import as all above.
        from splitattn.serving.server import serve as run
    run(opened, settings, host=host, port=port, on_ready=_show_address)


def _show_address(url: str) -> None:
    """Print the URL on a terminal, where the JSON log is hard to read."""
    if sys.stdout.isatty():
        typer.echo(f"ready at {url}; Ctrl+C ends it")


def _opened(
    model: str | None,
    weights: str | None,
    *,
    class_names: Path | None,
    engine: str,
    device: str,
    limits: "Limits",
) -> "Served":
    from splitattn.opening import TASK, task_of

    task = task_of(weights)
    if task != TASK and model is not None:
        raise InputError(f"{weights} is for {task} and says its model: leave out --model")
    if task != TASK and class_names is not None:
        raise InputError(f"--class-names is for classifiers, {weights} is for {task}")
    if task == "detection":
        from splitattn.dense.detector import Detector

        return Detector(str(weights), engine=engine, device=device, limits=limits)
    if task == "segmentation":
        from splitattn.dense.segmenter import Segmenter

        return Segmenter(str(weights), engine=engine, device=device, limits=limits)
    from splitattn.classifier import Classifier
    from splitattn.cli.progress import downloading

    with downloading() as progress:
        return Classifier(
            model,
            weights,
            engine=engine,
            device=device,
            class_names=class_names,
            limits=limits,
            progress=progress,
        )


def _key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"cannot read --api-key-file {path}: {reason}") from error
    if not key:
        raise InputError(f"--api-key-file {path} must hold a key, it is empty")
    return key
