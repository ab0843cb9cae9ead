"""The report shows what was measured, loads nothing from elsewhere and runs no script."""

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from splitattn.data.labeled import LabeledImages
from splitattn.data.sources import open_data
from splitattn.evaluation import Answer, Evaluation
from splitattn.training.classification_report import classification_report
from splitattn.training.report import write_report
from tests.data.datasets import write_class_folders

_VOID = {"meta", "img", "line", "circle", "polyline"}


class Page(HTMLParser):
    """The elements, table rows and text of a page, in which every element must be closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def images(self, kind: str) -> list[Image.Image]:
        start = f"data:image/{kind};base64,"
        sources = [attributes["src"] or "" for tag, attributes in self.elements if tag == "img"]
        return [
            Image.open(io.BytesIO(base64.b64decode(source.removeprefix(start), validate=True)))
            for source in sources
            if source.startswith(start)
        ]


def history(epochs: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for epoch in range(epochs):
        lines += [
            {
                "kind": "train",
                "step": step,
                "epoch": step / 20,
                "loss": 2 / step,
                "top1": 50.0 + epoch,
                "learning_rate": 0.1,
                "images_per_second": 900.0,
            }
            for step in range(20 * epoch + 1, 20 * epoch + 21)
        ]
        lines.append(
            {
                "kind": "epoch",
                "epoch": epoch,
                "size": 64,
                "train_loss": 1.5 / (epoch + 1),
                "train_top1": 50.0,
                "val_loss": 1.25 / (epoch + 1),
                "val_top1": 62.5,
                "val_top5": 87.5,
                "unreadable": 3,
                "seconds": 1850.0,
            }
        )
    return lines


@pytest.fixture
def data(tmp_path: Path) -> LabeledImages:
    return open_data(str(write_class_folders(tmp_path / "data", 6)), "val")


def mistake(data: LabeledImages, index: int, probability: float = 0.875) -> Answer:
    label = data.labels[index]
    return Answer(
        index=index,
        name=data.names[index],
        label=data.classes[label],
        guess=data.classes[label - 1],
        probability=probability,
    )


def evaluation(data: LabeledImages, *indices: int, problems: tuple[str, ...] = ()) -> Evaluation:
    """An evaluation: 13 of 18 right, 17 in the top five, `indices` as the kept mistakes."""
    return Evaluation(
        classes=data.classes,
        confusion=torch.tensor([[6, 0, 0], [1, 4, 1], [0, 3, 3]]),
        top5_by_class=torch.tensor([6, 6, 5]),
        loss=0.51234,
        mistakes=tuple(mistake(data, index) for index in indices),
        problems=problems,
        guesses=np.empty(0, np.int64),
    )


def write(
    folder: Path,
    data: LabeledImages,
    measured: Evaluation,
    lines: list[dict[str, Any]] | None = None,
    recipe: dict[str, Any] | None = None,
    title: str = "resnest14 on colors",
) -> Page:
    folder.mkdir(exist_ok=True)
    lines = history(3) if lines is None else lines
    unreadable = max([len(measured.problems), *(line.get("unreadable", 0) for line in lines)])
    write_report(
        folder / "report.html",
        classification_report(title, measured, data, unreadable=unreadable, white_level=None),
        history=lines,
        recipe={"epochs": 3, "learning_rate": 0.1} if recipe is None else recipe,
    )
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    page = Page(folder / "report.html")
    # No report may load anything from elsewhere or run a script.
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not [name for name in attributes if name.startswith("on") or name == "href"]
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "url(" not in page.source
    assert "@import" not in page.source
    return page


def test_the_page_says_what_was_measured(tmp_path: Path, data: LabeledImages) -> None:
    recipe = {"epochs": 3, "weight_decay": 1e-4, "first_train_size": None, "precision": "bfloat16"}
    page = write(tmp_path / "out", data, evaluation(data, 7), recipe=recipe)
    for figure in ("72.22 %", "94.44 %", "0.5123", "resnest14 on colors", "13 first guesses"):
        assert figure in page.text
    assert "Trained for 3 epochs in 1 h 32 min." in page.text
    assert re.search(r"Could not be read\s*3\s*training and validation", page.text)
    assert re.search(r"weight_decay\s*0.0001\s*first_train_size\s*none", page.text)
    assert re.search(r"precision\s*bfloat16", page.text)
    assert "http://" not in page.source
    assert "https://" not in page.source


def test_the_matrix_has_every_count(tmp_path: Path, data: LabeledImages) -> None:
    page = write(tmp_path / "out", data, evaluation(data))
    assert ["label", "images", "blue", "green", "red", "recall %"] in page.rows
    assert ["blue", "6", "6", "0", "0", "100.0"] in page.rows
    assert ["green", "6", "1", "4", "1", "66.7"] in page.rows
    assert ["red", "6", "0", "3", "3", "50.0"] in page.rows


def test_a_class_without_images_has_no_recall(tmp_path: Path, data: LabeledImages) -> None:
    measured = Evaluation(
        classes=data.classes,
        confusion=torch.tensor([[4, 0, 1], [0, 0, 0], [0, 0, 1]]),
        top5_by_class=torch.tensor([5, 0, 1]),
        loss=0.1,
        mistakes=(),
        problems=(),
        guesses=np.empty(0, np.int64),
    )
    page = write(tmp_path / "out", data, measured)
    assert ["green", "0", "0", "0", "0", "-"] in page.rows


def test_curves_have_axes_and_a_legend(tmp_path: Path, data: LabeledImages) -> None:
    page = write(tmp_path / "out", data, evaluation(data))
    assert page.source.count("<svg") == 3
    assert page.source.count('<g class="train">') == 3
    assert page.source.count('<g class="val">') == 2
    assert "2: 0.625" in page.text  # the tooltip of the dot of the second epoch
    for name in ("Loss", "Top-1", "Learning rate", "training", "validation", "epochs"):
        assert name in page.text
    assert ["2", "64", "0.7500", "50.00", "0.6250", "62.50", "87.50", "1850"] in page.rows


@pytest.mark.parametrize("kept", [0, 1, 21])
def test_a_short_history_is_enough(tmp_path: Path, data: LabeledImages, kept: int) -> None:
    page = write(tmp_path / "out", data, evaluation(data), history(1)[:kept])
    assert page.source.count("<svg") == (3 if kept else 0)
    assert "nan" not in page.source


def test_a_loss_that_was_not_finite_leaves_the_other_epochs(
    tmp_path: Path, data: LabeledImages
) -> None:
    lines = history(3)
    lines[20]["val_loss"] = math.inf
    page = write(tmp_path / "out", data, evaluation(data), lines)
    assert page.source.count("<svg") == 3
    assert "2: 0.625" in page.text
    assert ["1", "64", "1.5000", "50.00", "inf", "62.50", "87.50", "1850"] in page.rows


def test_names_are_escaped(tmp_path: Path, data: LabeledImages) -> None:
    hostile = data.renamed(
        ("<script>alert(1)</script>", '" onload="alert(2)', "line\nbreak \udcff\u202e&amp;")
    )
    page = write(
        tmp_path / "out",
        hostile,
        evaluation(hostile, 0, 7, 13, problems=("<img src=x>.png: no such file",)),
        recipe={"<b>": "</dl><script>"},
        title="</title><script>",
    )
    assert "<script>alert(1)</script>" in page.text
    assert '" onload="alert(2)' in page.text
    assert r"line\nbreak \udcff\u202e&amp;" in page.text
    assert "<img src=x>.png: no such file" in page.text
    assert "</dl><script>" in page.text
    assert "default-src 'none'" in page.source


def test_a_long_list_of_problems_is_cut(tmp_path: Path, data: LabeledImages) -> None:
    problems = tuple(f"{i}.png: no such file" for i in range(1200))
    page = write(tmp_path / "out", data, evaluation(data, problems=problems))
    assert re.search(r"Could not be read\s*1,200training and", page.text)
    assert page.text.count("no such file") == 50
    assert "and 1,150 more" in page.text


def test_pictures_of_mistakes_have_the_white_level_of_the_recipe(
    tmp_path: Path, data: LabeledImages
) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((16, 16), 300, np.uint16)).save(path)
    deep = replace(data, images=[str(path)] * len(data.labels))
    report = classification_report("", evaluation(deep, 0), deep, unreadable=0, white_level=4095.0)
    write_report(tmp_path / "report.html", report, history=history(1), recipe={})
    (picture,) = Page(tmp_path / "report.html").images("jpeg")
    assert np.asarray(picture).mean() == pytest.approx(300 / 4095 * 255, abs=1)


def test_mistakes_are_pictures(tmp_path: Path, data: LabeledImages) -> None:
    # Larger than a thumbnail, and no square.
    Image.new("RGB", (800, 200), (250, 200, 0)).save(str(data.images[13]))
    page = write(tmp_path / "out", data, evaluation(data, 13, 0, 7))
    pictures = page.images("jpeg")
    assert [picture.size for picture in pictures] == [(160, 40), (40, 40), (40, 40)]
    assert np.asarray(pictures[0]).mean((0, 1)) == pytest.approx((250, 200, 0), abs=3)
    assert np.asarray(pictures[1]).mean((0, 1)).argmax() == 2
    assert re.search(r"green\s*87.5 %\s*is red", page.text)
    figures = [attributes for tag, attributes in page.elements if tag == "figure"]
    assert figures[-1]["title"] == data.names[7]


def test_an_image_that_is_gone_is_left_out(tmp_path: Path, data: LabeledImages) -> None:
    Path(str(data.images[0])).unlink()
    Path(str(data.images[7])).write_bytes(b"nothing")
    page = write(tmp_path / "out", data, evaluation(data, 0, 13, 7))
    assert len(page.images("jpeg")) == 1
    gone = write(tmp_path / "gone", data, evaluation(data, 0, 7))
    none = write(tmp_path / "none", data, evaluation(data))
    for page in (gone, none):
        assert not page.images("jpeg")
        assert "mistakes" not in page.text


def test_many_classes_become_lists_and_a_picture(tmp_path: Path, data: LabeledImages) -> None:
    classes = tuple(f"class {i}" for i in range(200))
    confusion = np.diag(np.arange(200) + 10)
    confusion[150, 20] = 90
    confusion[3, 190] = 13
    confusion[199] = 0
    measured = Evaluation(
        classes=classes,
        confusion=confusion,
        top5_by_class=confusion.sum(1),
        loss=1.0,
        mistakes=(),
        problems=(),
        guesses=np.empty(0, np.int64),
    )
    page = write(tmp_path / "out", data, measured)
    assert ["class 150", "class 20", "90", "36.0"] in page.rows
    at = page.rows.index(["class", "images", "top-1 %", "top-5 %"])
    assert page.rows[at + 1 : at + 4] == [
        ["class 3", "26", "50.0", "100.0"],
        ["class 150", "250", "64.0", "100.0"],
        ["class 0", "10", "100.0", "100.0"],
    ]
    assert len(page.rows[at:]) == 11
    (picture,) = page.images("png")
    assert picture.size == (600, 600)
    opacity = np.asarray(picture.convert("RGBA"))[1::3, 1::3, 3]
    assert (opacity > 0).sum() == 201
    assert opacity[0, 0] == 255
    assert opacity[150, 20] == round(255 * math.sqrt(0.36))
    assert opacity[3, 190] == round(255 * math.sqrt(0.5))
    assert opacity[199].max() == 0


def test_a_page_takes_the_place_of_the_one_before(tmp_path: Path, data: LabeledImages) -> None:
    write(tmp_path / "out", data, evaluation(data), title="before")
    page = write(tmp_path / "out", data, evaluation(data), title="after")
    assert "after" in page.text
    assert "before" not in page.text
