"""Train torchvision's own FCOS from random weights, in the time that ours takes.

usage: python benchmarks/dense_torchvision.py DATA [--minutes 5.6] [--seed 0] [--size 320]
                                              [--threads 2] [--output FILE]

This is what `benchmarks/dense.py bccd` is compared with: `fcos_resnet50_fpn` without weights, and
the recipe that torchvision states for it in its references (`references/detection/README.md`): SGD
with momentum, a batch of 16 at a learning rate of 0.01, a warm-up, two falls by ten at 16/26 and
22/26 of the training, horizontal flips. The batch is 4 and the rate smaller in proportion, for 16
images a step would leave few steps. The images have the size of ours, and not torchvision's 800
pixels, which would take six times as long.

Time is processor time, so that other programs do not count. The row is added to
benchmarks/dense.json.
"""

import argparse
import json
import random
import sys
import time
from bisect import bisect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.transforms.functional import pil_to_tensor

from splitattn import environment
from splitattn.dense.annotated import AnnotatedImages, read_image
from splitattn.dense.evaluating import find_all
from splitattn.dense.found import FoundObjects
from splitattn.dense.open import open_annotated
from splitattn.dense.scoring import score
from splitattn.files import replacing
from splitattn.graph.detection import LEAST_SCORE

OUTPUT = Path(__file__).with_name("dense.json")
BATCH = 4
RATE = 0.01 * BATCH / 16
FALLS = (16 / 26, 22 / 26)  # of the training
WARM_UP = 1000  # steps, or the first epoch if that is shorter

Example = tuple[Tensor, dict[str, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="annotated boxes with train, val and test")
    parser.add_argument("--minutes", type=float, default=5.6, help="of two cores, for training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=320, help="shorter side in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    data = open_annotated(arguments.data, "train")
    detector = fcos_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=len(data.classes) + 1,  # torchvision counts the background as class 0
        min_size=arguments.size,
        max_size=2 * arguments.size,
        score_thresh=LEAST_SCORE,  # as in ours; torchvision's 0.2 lowers the AP
    )
    seconds, epochs = trained(detector, data, 120 * arguments.minutes, arguments.seed)
    figures = {}
    for split in ("val", "test"):
        images = open_annotated(arguments.data, split)
        found, _ = find_all(images, lambda image: detected(detector, image))
        figures[f"{split}_ap50"] = score(images, found).figures["ap50"]
    row = {
        "set": "bccd",
        "start": "torchvision",
        "seed": arguments.seed,
        "changes": [f"minutes={arguments.minutes:g}"],
        "model": "torchvision resnet50",
        "weights": None,
        "sha256": None,
        "head": "fcos",
        "figures": figures,
        "epochs": round(epochs, 1),
        "processor_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "environment": environment.describe(),
    }
    sys.stdout.write(f"{figures} after {epochs:.1f} epochs in {seconds:.0f} s of a processor\n")
    rows = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else []
    names = ("set", "start", "seed", "changes")
    rows = [each for each in rows if any(each[name] != row[name] for name in names)]
    with replacing(arguments.output) as path:
        path.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")


def trained(
    detector: torch.nn.Module, data: AnnotatedImages, budget: float, seed: int
) -> tuple[float, float]:
    """Train for so many seconds of processor time, and return how many it took, and the epochs."""
    optimizer = torch.optim.SGD(detector.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    detector.train()
    warm_up = min(WARM_UP, len(data) // BATCH)
    begun, steps = time.process_time(), 0
    for images, targets in batches(data, random.Random(seed)):
        spent = (time.process_time() - begun) / budget
        if spent >= 1:
            break
        rate = RATE * 0.1 ** bisect(FALLS, spent) * min(1.0, (steps + 1) / warm_up)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = detector(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        steps += 1
        if steps % 20 == 0:
            parts = {name: round(float(loss.detach()), 3) for name, loss in losses.items()}
            sys.stderr.write(f"step {steps}, {spent:.0%}: {parts}\n")
    return time.process_time() - begun, steps * BATCH / len(data)


def batches(data: AnnotatedImages, generator: random.Random) -> Iterator[tuple[Any, Any]]:
    """Endless batches in random order, half of the images mirrored."""
    while True:
        order = generator.sample(range(len(data)), len(data))
        for first in range(0, len(order) - BATCH + 1, BATCH):
            chosen = [
                example(data, index, mirrored=generator.random() < 0.5)
                for index in order[first : first + BATCH]
            ]
            yield tuple(zip(*chosen, strict=True))


def example(data: AnnotatedImages, index: int, *, mirrored: bool) -> Example:
    """An image, (3, H, W) from 0 to 1, and its boxes and labels, which count from 1."""
    image, objects = pil_to_tensor(read_image(data, index)) / 255, data.objects[index]
    boxes = torch.from_numpy(objects.boxes[~objects.crowd]).float()
    labels = torch.from_numpy(objects.labels[~objects.crowd]) + 1
    if mirrored:
        image, width = image.flip(-1), image.shape[-1]
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return image, {"boxes": boxes, "labels": labels}


@torch.inference_mode()
def detected(detector: torch.nn.Module, image: Image.Image) -> FoundObjects:
    """What the detector finds in an image, best first."""
    (found,) = detector.eval()([pil_to_tensor(image) / 255])
    return FoundObjects(
        boxes=found["boxes"].numpy(),
        labels=found["labels"].numpy() - 1,
        scores=found["scores"].numpy().astype(np.float32),
    )


if __name__ == "__main__":
    main()
