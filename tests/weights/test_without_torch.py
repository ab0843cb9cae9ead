"""Weights without PyTorch: what works, and the errors of what does not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from splitattn.architectures import ARCHITECTURES
from splitattn.weights.cache import local_path
from splitattn.weights.catalogue import embedded_entry

# A module that is None in sys.modules cannot be imported, and find_spec does not find it.
SETUP = """
import json, sys
sys.modules |= dict.fromkeys(("torch", "torchvision", "pyarrow"))
"""


def run(script: str, *arguments: str | Path) -> Any:
    """Run a script without PyTorch, torchvision and pyarrow; returns the JSON that it prints."""
    command = [sys.executable, "-W", "error", "-c", SETUP + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_embedded_weights_are_read() -> None:
    found = run(
        """
import splitattn
from splitattn.weights.checkpoint import check_fits, read_checkpoint
from splitattn.weights.resolve import resolve
resolved = resolve()
checkpoint = read_checkpoint(resolved.path)
fit = check_fits(checkpoint, resolved.model)
print(json.dumps({
    "models": splitattn.list_models(),
    "weights": len(splitattn.list_weights()),
    "path": str(resolved.path),
    "classes": len(resolved.classes),
    "fit": [fit.num_classes, fit.in_chans],
    "metadata": splitattn.read_metadata(resolved.path) == checkpoint.metadata != None,
    "types": sorted({type(value).__module__ for value in checkpoint.tensors.values()}),
    "sum": float(checkpoint.tensors["fc.weight"].astype("f8").sum()),
}))
"""
    )
    path = local_path(embedded_entry())
    head = safetensors.torch.load_file(path)["fc.weight"]
    assert found == {
        "models": list(ARCHITECTURES),
        "weights": 14,
        "path": str(path),
        "classes": len(head),
        "fit": [len(head), 3],
        "metadata": True,
        "types": ["numpy"],
        "sum": pytest.approx(float(head.double().sum())),
    }


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["models"], "resnest50_fast_2s2x40d"),
        (["weights"], "resnest26_tiny:distilled_in1k"),
        (["weights", "card", "resnest26_tiny"], "# resnest26_tiny"),
        (["weights", "verify", "resnest26_tiny"], "resnest26_tiny:distilled_in1k: ok, sha256"),
        (["weights", "fetch", "resnest26_tiny"], ".safetensors"),
    ],
)
def test_the_command_line_works(arguments: list[str], printed: str) -> None:
    status, out = run(
        """
import contextlib, io
from splitattn.cli import main
out = io.StringIO()
with contextlib.redirect_stdout(out):
    try:
        main(sys.argv[1:])
    except SystemExit as end:
        status = end.code or 0
print(json.dumps([status, out.getvalue()]))
""",
        *arguments,
    )
    assert status == 0
    assert printed in out


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pth_files_are_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.pth"
    state = {"fc.bias": torch.tensor([1.5, -2.0]).bfloat16(), "fc.weight": torch.ones(2, 3).T}
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=zipped)
    found = run(
        """
from splitattn.weights.checkpoint import read_checkpoint
tensors = read_checkpoint(sys.argv[1]).tensors
print(json.dumps({key: [str(value.dtype), value.tolist()] for key, value in tensors.items()}))
""",
        path,
    )
    assert found == {
        "fc.bias": ["float32", [1.5, -2.0]],
        "fc.weight": ["float32", [[1.0, 1.0]] * 3],
    }


def test_arrays_are_written_and_read(tmp_path: Path) -> None:
    same = run(
        """
import numpy as np
from splitattn.weights.checkpoint import read_checkpoint, write_checkpoint
arrays = {
    "conv1.0.weight": np.arange(24, dtype=np.float16).reshape(2, 3, 4).T,  # a view
    "bn1.num_batches_tracked": np.array(7),
}
write_checkpoint(sys.argv[1], arrays)
read = read_checkpoint(sys.argv[1]).tensors
print(json.dumps([
    read.keys() == arrays.keys(),
    *(read[k].dtype == v.dtype and bool((read[k] == v).all()) for k, v in arrays.items()),
]))
""",
        tmp_path / "a.safetensors",
    )
    assert same == [True, True, True]
