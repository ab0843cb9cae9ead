"""A small data set for trying commands, made from the photographs in the package."""

import random
from pathlib import Path
from shutil import rmtree

from PIL import Image

from splitattn.errors import InputError, write_failure
from splitattn.images.crop import cropped
from splitattn.images.decode import decode
from splitattn.images.samples import sample_photographs

SIZE = 96
_COUNTS = {"train": 40, "val": 10}
# Sides of a crop, as shares of the photograph's.
_SHARES = (0.4, 0.9)


def write_toy_data(folder: Path, *, seed: int = 0) -> int:
    """Write random crops of the five photographs, in ImageFolder layout, and return how many.

    Each photograph is a class, with 40 crops for training and 10 for validation, of 96 x 96 pixels.
    Both splits come from the same photographs, so figures only show that training works.

    Raises:
        InputError: the folder is not empty, or cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"the data set must be a new or empty folder, got {folder}")
        generator = random.Random(seed)
        for path in sample_photographs():
            photograph = decode(path)
            for split, count in _COUNTS.items():
                below = folder / split / path.stem
                below.mkdir(parents=True)
                for index in range(count):
                    _crop(photograph, generator).save(below / f"{index:02}.jpg", quality=90)
    except OSError as error:
        for split in _COUNTS:  # an incomplete data set would look complete
            rmtree(folder / split, ignore_errors=True)
        raise InputError(write_failure(folder, error)) from error
    return len(sample_photographs()) * sum(_COUNTS.values())


def _crop(photograph: Image.Image, generator: random.Random) -> Image.Image:
    side = round(min(photograph.size) * generator.uniform(*_SHARES))
    left = generator.randint(0, photograph.width - side)
    top = generator.randint(0, photograph.height - side)
    crop = cropped(photograph, (left, top, left + side, top + side))
    crop = crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else crop
