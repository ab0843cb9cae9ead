import csv
import errno
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image, features

from splitattn.classifier import Classifier
from splitattn.cli import main
from splitattn.engines.engine import Engine
from splitattn.errors import ImageError
from splitattn.opening import TrainedNetwork
from tests.cli.networks import CLASSES, write_weights
from tests.images.site import answer, site


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture
def predict(weights: Path, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        status = 0
        try:
            # PyTorch is loaded already; tests/engines compares the engines.
            own = ["--weights", str(weights), "--engine", "torch"]
            main(["predict", *own, *map(str, arguments)])
        except SystemExit as end:
            status = end.code or 0
        out, err = capsys.readouterr()
        return Answer(status=status, out=out, err=err)

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    Image.fromarray(skimage.data.astronaut()).save(folder / "more" / "astronaut.jpg")
    return folder


NAMES = ["chelsea.png", "coffee.png", "rocket.png", "more/astronaut.jpg"]


def test_json_has_one_object_per_input_with_the_fields_of_the_contract(
    predict, photos: Path, weights: Path
) -> None:
    answer = predict(photos, "--format", "json", "--topk", 2)
    assert (answer.status, answer.err) == (0, "")
    assert [line["path"] for line in answer.lines] == [str(photos / name) for name in NAMES]
    expected = Classifier(weights=weights).predict(str(photos / "chelsea.png"), topk=2)
    first = answer.lines[0]
    assert list(first) == ["path", "predictions", "model", "weights"]
    assert (first["model"], first["weights"]) == ("resnest14", str(weights))
    assert [list(p) for p in first["predictions"]] == [["label", "index", "probability"]] * 2
    for actual, wanted in zip(first["predictions"], expected, strict=True):
        assert (actual["label"], actual["index"]) == (wanted.label, wanted.index)
        assert actual["probability"] == pytest.approx(wanted.probability, abs=1e-5)


def test_a_few_files_are_opened_for_a_quick_start_and_a_folder_is_not(
    predict, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    load = TrainedNetwork.load

    def spy(*arguments: Any, quick_start: bool, **options: Any) -> Engine:
        chosen.append(quick_start)
        return load(*arguments, quick_start=quick_start, **options)

    monkeypatch.setattr(TrainedNetwork, "load", spy)
    image = photos / "coffee.png"
    for inputs in ([image], [image] * 16, [image] * 17, [photos], [image, photos]):
        assert predict(*inputs).status == 0
    assert chosen == [True, True, False, False, False]


def test_the_table_says_where_the_best_guess_is_not_probable(
    predict, photos: Path, weights: Path
) -> None:
    image = photos / "coffee.png"
    best = Classifier(weights=weights).predict(str(image))[0].probability
    answers = [predict(image, f"--min-probability={best + d}") for d in (-1e-3, 1e-3)]
    sure, unsure = (answer.out.splitlines() for answer in answers)
    assert (sure[0], unsure[0]) == (str(image), f"{image}  (not sure)")
    assert sure[1:] == unsure[1:]
    whole = [predict(image, "--format=json", f"--min-probability={x}").lines for x in (0, 1)]
    assert whole[0] == whole[1]
    assert predict(image, "--min-probability=1.5").status == 2


def test_some_bad_inputs_give_status_1_and_every_other_answer(predict, photos: Path) -> None:
    (photos / "empty.jpg").touch()
    (photos / "text.jpg").write_text("no photograph")
    jpeg = photos / "more" / "astronaut.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:5000])
    answer = predict(photos, photos / "missing.png", "--format", "json", "--batch-size", 2)
    assert answer.status == 1
    bad = {line["path"]: line["error"] for line in answer.lines if list(line) == ["path", "error"]}
    assert [Path(path).name for path in bad] == [
        "empty.jpg",
        "text.jpg",
        "astronaut.jpg",
        "missing.png",
    ]
    assert all(error.startswith(path) and error.isprintable() for path, error in bad.items())
    good = [Path(line["path"]).name for line in answer.lines if "predictions" in line]
    assert good == ["chelsea.png", "coffee.png", "rocket.png"]
    assert answer.err == "4 of 7 images could not be labeled\n"


def test_if_all_inputs_are_bad_each_still_has_an_answer(predict, tmp_path: Path) -> None:
    answer = predict(tmp_path, tmp_path / "*.jpg", "--format", "json")
    assert answer.status == 1
    assert [line["path"] for line in answer.lines] == [str(tmp_path), str(tmp_path / "*.jpg")]


def test_globs_files_stdin_and_urls_mix_in_order(
    predict, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos / 'rocket.png'}\n\nmissing\n"))
    page = answer(200, (photos / "coffee.png").read_bytes())
    with site({"/coffee": page}) as address:
        urls = [f"{address}/coffee", f"{address}/gone"]
        result = predict(f"{photos}/**/*.jpg", "-", *urls, photos / "chelsea.png", "--format=json")
    assert result.status == 1
    assert [(line["path"], "error" in line) for line in result.lines] == [
        (str(photos / "more/astronaut.jpg"), False),
        (str(photos / "rocket.png"), False),
        ("missing", True),
        (urls[0], False),
        (urls[1], True),
        (str(photos / "chelsea.png"), False),
    ]


def test_csv_is_quoted_where_it_must_be(predict, photos: Path, weights: Path) -> None:
    path = photos / 'a "cat", they say.png'
    (photos / "chelsea.png").rename(path)
    answer = predict(path, photos / "missing.png", "--format", "csv", "--topk", len(CLASSES))
    assert answer.status == 1
    *rows, failed = csv.DictReader(io.StringIO(answer.out, newline=""))
    assert {row["path"] for row in rows} == {str(path)}
    assert {row["label"]: row["index"] for row in rows} == {
        label: str(index) for index, label in enumerate(CLASSES)
    }
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)
    assert {(row["model"], row["weights"], row["error"]) for row in rows} == {
        ("resnest14", str(weights), "")
    }
    assert failed["path"] == str(photos / "missing.png")
    assert "no such file" in failed["error"]
    assert failed["label"] == ""


def test_pictures_say_not_sure_below_the_least_probability(
    predict, photos: Path, tmp_path: Path
) -> None:
    image, drawn = photos / "coffee.png", {}
    for least in ("0", "1"):
        folder = tmp_path / least
        assert predict(image, "--draw", folder, "--min-probability", least).status == 0
        (path,) = folder.iterdir()
        with Image.open(path) as picture:
            drawn[least] = np.asarray(picture.convert("RGB"), int)
    blue = {least: (np.ptp(pixels[-60:], axis=2) > 100).sum() for least, pixels in drawn.items()}
    assert blue["0"] > 100  # the bars
    assert blue["1"] == 0


def test_draw_writes_a_picture_for_each_labeled_image(
    predict, photos: Path, tmp_path: Path
) -> None:
    (photos / "more" / "rocket.jpg").write_bytes((photos / "more" / "astronaut.jpg").read_bytes())
    (photos / "broken.png").write_bytes(b"text")
    folder = tmp_path / "new" / "drawn"
    answer = predict(photos, "--draw", folder, "--format", "json", "--topk", 2)
    assert answer.status == 1
    assert f"{folder}: 5 pictures\n" in answer.err
    names = {path.name for path in folder.iterdir()}
    assert names == {"astronaut.jpg", "chelsea.jpg", "coffee.jpg", "rocket.jpg", "rocket-2.jpg"}
    with Image.open(folder / "astronaut.jpg") as drawn:
        assert drawn.size == (640, 640 + 2 * 16 + 2 * 40)
        middle = drawn.convert("RGB").crop((0, 0, 640, 640)).resize((512, 512))
    difference = np.asarray(middle, float) - skimage.data.astronaut()
    assert np.abs(difference).mean() < 4
    refused = predict(photos, "--draw", photos / "coffee.png")
    assert refused.status == 2
    assert "--draw must be a folder" in refused.err
    assert "which would be a file" in predict(photos, "--draw", tmp_path / "drawn.PDF").err
    assert not (tmp_path / "drawn.PDF").exists()
    before = (photos / "chelsea.png").read_bytes()
    assert "--draw must be a new or empty folder" in predict(photos, "--draw", photos).err
    assert (photos / "chelsea.png").read_bytes() == before


def test_an_image_that_cannot_be_drawn_still_has_its_label(
    predict, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> ImageError:
        return ImageError("no such file", "coffee.png")

    monkeypatch.setattr("splitattn.cli.drawing.Pictures.add", gone)
    answer = predict(photos / "coffee.png", "--draw", tmp_path / "drawn", "--format", "json")
    assert (answer.status, len(answer.lines)) == (1, 1)
    assert answer.err.splitlines() == [
        "error: coffee.png: no such file; no picture of it is drawn",
        "pictures that could not be drawn: 1",
    ]


def test_the_table_is_the_default_and_reads_well(predict, photos: Path) -> None:
    answer = predict(photos / "chelsea.png", photos / "missing.png", "--topk", 1)
    first, best, error = answer.out.splitlines()
    assert first.removesuffix("  (not sure)") == str(photos / "chelsea.png")
    percent, sign, label = best.split(maxsplit=2)
    assert 0 < float(percent) <= 100
    assert (sign, label in CLASSES) == ("%", True)
    assert error.startswith(f"error: {photos / 'missing.png'}: no such file")


def test_a_file_name_cannot_write_to_the_terminal(predict, photos: Path) -> None:
    path = photos / "\x1b[31mred\n.png"
    (photos / "chelsea.png").rename(path)
    assert (
        predict(path, "--min-probability=0").out.splitlines()[0] == f"{photos}/\\x1b[31mred\\n.png"
    )


@pytest.mark.parametrize("layout", ["json", "csv", "table"])
def test_a_file_name_that_is_not_text_survives(predict, photos: Path, layout: str) -> None:
    path = photos / os.fsdecode(b"\xff.png")
    (photos / "chelsea.png").rename(path)
    answer = predict(photos / "coffee.png", path, "--format", layout)
    assert answer.status == 0
    if layout == "json":
        assert answer.lines[1]["path"] == str(path)
    else:
        assert f"{photos}/\\udcff.png" in answer.out


def test_output_appears_whole_or_not_at_all(predict, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    answer = predict(photos, "--format", "json", "--output", output)
    assert (answer.status, answer.out) == (0, "")
    assert len(output.read_text().splitlines()) == len(NAMES)
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "results.json"}


def test_output_that_is_a_hyphen_is_stdout(
    predict, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = predict(photos / "coffee.png", "--output", "-", "--format", "json")
    assert [line["path"] for line in answer.lines] == [str(photos / "coffee.png")]
    assert not Path("-").exists()


def test_an_output_with_an_unknown_suffix_is_refused_unless_a_format_is_given(
    predict, photos: Path, tmp_path: Path
) -> None:
    answer = predict(photos, "--output", tmp_path / "labels.xlsx")
    assert answer.status == 2
    assert "--output must end in .json, .jsonl, .csv, .txt or have no ending, got" in answer.err
    assert not (tmp_path / "labels.xlsx").exists()
    assert predict(photos, "--output", tmp_path / "a.tsv", "--format", "csv").status == 0
    assert (tmp_path / "a.tsv").read_text().startswith("path,rank,")


def test_an_empty_name_is_not_the_current_folder(predict, photos: Path, monkeypatch) -> None:
    monkeypatch.chdir(photos)
    answer = predict("", "--format", "json")
    assert (answer.status, len(answer.lines)) == (1, 1)
    assert "expected the path of an image, got an empty path" in answer.out


def test_output_that_is_no_file_is_refused_and_stays(predict, photos: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    answer = predict(photos, "--output", pipe)
    assert answer.status == 2
    assert f"--output must be a file, got {pipe}" in answer.err
    assert pipe.is_fifo()


def test_output_through_a_loop_of_links_is_refused(predict, photos: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.symlink_to(other)
    other.symlink_to(one)
    answer = predict(photos, "--output", one)
    assert answer.status == 2
    assert f"{one}" in answer.err
    assert "Too many levels of symbolic links" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert one.is_symlink()


def test_output_through_a_link_keeps_the_link(predict, photos: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    assert predict(photos, "--format", "json", "--output", link).status == 0
    assert link.is_symlink()
    assert len(target.read_text().splitlines()) == len(NAMES)


def test_an_interrupted_run_leaves_the_old_output(
    predict, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results.json"
    output.write_text("old")
    stream = Classifier.predict_stream

    def interrupted(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield next(stream(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "predict_stream", interrupted)
    answer = predict(photos, "--format", "json", "--output", output)
    assert answer.status == 130
    assert output.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "results.json"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "predict needs images, got none"),
        (["x.jpg", "--output", "/"], "--output must be a file, got /, a folder or device"),
        (["x.jpg", "--output", "/nowhere/at/all"], "cannot write --output /nowhere/at/all"),
        (["x.jpg", "--output", "x" * 300], "cannot write --output xxx"),
        (["x.jpg", "--output", "no\nfolder\udcff/x"], r"cannot write --output no\nfolder\udcff/x"),
        (["x.jpg", "--topk", "0"], "'--topk': 0 is not in the range x>=1"),
        (["x.jpg", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["x.jpg", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["x.jpg", "--engine", "steam"], "engine must be one of"),
        (["x.jpg", "--model", "resnest5"], "no model is called 'resnest5'"),
        (["x.jpg", "--weights", "missing.pth"], "missing.pth"),
    ],
)
def test_a_wrong_call_is_reported_in_one_line_with_status_2(
    predict, arguments: list[str], complaint: str
) -> None:
    answer = predict(*arguments)
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("error: ")
    assert complaint in answer.err


def test_a_bar_counts_what_is_done_of_how_many_on_a_terminal_only(
    predict, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    answer = predict(photos, "--format", "json")
    assert f"{len(NAMES)}/{len(NAMES)} images" in answer.err
    assert [line["path"] for line in answer.lines] == [str(photos / name) for name in NAMES]


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="needs POSIX pipes")
def test_results_stream_and_a_closed_pipe_ends_quietly(weights: Path, tmp_path: Path) -> None:
    for number in range(80):
        pixels = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:03}.png")
    command = [sys.executable, "-m", "splitattn", "predict", "-", "--weights", str(weights)]
    process = subprocess.Popen(
        [*command, "--format", "json", "--batch-size", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        # The first result arrives before the list on stdin has ended.
        process.stdin.write("".join(f"{tmp_path}/{number:03}.png\n" for number in range(8)))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["path"] == f"{tmp_path}/000.png"
        process.stdout.close()
        process.stdin.write(f"{tmp_path}\n")
        process.stdin.close()
        assert process.wait(60) != 0
        assert process.stderr.read() == "loading OpenVINO\n"


def test_cells_are_text_that_a_spreadsheet_does_not_run(
    predict, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = photos / "=1+2\r\x1b[2J.png"
    (photos / "chelsea.png").rename(path)
    monkeypatch.chdir(photos)
    answer = predict(path.name, photos / "missing.png", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(answer.out, newline="")))
    assert {row["path"] for row in rows} == {
        r"'=1+2\r\x1b[2J.png",
        str(photos / "missing.png"),
    }
    assert all(line.isprintable() for line in answer.out.splitlines())


def piped(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)))


def test_stdin_is_left_alone_unless_it_is_asked_for(
    photos: Path, predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.RawIOBase):
        """A stdin that fails the test when it is read; a real terminal would block."""

        def readable(self) -> bool:
            return True

        def readinto(self, _: object) -> int:
            raise AssertionError("stdin was read")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Terminal())))
    assert predict(photos / "rocket.png", "--format", "json").status == 0


def test_a_picture_on_stdin_is_labeled(
    predict, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = photos / "more" / "astronaut.jpg"
    monkeypatch.setattr(sys, "stdin", piped(path.read_bytes()))
    answer = predict("-", path, "--format", "json", "--draw", tmp_path / "drawn")
    assert answer.status == 0
    first, second = answer.lines
    assert (first.pop("path"), second.pop("path")) == ("-", str(path))
    assert first == second
    drawn = [tmp_path / "drawn" / f"{name}.jpg" for name in ("stdin", "astronaut")]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()


@pytest.mark.parametrize("kinds", [("JPEG", "JPEG"), ("PNG", "JPEG"), ("JPEG", "WEBP")])
def test_two_pictures_on_stdin_are_not_taken_for_one(
    predict, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, str]
) -> None:
    files = [io.BytesIO() for _ in kinds]
    for kind, file in zip(kinds, files, strict=True):
        Image.new("RGB", (40, 40), "red").save(file, kind)
    monkeypatch.setattr(sys, "stdin", piped(b"".join(file.getvalue() for file in files)))
    answer = predict("-")
    assert answer.status == 2
    assert answer.err.startswith("error: stdin must be one picture, got another after it: name")


def test_a_picture_of_several_jpeg_streams_counts_as_one(
    predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(96, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF", compression="jpeg", tiffinfo={278: 32})
    assert b"\xff\xd9\xff\xd8\xff" in file.getvalue()
    monkeypatch.setattr(sys, "stdin", piped(file.getvalue()))
    assert predict("-").status == 0


def test_a_camera_may_put_several_pictures_into_one_file(
    predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, file = Image.new("RGB", (40, 40), "red"), io.BytesIO()
    image.save(file, "MPO", save_all=True, append_images=[image])
    monkeypatch.setattr(sys, "stdin", piped(file.getvalue()))
    assert predict("-").status == 0


def test_an_archive_on_stdin_is_reported_in_one_line(
    predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", piped(gzip.compress(b"a picture")))
    answer = predict("-")
    assert answer.status == 2
    assert answer.err == (
        "error: stdin must be a list of names or a picture, got an archive: unpack it\n"
    )


def test_names_that_begin_like_a_picture_are_names(
    predict, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    names = ["BMW.png", "RIFF.png", "GIF89.png"]
    for name in names:
        Path(name).write_bytes(Path("coffee.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", piped("\n".join(names).encode()))
    answer = predict("-", "--format", "json")
    assert [line["path"] for line in answer.lines] == names


def test_names_that_end_in_nul_may_hold_line_ends(
    predict, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`find -print0` writes such lists."""
    monkeypatch.chdir(photos)
    names = ["a\nb.png", "c\r\nd.png", "e\rf.png", "\n.png", "coffee.png"]
    for name in names:
        Path(name).write_bytes(Path("coffee.png").read_bytes())
    for end in ("\0", ""):
        monkeypatch.setattr(sys, "stdin", piped(("\0".join(names) + end).encode()))
        answer = predict("-", "--format", "json")
        assert [line["path"] for line in answer.lines] == names


@pytest.mark.parametrize("kind", ["PPM", "ICO", "NPY", "WEBP", "AVIF", "TIFF", "BMP"])
def test_every_kind_of_picture_on_stdin_is_labeled(
    predict, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The bytes of a PPM, taken for names between NULs, may name the root folder."""
    if kind in ("WEBP", "AVIF") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow has no {kind}")
    file, image = io.BytesIO(), Image.new("RGB", (40, 40), "red")
    np.save(file, np.asarray(image)) if kind == "NPY" else image.save(file, kind)
    monkeypatch.setattr(sys, "stdin", piped(file.getvalue()))
    answer = predict("-", "--format", "json")
    assert (answer.status, [line["path"] for line in answer.lines]) == (0, ["-"])


@pytest.mark.parametrize(
    "content", [b"P2\n# gray\n2 2\n255\n1 2 3 4\n", b"P5 40 40 255\n" + b"A" * 1600]
)
def test_a_pgm_on_stdin_may_look_like_text(
    predict, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(sys, "stdin", piped(content))
    answer = predict("-", "--format", "json")
    assert (answer.status, [line["path"] for line in answer.lines]) == (0, ["-"])


@pytest.mark.parametrize("content", [b"\x10\0\0\0{\0/\0", b"%PDF-1.4\n1 0 obj\n\x02\0/\0x\n"])
def test_other_binary_files_on_stdin_are_no_lists(
    predict, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(sys, "stdin", piped(content))
    answer = predict("-")
    assert answer.status == 1
    assert "expected an image" in answer.out


def test_names_of_one_letter_between_nuls_are_a_list(
    predict, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    for name in "1234":
        Path(name).write_bytes(Path("coffee.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", piped(b"1\x002\x003\x004\0"))
    answer = predict("-", "--format", "json")
    assert [line["path"] for line in answer.lines] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_in_utf_16_is_reported_in_one_line(
    predict, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr(sys, "stdin", piped("a.png\nb.png\n".encode(encoding)))
    answer = predict("-")
    assert answer.status == 2
    assert answer.err == "error: a list on stdin must be in UTF-8, got UTF-16: convert it\n"


@pytest.mark.parametrize("stdin", [None, b""], ids=["closed", "empty"])
def test_nothing_on_stdin_is_reported_in_one_line(
    predict, stdin: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin if stdin is None else piped(stdin))
    answer = predict("-")
    assert (answer.status, answer.err) == (
        2,
        "error: predict needs images, got none: stdin is empty or closed\n",
    )


def test_an_empty_folder_is_reported_in_one_line(predict, tmp_path: Path) -> None:
    folder = tmp_path / "none"
    folder.mkdir()
    for others in ("", "; 1 file is skipped, not an image by name: .svg (1)"):
        answer = predict(folder)
        said = f"error: predict needs images, got none in the folder {folder}{others}\n"
        assert (answer.status, answer.out, answer.err) == (2, "", said)
        (folder / "a.svg").touch()


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("stream", "broken"), [("stdout", None), ("stdout", Full()), ("stderr", None)]
)
def test_output_is_written_whatever_the_streams_are(
    predict,
    stream: str,
    broken: Full | None,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "labels.json"
    monkeypatch.setattr(sys, stream, broken)
    predict(photos / "coffee.png", tmp_path / "none.png", "--output", output)
    assert len(output.read_text().splitlines()) == 2


def test_results_that_a_stream_does_not_take_are_reported_in_one_line(
    predict, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    answer = predict(photos / "coffee.png")
    assert answer.status == 2
    assert answer.err.startswith("error: cannot read or write the results or a file: the stream is")
