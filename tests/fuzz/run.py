"""Fuzz everything that reads files or requests from outside with damaged inputs.

usage: python tests/fuzz/run.py [--inputs 20000] [--seed 0] [--only NAME] [--output JSON]

Inputs are divided among the targets of `targets.py`, each of which runs in its own process. A bug
is a crash, an exception other than `InputError`, an `InputError` without text, or an input that
takes more than 10 s of CPU time, 60 s in all, or 2 GB more memory than the process had before. A
process that exceeds a limit of time, or 4 GB, is killed, and another one continues. Inputs that
show a bug are saved under runs/fuzz/, and the exit status is then 1. With --only, rows of other
targets stay in the JSON; each row has its date and commit.
"""

import argparse
import json
import os
import random
import select
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.target import Target

ROOT = Path(__file__).parents[2]
MODULE = "tests.fuzz.targets"
OUTPUT = ROOT / "benchmarks" / "fuzz.json"
BUGS = ROOT / "runs" / "fuzz"
SECONDS = 10
# On a busy machine the process may have to wait for a core.
SECONDS_WITH_WAITING = 60
MEMORY = 2 * 2**30
# A process reports on stdout, a line for each input. Its current input is in this file.
IN_HAND = "input"


@dataclass(kw_only=True)
class Outcome:
    """The result of one target.

    Attributes:
        target: its name.
        inputs: number of inputs.
        accepted, refused: number of inputs that were read, or refused with an `InputError`.
        bugs: a line for each of the other inputs.
        slowest_ms: the longest time for an input.
        peak_memory: the most bytes that an input took, beyond what the process had before.
    """

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    bugs: list[str] = field(default_factory=list)
    slowest_ms: float = 0.0
    peak_memory: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=20_000, help="over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="NAME", help="text in a target's name")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    parser.add_argument("--child", nargs=5, metavar=("MODULE", "NAME", "FIRST", "LAST", "FOLDER"))
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if arguments.child:
        module, name, first, last, folder = arguments.child
        work(module, name, range(int(first), int(last)), arguments.seed, Path(folder))
        return
    from splitattn import environment
    from splitattn.files import replacing

    names = [target.name for target in targets(MODULE) if arguments.only in target.name]
    share = -(-arguments.inputs // len(names))
    sys.stdout.write(f"{'target':20} {'inputs':>7} {'read':>7} {'refused':>8} {'bugs':>5}")
    sys.stdout.write(f" {'slowest ms':>11} {'peak MB':>8}\n")
    outcomes = []
    for name in names:
        outcomes.append(outcome := fuzzed(MODULE, name, share, arguments.seed))
        sys.stdout.write(
            f"{name:20} {outcome.inputs:7} {outcome.accepted:7} {outcome.refused:8} "
            f"{len(outcome.bugs):5} {outcome.slowest_ms:11.0f} {outcome.peak_memory / 1e6:8.0f}\n"
        )
        for bug in outcome.bugs[:5]:
            sys.stdout.write(f"    {bug}\n")
        sys.stdout.flush()
    described = environment.describe()
    when = {key: described[key] for key in ("date", "commit")}
    rows = {outcome.target: asdict(outcome) | when for outcome in outcomes}
    if arguments.only and arguments.output.exists():
        before = json.loads(arguments.output.read_text("utf-8"))["targets"]
        rows = {row["target"]: row for row in before} | rows
    report = {
        "seed": arguments.seed,
        "limits": {"processor_seconds": SECONDS, "memory": MEMORY},
        "targets": [rows[target.name] for target in targets(MODULE) if target.name in rows],
        "environment": described,
    }
    with replacing(arguments.output) as path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(outcome.bugs for outcome in outcomes))


def targets(module: str) -> "tuple[Target, ...]":
    found: tuple[Target, ...] = import_module(module).TARGETS
    return found


def fuzzed(module: str, name: str, inputs: int, seed: int) -> Outcome:
    """Run a target on `inputs` inputs. If one ends the process, another process continues.

    Args:
        module: the module whose `TARGETS` include the target.
        name: the target's name.
        seed: the seed of all inputs.
    """
    outcome = Outcome(target=name)
    with TemporaryDirectory() as folder:
        while outcome.inputs < inputs:
            command = [sys.executable, __file__, "--seed", str(seed), "--child"]
            span = (str(outcome.inputs), str(inputs))
            errors = Path(folder) / "errors"
            with (
                errors.open("wb") as stderr,
                subprocess.Popen(
                    [*command, module, name, *span, folder],
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                ) as process,
            ):
                fault = _watched(process, outcome)
            if not fault:
                break
            in_hand = Path(folder) / IN_HAND
            if not in_hand.exists():
                sys.exit(f"{name} cannot begin: {errors.read_text('utf-8', 'replace')}")
            outcome.inputs += 1
            _save(outcome, fault, in_hand.read_bytes())
    return outcome


def _watched(process: "subprocess.Popen[bytes]", outcome: Outcome) -> str:
    """Read the reports of a process until it ends; returns why it ended early, or ""."""
    assert process.stdout is not None
    pending = b""
    start = 0
    since = used = float("inf")  # no limit until it has imported everything
    while True:
        ready, _, _ = select.select([process.stdout], [], [], 0.1)
        if ready:
            received = process.stdout.read1(65536)
            if not received:
                status = process.wait()
                return f"ended with status {status}" if status else ""
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                since, used = time.monotonic(), _processor_seconds(process.pid)
                told = json.loads(line)
                if "done" in told:
                    used = float("inf")  # no limit for ending, which takes longer than an input
                    continue
                if "start" in told:
                    start = told["start"]
                    continue
                outcome.inputs += 1
                outcome.slowest_ms = max(outcome.slowest_ms, told["ms"])
                outcome.peak_memory = max(outcome.peak_memory, told["peak"] - start)
                if told["bug"]:
                    _save(outcome, told["bug"], bytes.fromhex(told["input"]))
                elif told["peak"] - start > MEMORY:
                    _save(outcome, f"{told['peak'] - start:,} bytes", bytes.fromhex(told["input"]))
                else:
                    outcome.accepted += told["accepted"]
                    outcome.refused += not told["accepted"]
        if _processor_seconds(process.pid) - used > SECONDS:
            process.kill()
            return f"took more than {SECONDS} s of the processor"
        if time.monotonic() - since > SECONDS_WITH_WAITING:
            process.kill()
            return f"took more than {SECONDS_WITH_WAITING} s"
        # Kill the process before the machine runs out of memory.
        if start and _resident(process.pid) - start > 2 * MEMORY:
            process.kill()
            return f"took more than {2 * MEMORY:,} bytes"


def _processor_seconds(process: int) -> float:
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:  # the process has ended
        return 0.0
    own, system = text.rpartition(")")[2].split()[11:13]
    return (int(own) + int(system)) / os.sysconf("SC_CLK_TCK")


def _resident(process: int) -> int:
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1]
    except OSError:  # the process has ended
        return 0
    return int(pages) * 4096


def _save(outcome: Outcome, fault: str, content: bytes) -> None:
    BUGS.mkdir(parents=True, exist_ok=True)
    path = BUGS / f"{outcome.target.replace(' ', '-')}-{outcome.inputs}"
    path.write_bytes(content)
    outcome.bugs.append(f"{path.name}: {fault}")


def work(module: str, name: str, numbers: range, seed: int, folder: Path) -> None:
    """Read inputs and report on each. An input depends only on its number and the seed."""
    import warnings

    from splitattn.errors import InputError

    tell = sys.stdout
    sys.stdout = sys.stderr
    warnings.simplefilter("ignore")
    (target,) = (target for target in targets(module) if target.name == name)
    seeds = target.seeds()
    desk = folder / "desk"
    desk.mkdir(exist_ok=True)
    with suppress(InputError):  # loads what is imported lazily, which must not count
        target.read(seeds[0], desk)
    tell.write(json.dumps({"start": _peak()}) + "\n")
    tell.flush()
    for number in numbers:
        content = target.make(seeds, random.Random(f"{seed} {name} {number}"))
        (folder / IN_HAND).write_bytes(content)
        _forget_peak()
        begin = time.perf_counter()
        accepted, bug = False, ""
        try:
            target.read(content, desk)
            accepted = True
        except InputError as error:
            if not str(error).strip():
                bug = "a refusal that says nothing"
        except BaseException as error:  # any other exception is a bug
            place = traceback.extract_tb(error.__traceback__)[-1]
            bug = f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
            bug += f" ({Path(place.filename).name}:{place.lineno})"
        told = {
            "ms": round(1e3 * (time.perf_counter() - begin), 1),
            "peak": _peak(),
            "accepted": accepted,
            "bug": bug,
            "input": content.hex(),
        }
        tell.write(json.dumps(told) + "\n")
        tell.flush()
    tell.write(json.dumps({"done": True}) + "\n")
    tell.flush()


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:  # the peak then includes all inputs so far
        return


def _peak() -> int:
    from splitattn.environment import peak_memory

    return peak_memory() or 0


if __name__ == "__main__":
    main()
