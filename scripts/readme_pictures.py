"""Draw the picture of labeled photographs at the top of README.md.

usage: python scripts/readme_pictures.py

The photographs are those of the demo, labeled by the model inside the package. Look at the result.
"""

import re
from pathlib import Path

from PIL import Image, ImageOps

from splitattn.classifier import Classifier
from splitattn.images.drawing import WIDTH, draw_labels
from splitattn.images.samples import sample_photographs

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "charts" / "labels.jpg"
SHAPE = (3, 2)  # of each photograph, width to height


def main() -> None:
    script = (ROOT / "scripts" / "demo.sh").read_text(encoding="utf-8")
    classifier = Classifier(engine="onnxruntime")  # the only engine in the demo's environment
    by_name = {path.name: path for path in sample_photographs()}
    drawn = []
    for name in re.findall(r"\w+\.jpg", script):
        guesses = classifier.predict(by_name[name], topk=2)
        with Image.open(by_name[name]) as image:
            shown = ImageOps.fit(image.convert("RGB"), (WIDTH, WIDTH * SHAPE[1] // SHAPE[0]))
        drawn.append(draw_labels(shown, [(guess.label, guess.probability) for guess in guesses]))
    width, height = drawn[0].size
    together = Image.new("RGB", (width * len(drawn), height))
    for column, picture in enumerate(drawn):
        together.paste(picture, (column * width, 0))
    together.resize((together.width // 2, together.height // 2), Image.Resampling.LANCZOS).save(
        PICTURE, quality=85
    )


if __name__ == "__main__":
    main()
