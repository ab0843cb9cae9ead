"""Put weights into the package as the embedded model, and print their row of the catalogue.

    python scripts/embed_weights.py weights.safetensors --model NAME --size 96 \
        --teacher "..." --data "..."

The classes are ImageNet's. The table of architectures must have the model already. Afterwards:

1. put the printed row into `weights/catalogue.py` in place of the old one, with what
   `splitattn evaluate DATA` measured;
2. remove the old file from `weights/embedded/`;
3. run `python benchmarks/embedded.py`, `python scripts/readme_tables.py`,
   `python scripts/readme_pictures.py` and the tests.
"""

import argparse
import sys
from pathlib import Path

from splitattn.preprocessing import Preprocessing
from splitattn.weights.catalogue import class_names
from splitattn.weights.checkpoint import check_fits, read_checkpoint, write_checkpoint
from splitattn.weights.download import file_sha256
from splitattn.weights.metadata import ModelMetadata

FOLDER = Path(__file__).parents[1] / "src" / "splitattn" / "weights" / "embedded"


def embed(
    weights: Path, model: str, preprocessing: Preprocessing, origin: dict[str, str], folder: Path
) -> Path:
    """Write `weights` with metadata into `folder`; the file name has their hash.

    Raises:
        WeightsError: they do not fit the model.
        SystemExit: they have other than 1,000 classes.
    """
    checkpoint = read_checkpoint(weights)
    classes = class_names("imagenet1k")
    found = check_fits(checkpoint, model).num_classes
    if found != len(classes):
        raise SystemExit(f"weights must have {len(classes)} classes, got {found}")
    metadata = ModelMetadata(
        model=model, classes=classes, preprocessing=preprocessing, origin=origin
    )
    written = folder / f"{model}.safetensors"
    write_checkpoint(written, checkpoint.tensors, metadata)
    return written.rename(folder / f"{model}-{file_sha256(written)[:8]}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--crop-fraction", type=float, default=1.0)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    given = parser.parse_args()
    preprocessing = Preprocessing(size=given.size, crop_fraction=given.crop_fraction)
    origin = {"teacher": given.teacher, "data": given.data}
    path = embed(given.weights, given.model, preprocessing, origin, FOLDER)
    sys.stdout.write(f"""_EMBEDDED = WeightsEntry(
    model={given.model!r},
    tag="distilled_in1k",
    filename={path.name!r},
    urls=(),
    sha256={file_sha256(path)!r},
    preprocessing=Preprocessing(size={given.size}, crop_fraction={given.crop_fraction}),
    class_set="imagenet1k",
    license="Apache-2.0",
    source="this project, distilled from {given.teacher} on {given.data}",
    measured=...,
)
""")


if __name__ == "__main__":
    main()
