"""Code blocks of Markdown pages, and a folder with the files that they use."""

import re
from pathlib import Path

import skimage.data
from PIL import Image

PHOTOS = Path(skimage.data.__path__[0])


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of `text` in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def furnish(folder: Path, text: str) -> None:
    """Put photographs, a data set and the recipes of `text` into `folder`."""
    coffee, chelsea = (Image.open(PHOTOS / f"{name}.png") for name in ("coffee", "chelsea"))
    coffee.save(folder / "photo.jpg")
    (folder / "photos" / "trip").mkdir(parents=True)
    coffee.save(folder / "photos" / "coffee.jpg")
    chelsea.save(folder / "photos" / "trip" / "chelsea.jpg")
    for split, count in (("train", 6), ("val", 2)):
        for label, photo in (("espresso", coffee), ("tabby", chelsea)):
            place = folder / "dataset" / split / label
            place.mkdir(parents=True)
            for i in range(count):
                photo.crop((10 * i, 0, 10 * i + 240, 240)).save(place / f"{i}.jpg")
    for recipe in blocks(text, "toml"):
        name = recipe.partition("\n")[0].removeprefix("# ")
        (folder / name).write_text(recipe, encoding="utf-8")
