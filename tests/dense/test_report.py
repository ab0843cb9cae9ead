"""What the reports of detectors and segmenters say of the data."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitattn.training.loop import train
from splitattn.training.task import Task
from tests.dense.runs import (
    MASK_RECIPE,
    RECIPE,
    make_mask_task,
    make_run,
    make_task,
    mask_network,
    network,
)


@pytest.mark.parametrize("name", ["detection", "segmentation"])
def test_what_was_left_out_of_either_split_is_in_the_report(name: str, tmp_path: Path) -> None:
    task: Task[Any]
    if name == "detection":
        task, recipe, untrained = make_task(tmp_path, train=4, val=1), RECIPE, network()
    else:
        task, recipe, untrained = (
            make_mask_task(tmp_path, train=4, val=1),
            MASK_RECIPE,
            mask_network(),
        )
    run = make_run(tmp_path / "run", replace(recipe, epochs=1, train_size=48, test_size=48))
    measured = train(untrained, task, run)
    assert told(task.report(run, measured).details) == []
    notes = {"train": ("a box & more: 1",), "val": ("no box: 2", "a box & more: 1")}
    task = replace(
        task,
        train=replace(task.train, notes=notes["train"]),
        val=replace(task.val, notes=notes["val"]),
    )
    assert task.note_train(["b.png: the image is damaged", "c.png: no such file"]) == 2
    problems = ("d.png: the image is damaged",)
    measured = replace(measured, details=replace(measured.details, problems=problems))
    assert told(task.report(run, measured).details) == [
        "a box &amp; more: 1",  # of both splits, once
        "no box: 2",
        "2 training images unreadable, see unreadable.txt",
        "d.png: the image is damaged",
    ]


def told(details: str) -> list[str]:
    return re.findall("<li>(.*?)</li>", details)
