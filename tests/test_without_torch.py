"""Reading data sets works without PyTorch and pyarrow."""

import subprocess
import sys
from pathlib import Path

from tests.data.datasets import write_image_folder

# The import hook simulates an environment without these libraries.
SCRIPT = """
import sys

FORBIDDEN = ("torch", "torchvision", "pyarrow")

class Hook:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is forbidden")

sys.meta_path.insert(0, Hook())

from splitattn.data.eval_batches import eval_batches
from splitattn.data.labeled import with_classes_of_model
from splitattn.data.sources import open_data
from splitattn.images.decode import decode, decode_reduced
from splitattn.images.loading import load_batches
from splitattn.images.preprocess import normalize, preprocess, preprocess_reduced
from splitattn.preprocessing import center_crop, least_side

own = center_crop(32)
folder, csv = sys.argv[1:]
for source in (folder, csv):
    data = with_classes_of_model(open_data(source, "val"), ("0", "1", "2"))
    pixels = preprocess(decode(data.images[0]), own)
    fast = decode_reduced(data.images[0], least_side(own))
    assert (preprocess_reduced(fast, own) == pixels).all()
    assert normalize(pixels[None], own).shape == (1, 3, 32, 32)
    assert sum(map(len, load_batches(data.images, own, batch_size=4, decoding="fast"))) == 6
    assert [len(batch.images) for batch in eval_batches(data, own, batch_size=4)] == [4, 2]
assert not set(FORBIDDEN) & set(sys.modules)
"""


def test_folders_and_csv_files_are_opened_decoded_and_batched(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path / "data", train=1, val=2)
    rows = [f"{path},{path.parent.name}" for path in sorted((root / "val").glob("*/*.png"))]
    table = tmp_path / "data.csv"
    table.write_text("\n".join(["path,label", *rows]))
    command = [sys.executable, "-c", SCRIPT, str(root), str(table)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
