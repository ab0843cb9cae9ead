"""`splitattn bench`: how fast do networks run on this machine?"""

import json
import math
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitattn.cli.output import say
from splitattn.errors import counted

if TYPE_CHECKING:
    from splitattn.bench.measure import Plan, Row
    from splitattn.bench.peaks import Peaks


# Columns that only a window of `_WIDE` letters shows. The others take `_NARROW` letters with the
# longest names, which must not be cut.
_DETAILS = ("quartiles", "x roofline", "MB", "difference", "same labels")
_WIDE, _NARROW = 140, 80


def bench(
    model: Annotated[str, typer.Option(help="Which of our networks.")] = "resnest50",
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Images in a batch; may be repeated.", min=1)
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Input size, if not the model's own.", min=32)
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timed runs of each network.", min=2)] = 20,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    ladder: Annotated[
        bool,
        typer.Option(
            "--ladder",
            help="Also measure every form of the network, and networks of timm and torchvision, "
            "which takes long.",
        ),
    ] = False,
    only: Annotated[str, typer.Option(help="Measure only lines with this text.")] = "",
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure peak memory too, in a process for each line.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how fast a network runs here, in each installed engine.

    The engines take turns, so that a machine that slows down slows all of them.
    Weights are random, which does not change the speed. Let nothing else run
    meanwhile.
    """
    from splitattn.libraries import require

    require("bench", "torch")
    from splitattn.architectures import architecture
    from splitattn.cli.progress import starting, telling
    from splitattn.engines.table import check_device

    architecture(model)  # a wrong name is an error before PyTorch is loaded
    check_device(device)
    with starting("starting"):
        from splitattn.bench.measure import Plan, expected_seconds, measure
        from splitattn.engines.pytorch import choose_device
        from splitattn.environment import describe

    plan = Plan(
        model=model,
        batch_sizes=tuple(batch_size or (1, 16)),
        size=size,
        rounds=rounds,
        device=choose_device(device).type,
        ladder=ladder,
        only=only,
        memory=memory,
    )
    say(_announcement(plan, expected_seconds(plan)))
    with telling() as tell:
        peaks, rows = measure(plan, on_step=tell)
    stopped = any(len(row.milliseconds) < plan.rounds for row in rows) or len(
        {row.batch_size for row in rows}
    ) < len({*plan.batch_sizes})
    if as_json:
        report = {
            "plan": asdict(plan),
            "stopped": stopped,
            "environment": describe(),
            "peaks": asdict(peaks),
            "rows": [_as_dict(row) for row in rows],
        }
        typer.echo(json.dumps(report))
    else:
        _print_table(peaks, rows)
    if stopped:
        raise typer.Exit(130)


def _announcement(plan: "Plan", seconds: float) -> str:
    batches = " and ".join(map(str, plan.batch_sizes))
    memory = ", then peak memory" if plan.memory else ""
    lines = counted(len(plan.rungs()), "line")
    minutes = counted(math.ceil(seconds / 60), "minute")
    return (
        f"measuring {lines} at batch {batches}, {plan.rounds} rounds each{memory}: "
        f"about {minutes} if nothing else runs"
    )


def _as_dict(row: "Row") -> dict[str, Any]:
    from splitattn.bench.spread import spread

    return asdict(row) | spread(row.milliseconds) | {"images_per_second": row.images_per_second}


def _print_table(peaks: "Peaks", rows: "list[Row]") -> None:
    from rich.console import Console
    from rich.table import Table

    from splitattn.bench.spread import spread

    watched = Console().is_terminal or "COLUMNS" in os.environ  # else a file, of any width
    width = max(Console().width, _NARROW) if watched else _WIDE
    wide = width >= _WIDE
    padding = (0, 2 if wide else 1, 0, 0)
    table = Table("network", "form", "engine", "", box=None, pad_edge=False, padding=padding)
    measured = any(row.peak_memory for row in rows)
    details = [name for name in _DETAILS if name != "MB" or measured]
    names = ("batch", "ms", "images/s", *(details if wide else ()))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: (row.batch_size, row.median)):
        turns = spread(row.milliseconds)
        cells = {
            "batch": str(row.batch_size),
            "ms": f"{row.median:.1f}",
            "images/s": f"{row.images_per_second:.1f}",
            "quartiles": f"{turns['quartile1']:.1f}-{turns['quartile3']:.1f}",
            "x roofline": f"{row.median / row.roofline_milliseconds:.2f}",
            "MB": "" if row.peak_memory is None else f"{row.peak_memory / 1e6:.0f}",
            "difference": f"{row.difference:.0e}",
            "same labels": f"{row.same_labels:.0f}%",
        }
        table.add_row(
            row.network, row.form, row.engine, row.precision, *(cells[name] for name in names)
        )
    rates = ", ".join(f"{name} {2e-9 * rate:.0f}" for name, rate in peaks.multiply_adds.items())
    console = Console(width=width)
    console.print(table)
    if not wide:
        console.print(f"\n{', '.join(details)}:\nwith --json, or in a window of {_WIDE} columns.")
    console.print(
        f"\nThis machine reaches {rates} billion operations a second, and "
        f"copies memory at {1e-9 * peaks.copied_bytes:.1f} GB/s, reads and writes together.",
        highlight=False,
    )
