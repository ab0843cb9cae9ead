"""Workers that label shards need no PyTorch: `pip install .` and pyarrow are enough."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from splitattn.images.samples import sample_photographs

# Python runs this at the start of each process, including workers.
HIDE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def test_worker_processes_label_a_folder_without_torch(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    where = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    folder, target = sample_photographs()[0].parent, tmp_path / "out"
    options = ("--actors=2", "--shard-size=3", "--topk=1", "--features", "--engine=onnxruntime")
    done = subprocess.run(
        [sys.executable, "-m", "splitattn", "bulk", str(folder), str(target), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": where},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    rows = [
        row for part in sorted(target.glob("part-*")) for row in pq.read_table(part).to_pylist()
    ]
    labels = {Path(row["path"]).stem: row["labels"] for row in rows}
    assert len(labels) == len(sample_photographs()) > 3
    assert labels["coffee"] == ["espresso"]
    assert {len(row["features"]) for row in rows} == {1536}
