"""Progress is a bar on a terminal, and lines in a log."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.progress import Progress

from splitattn.bulk.plan import ShardReport
from splitattn.cli import main, progress
from splitattn.cli.output import conclude, replace_streams, say, write_output
from splitattn.cli.progress import (
    counting,
    downloading,
    exporting,
    shards_progress,
    starting,
    telling,
    training_progress,
)
from splitattn.training.task import Epoch, Figure, Step


def a_step(**values: Any) -> Step:
    usual = {
        "epoch": 0,
        "epochs": 1,
        "step": 0,
        "steps": 1,
        "figures": {"loss": 1.5},
        "formats": {"loss": Figure(label="loss")},
        "learning_rate": 0.1,
        "examples": 8,
        "unit": "images",
        "seconds": 2.0,
    }
    return Step(**usual | values)


@pytest.mark.parametrize("forced", [False, True])
def test_a_log_gets_a_line_for_each_epoch_and_no_bar(
    forced: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FORCE_COLOR, which notebooks and continuous integration set, changes nothing."""
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with training_progress() as (on_step, on_epoch, _):
        on_step(a_step(epochs=2))
        on_epoch(Epoch(epoch=0, epochs=2, line={"seconds": 3.0}, text="loss 1.500  AP 0.25"))
    assert capsys.readouterr().err == "epoch 1/2  loss 1.500  AP 0.25  3 s\n"
    with downloading() as on_received:
        on_received(1, 2)
    assert capsys.readouterr().err == ""


def test_a_log_gets_a_line_every_half_minute_of_a_long_epoch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    with training_progress() as (on_step, on_epoch, on_measured):
        now += 3.0  # preparation, which does not count
        for number in range(40):
            now += 2.0
            on_step(a_step(epochs=3, step=60 + number, steps=300))  # a resumed epoch
        now += 15.0
        on_measured(8, 16)
        on_measured(8, 16)
        on_epoch(Epoch(epoch=0, epochs=3, line={"seconds": 80.0}, text="loss 1.500"))
        now += 29.0
        on_measured(1, 16)
    rest = "loss 1.500  4.0 images/s  lr 0.1000"
    assert capsys.readouterr().err.splitlines() == [
        f"epoch 1/3  step 61/300  {rest}  0:07:58 left",
        f"epoch 1/3  step 76/300  {rest}  0:07:28 left",
        f"epoch 1/3  step 91/300  {rest}  0:06:58 left",
        "epoch 1/3  measuring 8/16",
        "epoch 1/3  loss 1.500  80 s",
    ]


def test_the_first_steps_of_a_training_count_alike(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small data set has few steps, and its high first loss must not stay in every line."""
    now = 1000.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    with training_progress() as (on_step, _, _):
        for number, loss in enumerate([3.0, 1.0, 2.0, 0.0]):
            now += 60.0
            on_step(a_step(step=number, steps=4, figures={"loss": loss}, seconds=60.0))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[5] for line in lines] == ["3.000", "2.000", "2.000", "1.500"]


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> io.StringIO:
    """Make stderr a terminal of that many columns, and return the stream that records it."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    # Without `refresh`, the time between updates decides what is drawn.
    monkeypatch.setattr(Progress, "update", partialmethod(Progress.update, refresh=True))
    return screen


def lines_of(screen: io.StringIO) -> list[str]:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    return [line for line in re.split(r"[\r\n]", text) if line.strip()]


def test_no_line_of_a_training_is_wider_than_a_screen_of_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = on_terminal(monkeypatch, 80)
    formats = {"loss": Figure(label="loss"), "top1": Figure(label="top-1", unit="%", decimals=2)}
    with training_progress() as (on_step, on_epoch, on_measured):
        for step in (0, 123_455):
            figures = {"loss": 1.5, "top1": 100.0}
            place = {"epoch": 99, "epochs": 100, "step": step, "steps": 123_456}
            on_step(a_step(**place, figures=figures, formats=formats, examples=256, seconds=0.25))
        on_measured(64, 1000)
        on_measured(64, 1000)
        text = "224 px  loss 0.804  val 0.817  top-1 42.50 %  top-5 100.00 %"
        on_epoch(Epoch(epoch=99, epochs=100, line={"seconds": 1200.0}, text=text))
    lines = lines_of(screen)
    assert lines[0].startswith("preparing the training")
    assert any("loss 1.500 top-1 100.00 % 1024 images/s" in line for line in lines), lines
    assert any("epoch 100/100" in line and "measuring 128/1000" in line for line in lines), lines
    assert "epoch 100/100 224 px loss 0.804 val 0.817 top-1 42.50 % top-5 100.00 % 1200 s" in lines
    assert max(map(len, lines)) <= 80


def test_a_line_above_a_bar_is_not_broken_so_that_a_path_can_be_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = on_terminal(monkeypatch, 80)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    path = "/a/folder with a space/" + "a-long-name/" * 10 + "[1].jpg"
    with counting() as count:
        count(1, 2)
        write_output(f"{path}\n", None)
        say(f"error: {path}: no such file")
        count(1, 2)
    lines = lines_of(screen)
    assert path in lines
    assert f"error: {path}: no such file" in lines
    assert [line for line in lines if "━" in line and len(line) > 80] == []


@pytest.mark.parametrize("kind", ["pipe", "terminal", "full disk"])
def test_an_stderr_that_takes_nothing_any_more_ends_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "full disk":
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full")
        ours, theirs = os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)
    else:
        ours, theirs = os.pipe() if kind == "pipe" else os.openpty()
    with open(theirs, "w", buffering=1, encoding="utf-8") as stderr:  # noqa: PTH123
        for name in ("stderr", "__stderr__"):
            monkeypatch.setattr(sys, name, stderr)
        replace_streams()
        with starting("starting"), counting(first=0) as count:
            os.close(ours)
            count(8, 16)
        with training_progress() as (_, on_epoch, on_measured):
            on_epoch(Epoch(epoch=0, epochs=1, line={"seconds": 1.0}, text="loss 1"))
            on_measured(8, 16)
        say("error: lost, and nothing depends on it")
        sys.stderr.flush()


def test_what_stderr_takes_is_there_at_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "log").open("w", buffering=1, encoding="ascii", errors="replace") as stderr:
        for name in ("stderr", "__stderr__"):
            monkeypatch.setattr(sys, name, stderr)
        replace_streams()
        say("caf\N{LATIN SMALL LETTER E WITH ACUTE} " * 10_000)
        assert sys.stderr.fileno() == stderr.fileno()
        assert not sys.stderr.isatty()
        assert (tmp_path / "log").read_text() == "caf? " * 10_000 + "\n"


@pytest.mark.parametrize("unbuffered", [True, False])
def test_unbuffered_stderr_stays_so(unbuffered: bool) -> None:
    script = (
        "import os, sys; from splitattn.cli.output import replace_streams; replace_streams(); "
        "sys.stderr.write('no end of a line'); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, *(["-u"] if unbuffered else []), "-c", script],
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ("no end of a line" if unbuffered else "")


def test_in_a_file_a_long_step_is_told_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with telling() as tell:
        for now in range(0, 70, 5):
            tell(f"round {now}")
    assert capsys.readouterr().err == "round 5\nround 35\nround 65\n"


def test_an_export_counts_images_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch, 80)
    with exporting() as (begin, count):
        begin("quantizing, about a minute")
        for _ in range(3):
            count(1, 300)
        begin("comparing")
    text = "\n".join(lines_of(screen))
    assert "0/?" not in text
    assert re.search(r"quantizing, about a minute .* 3/300 images", text)


def test_an_export_has_a_line_for_each_step_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with exporting() as (begin, count):
        begin("writing")
        assert capsys.readouterr().err == "writing\n"
        count(1, 300)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shown", [True, False])
def test_a_status_is_shown_at_once_and_cleared_at_the_end(
    shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = on_terminal(monkeypatch, 80)
    with starting("starting", shown=shown):
        assert screen.getvalue() == ("starting ..." if shown else "")
    assert screen.getvalue() == ("starting ...\r\x1b[2K" if shown else "")


def test_a_status_is_cleared_before_a_warning_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    screen = on_terminal(monkeypatch, 80)
    record = {"msg": "no split in %s", "args": ("a\nb",), "levelno": 30, "levelname": "WARNING"}
    warning = logging.makeLogRecord(record)
    assert logging.lastResort
    with starting("starting"):
        logging.lastResort.handle(warning)
    assert screen.getvalue() == "starting ...\r\x1b[2Kwarning: no split in a\\nb\n"
    say("later")
    assert screen.getvalue().endswith("b\nlater\n")


def test_a_warning_is_shown_once_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    screen = on_terminal(monkeypatch, 80)
    assert logging.lastResort
    for message in ("one", "one", "two", "one"):
        record = {"msg": message, "levelno": 30, "levelname": "WARNING"}
        logging.lastResort.handle(logging.makeLogRecord(record))
    assert screen.getvalue() == "warning: one\nwarning: two\nwarning: one\n"


def test_a_log_gets_a_count_every_half_minute_and_its_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rate leaves out the time before the first image.

    The last image gets no line, since the result follows.
    """
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with counting(first=0.0) as count:
        for clock.now in (100.0, 110.0, 132.0, 140.0, 200.0):
            count(16, 80)
    with counting() as count:
        for clock.now in (201.0, 210.0, 251.0):
            count(100, None)
    with counting(first=0.0) as count:
        count(1, None)
    assert capsys.readouterr().err.splitlines() == [
        "16/80 images",
        "48/80 images  1.0 images/s",
        "300 images  4.0 images/s",
        "1 image",
    ]


def test_a_burst_of_results_has_no_rate_and_later_ones_have_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches of 32 images that take 2 s each are 16 images a second, also at the end."""
    screen = on_terminal(monkeypatch, 80)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with counting() as count:
        for batch in (7.0, 9.0, 11.0):
            for place in range(32):
                clock.now = batch + place * 1e-6
                count(1, 96)
            last = [line for line in lines_of(screen) if "images" in line][-1]
            assert re.search(r"\d+/96 images(  16\.0 images/s)?( |$)", last), last
            assert ("images/s" in last) == (batch > 7), last
    with exporting() as (begin, on_images):
        for step in ("calibrating", "comparing"):
            begin(step)
            on_images(8, 16)
            clock.now += 4.0
            on_images(8, 16)
            last = [line for line in lines_of(screen) if "images" in line][-1]
            assert "16/16 images  2.0 images/s" in last, last


def test_a_conclusion_is_broken_between_words_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a-folder/with-a-long-name/model.safetensors: top-1 98.00 % of 50 images"
    conclude(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    conclude(text)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [text.split()[0], "top-1 98.00 % of 50 images"]
    table = "batch  pixels\n    1     128"
    conclude(f"{table}\n{text}")
    assert capsys.readouterr().out.splitlines() == [*table.split("\n"), *lines]


def test_a_status_stays_until_something_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch, 80)
    with starting("opening"), downloading() as on_received:
        assert screen.getvalue() == "opening ..."
        on_received(500, 1000)
        assert "opening ...\r\x1b[2K" in screen.getvalue()
        assert "0.5/1.0 kB" in screen.getvalue()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pseudo-terminals of Linux")
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("predict", "none.jpg"), "opening the network"),
        (("features", "none.jpg"), "opening the network"),
        (("explain", "none.jpg", "--output", "none"), "opening the network"),
        (("serve", "--port", "0"), "starting"),
        (("evaluate", "none"), "starting"),
        (("train", "none", "--output", "run"), "starting"),
        (("export", "none.onnx", "--weights", "none.pth"), "starting"),
        (("weights", "convert", "none.pth", "none.pt", "--to", "timm"), "converting"),
        (("bench",), "starting"),
        (("bulk", "none", "labels"), "starting"),
        (("data", "show", "none"), "drawing the images"),
    ],
)
def test_a_terminal_shows_at_once_what_is_being_done(
    arguments: tuple[str, ...], word: str, tmp_path: Path
) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "splitattn", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=tmp_path,
    )
    try:
        assert os.read(ours, 100).decode().startswith(f"{word} ...")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("call", "library", "name"),
    [
        ("bench", "torch", "PyTorch"),
        ("predict photo.png", "openvino", "OpenVINO"),
        ("features photo.png", "openvino", "OpenVINO"),
        ("explain photo.png --output why", "openvino", "OpenVINO"),
        ("evaluate data", "openvino", "OpenVINO"),
        ("bulk data labels", "openvino", "OpenVINO"),
        ("predict photo.png --engine onnxruntime", "onnxruntime", "ONNX Runtime"),
        ("export net.onnx", "onnxruntime", "ONNX Runtime"),
    ],
)
def test_a_pipe_gets_a_message_about_what_is_being_loaded(
    call: str, library: str, name: str, tmp_path: Path
) -> None:
    """The message comes before the library is loaded, so it is there when loading fails."""
    for path in ("photo.png", "data/cats/0.png", "data/dogs/0.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / path)
    done = with_broken(library, call, tmp_path)
    assert done.stderr == f"loading {name}\nbroken\n"
    # Rich draws bars on terminals only, and would make the line come later.
    assert "rich" not in done.stdout.split()


def test_a_service_logs_what_is_being_loaded_before_the_web_framework(tmp_path: Path) -> None:
    done = with_broken("openvino", "serve --port 0", tmp_path)
    line, end = done.stderr.splitlines()
    assert (json.loads(line)["message"], end) == ("loading OpenVINO", "broken")
    assert not {"rich", "starlette", "uvicorn"} & {*done.stdout.split()}


def test_loading_is_reported_only_while_the_command_line_runs() -> None:
    before = [*sys.meta_path]
    with pytest.raises(SystemExit):
        main(["models"])
    assert sys.meta_path == before


def with_broken(library: str, call: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command line in `folder`, where importing `library` ends the process.

    Stdout has the names of the modules that are loaded by then.
    """
    (folder / "libraries").mkdir()
    (folder / "libraries" / f"{library}.py").write_text(
        "import sys\nprint(*sys.modules)\nraise SystemExit('broken')"
    )
    code = f"""
import sys
sys.path.insert(0, {str(folder / "libraries")!r})
from splitattn.cli import main
main({call.split()!r})
"""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def shard(labeled: int, errors: int = 0) -> ShardReport:
    return ShardReport(
        number=0,
        images=labeled,
        labeled=labeled,
        errors=errors,
        classes={},
        error_kinds={},
        examples=[],
    )


@pytest.mark.parametrize("watched", [True, False])
def test_shards_have_a_rate_and_a_time_left(
    watched: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    screen = on_terminal(monkeypatch, 100) if watched else None
    with shards_progress() as (on_listed, on_shard):
        for listed, now in ((1000, 1800.0), (2500, 3600.0)):
            clock.now = now
            on_listed(listed)
        # A shard every few minutes, the last one smaller. The hour of listing does not count.
        for labeled, errors, now in ((1000, 3, 3700.0), (1000, 0, 3900.0), (500, 1, 3950.0)):
            clock.now = now
            on_shard(shard(labeled, errors), 3)
    text = "\n".join(lines_of(screen)) if screen else capsys.readouterr().err
    assert "1,000 images listed" in text
    assert list(dict.fromkeys(re.findall(r"\d/3 parts.*/s(?:  .* left)?", text))) == [
        "1/3 parts  1,000 images  3 errors  10.0/s",
        "2/3 parts  2,000 images  3 errors  6.7/s  0:02:53 left",
        "3/3 parts  2,500 images  4 errors  7.1/s  0:00:00 left",
    ]


def test_the_time_left_accounts_for_many_workers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixteen workers finish a shard about every hundred seconds each."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    ends = sorted(100.0 * round_ + 90 + worker for round_ in range(10) for worker in range(16))
    with shards_progress() as (on_listed, on_shard):
        on_listed(160_000)
        for clock.now in ends:
            on_shard(shard(1000), len(ends))
    listed, *lines = capsys.readouterr().err.splitlines()
    assert listed == "160,000 images listed"
    assert not any("left" in line for line in lines[:16])
    assert all("left" in line for line in lines[16:])
    for line, now in zip(lines[16:], ends[16:], strict=True):
        (hours, minutes, seconds) = map(int, line.split()[-2].split(":"))
        left = 3600 * hours + 60 * minutes + seconds
        # Shards in progress are not counted, so the estimate may be off by one shard, 100 s.
        assert (ends[-1] - now) / 1.5 - 100 <= left <= 1.5 * (ends[-1] - now) + 100, line
