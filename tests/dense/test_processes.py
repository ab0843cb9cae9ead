"""Detectors and segmenters in two processes, and in bfloat16."""

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from splitattn.training.loop import train
from splitattn.training.recipes import Recipe
from splitattn.weights.checkpoint import read_by_own_keys
from tests.dense.runs import (
    MASK_RECIPE,
    RECIPE,
    make_mask_task,
    make_run,
    make_task,
    mask_network,
    network,
)

# Two processes take one image each; a single process takes both, one after the other. No layer
# depends on the other image of a batch, so both ways must agree.
SHARED: dict[str, Any] = {
    "epochs": 1,
    "optimizer": "sgd",
    "clip_norm": 0.0,
    "ema_decay": 0.0,
    "warmup_epochs": 0.0,
    "batch_size": 2,
    "frozen_batch_norm": True,
    "test_size": 32,
    "train_size": 32,
}
DETECTION = replace(RECIPE, **SHARED)
SEGMENTATION = replace(MASK_RECIPE, first_train_size=None, **SHARED)


def trainings(folder: Path, own: str) -> dict[str, dict[str, float]]:
    """Train a detector and a segmenter, alone or with others; returns their figures."""
    return {
        name: train(
            model, task, replace(make_run(folder / own / name, recipe), batch_per_device=1)
        ).figures
        for name, model, task, recipe in (
            ("detection", network(), make_task(folder / "boxes"), DETECTION),
            ("segmentation", plain_segmenter(), make_mask_task(folder / "masks"), SEGMENTATION),
        )
    }


def plain_segmenter() -> nn.Module:
    """No dropout, which differs between processes, and constant statistics of batch norms."""
    model = mask_network()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    return model


def one_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=100),
    )
    torch.save(trainings(folder, "together"), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_train_and_measure_as_one_does(tmp_path: Path) -> None:
    for name, make in (("boxes", make_task), ("masks", make_mask_task)):
        make(tmp_path / name, train=2, val=2)
    spawn = torch.multiprocessing.get_context("spawn")
    other = spawn.Process(target=one_of_two, args=(1, tmp_path), daemon=True)
    other.start()
    one_of_two(0, tmp_path)
    other.join()
    assert other.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    alone = trainings(tmp_path, "alone")
    for name, figures in alone.items():
        assert first[name] == pytest.approx(figures, abs=0.5)
        one, two = (
            read_by_own_keys(tmp_path / each / name / "model.safetensors")
            for each in ("alone", "together")
        )
        # Batch norms of a single process count twice as many batches.
        for key in (key for key in one if not key.endswith("num_batches_tracked")):
            np.testing.assert_allclose(one[key], two[key], atol=2e-5, err_msg=f"{name} {key}")


@pytest.mark.parametrize(
    ("make_model", "make", "recipe"),
    [(network, make_task, DETECTION), (mask_network, make_mask_task, SEGMENTATION)],
    ids=["detection", "segmentation"],
)
def test_bfloat16_trains_and_measures_as_float32_does(
    make_model: Any, make: Any, recipe: Recipe, tmp_path: Path
) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        run = make_run(tmp_path / precision, replace(recipe, precision=precision, epochs=1))
        measured = train(make_model(), make(tmp_path, train=2, val=1), run)
        assert all(np.isfinite([*measured.figures.values()]))
        log = (tmp_path / precision / "log.jsonl").read_text()
        losses[precision] = float(log.split('"train_loss": ')[1].split(",")[0])
        tensors = read_by_own_keys(tmp_path / precision / "model.safetensors")
        assert {str(value.dtype) for value in tensors.values()} <= {"torch.float32", "torch.int64"}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize("head", ["fcos", "retinanet", "faster_rcnn"])
def test_boxes_are_exact_in_bfloat16(head: str) -> None:
    """bfloat16 could represent only even numbers past 256."""
    detector: Any = network(head).eval()
    detector = detector.to(memory_format=torch.contiguous_format)
    if head == "faster_rcnn":
        detector.roi_heads.score_thresh = 0.0
    else:
        detector.score_thresh = 0.0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (found,) = detector([torch.rand(3, 32, 352)])
    boxes = found["boxes"]
    assert boxes.dtype == torch.float32
    far = boxes[(boxes > 256) & (boxes < 352)]
    assert len(far) > 3
    assert (far % 2 != 0).float().mean() > 0.5
