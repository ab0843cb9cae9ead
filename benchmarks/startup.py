"""Measure the time and peak memory of whole commands.

usage: python benchmarks/startup.py --small ENVIRONMENT [--peer ENVIRONMENT] [--rounds 7]
           [--output FILE]

Processes take turns: in every round each case runs once, so that a machine that slows down affects
all cases. Nothing else should run meanwhile.

- "first label": `splitattn predict` on one photograph with the embedded model, in ENVIRONMENT,
  where only `pip install .` was run.
- "resnest50": the same with a ResNeSt-50 of random weights in safetensors.
- "export resnest50": export that network to fp32 ONNX, with its parity report.
- "timm script": a typical script that labels one photograph with timm, with a network as large as
  the embedded model, in the other environment, which has PyTorch and timm.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from splitattn import environment
from splitattn.files import replacing
from splitattn.images.samples import sample_photographs

OUTPUT = Path(__file__).with_suffix(".json")

WEIGHTS = """
import sys, splitattn
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.catalogue import default_preprocessing
from splitattn.weights.metadata import ModelMetadata
classes = tuple(map(str, range(1000)))
metadata = ModelMetadata(
    model="resnest50", classes=classes, preprocessing=default_preprocessing("resnest50")
)
write_checkpoint(sys.argv[1], splitattn.create_model("resnest50").state_dict(), metadata)
"""

TIMM = """
import sys, timm, torch
from PIL import Image
model = timm.create_model("resnest14d", pretrained=False).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
image = Image.open(sys.argv[1]).convert("RGB")
with torch.inference_mode():
    probabilities = model(transform(image)[None]).softmax(1)[0]
for probability, index in zip(*probabilities.topk(5)):
    print(f"{100 * probability:.2f} %  {index}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", type=Path, required=True, help="with splitattn and no PyTorch")
    parser.add_argument("--peer", type=Path, default=Path(sys.prefix), help="with timm")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    photograph = str(sample_photographs()[0])
    python, peer = (path / "bin" / "python" for path in (arguments.small, arguments.peer))
    with TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / "resnest50.safetensors"
        subprocess.run([peer, "-c", WEIGHTS, weights], check=True)
        predict = [python, "-m", "splitattn", "predict", photograph]
        export = [python, "-m", "splitattn", "export", folder / "net.onnx"]
        cases: dict[str, list[str | Path]] = {
            "first label": predict,
            "resnest50": [*predict, "--weights", weights],
            "export resnest50": [*export, "--weights", weights],
            "timm script": [peer, "-c", TIMM, photograph],
        }
        report = {
            "environment": environment.describe(),
            "rounds": arguments.rounds,
            "cases": measured(cases, arguments.rounds),
        }
    with replacing(arguments.output) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measured(
    cases: dict[str, list[str | Path]], rounds: int
) -> dict[str, dict[str, list[float] | list[int]]]:
    """Seconds and peak bytes of each run, by case."""
    figures: dict[str, dict[str, list[float] | list[int]]] = {
        name: {"seconds": [], "peak_memory": []} for name in cases
    }
    for turn in range(rounds + 1):
        for name, command in cases.items():
            seconds, peak = run(command)
            if turn:  # the first round fills the disk cache
                figures[name]["seconds"].append(round(seconds, 3))  # type: ignore[arg-type]
                figures[name]["peak_memory"].append(peak)  # type: ignore[arg-type]
    return figures


PROBE = """
import json, resource, subprocess, sys, time
begin = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
seconds = time.perf_counter() - begin
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def run(command: list[str | Path]) -> tuple[float, int]:
    """Seconds and peak bytes of a command; a new process runs it as its only child."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, command)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, kilobytes = json.loads(done.stdout)
    return seconds, kilobytes * 1024


if __name__ == "__main__":
    main()
