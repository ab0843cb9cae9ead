"""Draw the pictures of README.md: labeled photographs, a terminal, the report of a training.

usage: python scripts/readme_pictures.py [labels] [terminal] [report]

All are drawn by default. The photographs are those of the demo, labeled by the embedded model. The
report is that of a short training on the toy data set, which takes a minute or two; Chromium, which
must be on PATH, takes the screenshot. Look at the results.
"""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageOps
from rich.console import Console
from rich.terminal_theme import MONOKAI

from splitattn.classifier import Classifier
from splitattn.cli.predict import MIN_PROBABILITY
from splitattn.data.toy import write_toy_data
from splitattn.images.drawing import WIDTH, draw_labels
from splitattn.images.samples import sample_photographs

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "charts"
SHAPE = (3, 2)  # width to height of each photograph
COLUMNS = 50  # width of the terminal
SCALE = 0.75  # of the picture of the terminal, whose letters are large
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
REPORT_SIZE = (1000, 815)  # of the screenshot, in pixels
TRAINING = ("epochs=3", "batch_size=16", "learning_rate=0.5")


def labels() -> None:
    """The photographs of the demo in two rows, each with its two best labels."""
    classifier = Classifier(engine="onnxruntime")  # the only engine in the demo's environment
    by_name = {path.name: path for path in sample_photographs()}
    drawn = []
    for name in demo_photographs():
        guesses = classifier.predict(by_name[name], topk=2)
        with Image.open(by_name[name]) as image:
            shown = ImageOps.fit(image.convert("RGB"), (WIDTH, WIDTH * SHAPE[1] // SHAPE[0]))
        guessed = [(guess.label, guess.probability) for guess in guesses]
        drawn.append(draw_labels(shown, guessed, min_probability=MIN_PROBABILITY))
    width, height = drawn[0].size
    together = Image.new("RGB", (width * 2, height * ((len(drawn) + 1) // 2)))
    for place, picture in enumerate(drawn):
        together.paste(picture, (place % 2 * width, place // 2 * height))
    together.resize((together.width // 2, together.height // 2), Image.Resampling.LANCZOS).save(
        PICTURES / "labels.jpg", quality=85
    )


def terminal() -> None:
    """The end of the demo as it looks in a terminal."""
    (PICTURES / "terminal.svg").write_text(drawn_terminal(), encoding="utf-8")


def drawn_terminal() -> str:
    """The terminal as an SVG file, with the commands and answers as text."""
    arguments = ("predict", "--topk", "3", *demo_photographs())
    shown = splitattn(*arguments, folder=sample_photographs()[0].parent)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    console.print(f"[bold green]$[/] splitattn {' '.join(arguments)}")
    console.print(shown.rstrip(), markup=False)
    console.print()  # without it, Rich cuts off the descenders of the last line
    picture = console.export_svg(title="splitattn", theme=MONOKAI, unique_id="terminal")
    # Any font of fixed width will do, so that none is loaded from elsewhere.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = picture.replace("Fira Code", "ui-monospace, DejaVu Sans Mono")
    return re.sub(
        r'viewBox="0 0 ([\d.]+) ',
        lambda found: f'width="{SCALE * float(found[1]):.0f}" {found[0]}',
        picture,
        count=1,
    )


def report() -> None:
    """The top of `report.html` after a short training."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"the picture of the report needs one of {', '.join(BROWSERS)} on PATH")
    width, height = REPORT_SIZE
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_toy_data(folder / "toy")
        settings = [argument for setting in TRAINING for argument in ("--set", setting)]
        splitattn("train", "toy", "--output", "run", *settings, folder=folder)
        subprocess.run(
            [
                browser,
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                f"--user-data-dir={folder / 'browser'}",
                f"--window-size={width},{height}",
                f"--screenshot={folder / 'report.png'}",
                (folder / "run" / "report.html").as_uri(),
            ],
            check=True,
            capture_output=True,
        )
        with Image.open(folder / "report.png") as image:
            small = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
            small.save(PICTURES / "report.png", optimize=True)


def demo_photographs() -> list[str]:
    """Names of the photographs that the demo labels."""
    script = (ROOT / "scripts" / "demo.sh").read_text(encoding="utf-8")
    return re.findall(r"\w+\.jpg", script)


def splitattn(*arguments: str, folder: Path) -> str:
    """Run the command line; returns its stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "splitattn", *arguments],
        cwd=folder,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    return done.stdout


DRAWN = {"labels": labels, "terminal": terminal, "report": report}


def draw_asked_for(drawn: Mapping[str, Callable[[], None]]) -> None:
    """Draw the pictures that the command line names, by default all."""
    for name in sys.argv[1:] or drawn:
        if name not in drawn:
            sys.exit(f"pictures are {', '.join(drawn)}, got {name!r}")
        drawn[name]()


if __name__ == "__main__":
    draw_asked_for(DRAWN)
