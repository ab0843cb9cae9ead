"""How processes and their threads share a machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from splitattn.processes import limit_openmp_spin
from tests.data.datasets import write_image_folder


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_spin_briefly_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    limit_openmp_spin()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize(
    "training", ["splitattn.train", "main(['train', 'data', '--output', 'run'])"]
)
def test_training_says_so_before_pytorch_is_imported(training: str, tmp_path: Path) -> None:
    """GNU OpenMP reads the environment once, when it is loaded."""
    write_image_folder(tmp_path / "data", train=4, val=4)
    program = f"""
import os, sys
import splitattn
from splitattn.cli import main

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" and os.environ.get("GOMP_SPINCOUNT") == "10000":
            print("before PyTorch", flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
{training}
"""
    own = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in own},
        cwd=tmp_path,
        check=False,
    )
    assert done.stdout == "before PyTorch\n", done
