"""Every hostile file is given to its reader and to the command line."""

import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, features

from splitattn.cli import main
from splitattn.environment import peak_memory
from splitattn.errors import InputError
from splitattn.images.decode import _SHARES, decode
from splitattn.images.limits import DEFAULT_LIMITS
from splitattn.images.samples import sample_photographs
from splitattn.opening import open_network
from splitattn.training.recipe_files import load_recipe
from tests.attacks.make import FOLDER, KINDS, MARKER, README, Attack, attacks, readme

ATTACKS = attacks()
MEMORY = 2 * 2**30
# The limit for hostile files, which are small. It includes loading every verb and engine.
HOSTILE_MEMORY = 2**29


def of(kind: str) -> list[Attack]:
    return [attack for attack in ATTACKS if attack.path.startswith(f"{kind}/")]


def name(attack: Attack) -> str:
    return attack.path


@pytest.fixture(autouse=True)
def _nothing_runs_or_takes_all_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Run each test offline in a new folder, where payloads leave a file, and limit its memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPLITATTN_OFFLINE", "1")
    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path / "cache"))
    before = peak_memory() or 0
    yield
    assert (peak_memory() or 0) - before < HOSTILE_MEMORY


def test_stored_files_equal_those_that_make_py_writes() -> None:
    if "ng" in zlib.ZLIB_RUNTIME_VERSION:
        pytest.skip("zlib-ng compresses to other bytes")
    files = {path for kind in KINDS for path in (FOLDER / kind).iterdir()}
    assert {FOLDER / attack.path for attack in ATTACKS} == files
    for attack in ATTACKS:
        assert (FOLDER / attack.path).read_bytes() == attack.content, attack.path
        assert len(attack.content) <= 20_000, attack.path
    assert README.read_text(encoding="utf-8") == readme()


def test_the_payload_is_real() -> None:
    """A reader that trusts these files, such as pickle, runs their code."""
    import pickle

    pickle.loads((FOLDER / "weights" / "code.pkl").read_bytes())
    assert Path(MARKER).exists()


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run the command line; returns status and stderr, and checks that no payload has run."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert not Path(MARKER).exists()
    return int(end.value.code or 0), said


def refused(status: int, said: str) -> None:
    assert status == 2
    *loading, line = said.splitlines()
    # The first call that needs a library in this process says so.
    assert all(each.startswith("loading ") for each in loading)
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) < 1000


@pytest.mark.parametrize("attack", of("images"), ids=name)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_image_is_decoded_or_refused_in_one_line(attack: Attack) -> None:
    path = FOLDER / attack.path
    try:
        assert decode(path).mode == "RGB"
    except InputError as refusal:
        error = str(refusal)
    else:
        return
    assert not attack.valid, error
    assert error.startswith(str(path))
    assert error.isprintable()


# Damaged files that a lenient decoder such as Pillow still turns into a picture.
LENIENT = {
    *("frames.png", "frames.gif", "exif-count.jpg", "loop.tiff", "nan.ppm", "run-length.bmp"),
    *("no-palette.png", "wrong-checksum.png", "text-bomb.png", "profile-bomb.png"),
    "long-chunk.png",
}


def test_predict_labels_valid_images_and_names_the_others(
    capfd: pytest.CaptureFixture[str],
) -> None:
    photograph = str(sample_photographs()[0])
    sources = [str(FOLDER / attack.path) for attack in of("images")]
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["predict", *sources, photograph, "--engine", "torch", "--format", "json"])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["path"] for answer in answers] == [*sources, photograph]
    labeled = {Path(answer["path"]).name for answer in answers if "predictions" in answer}
    valid = {Path(attack.path).name for attack in of("images") if attack.valid}
    assert valid <= labeled
    assert labeled - valid - {Path(photograph).name} <= LENIENT


@pytest.mark.parametrize("attack", of("weights"), ids=name)
def test_weights_are_refused_in_one_line(attack: Attack, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(FOLDER / attack.path)
    photograph = str(sample_photographs()[0])
    refused(*call(capfd, "predict", photograph, "--weights", path))
    refused(*call(capfd, "predict", photograph, "--weights", path, "--model", "resnest14"))
    refused(*call(capfd, "export", "net.onnx", "--weights", path, "--model", "resnest14"))
    for model in ([], ["--model", "resnest14"]):
        refused(*call(capfd, "weights", "convert", path, "net.pth", "--to", "mmdet", *model))
    refused(*call(capfd, "weights", "card", path))
    assert not Path("net.pth").exists()
    status, said = call(capfd, "weights", "verify", path)
    assert status == 1
    assert "matches no file of the catalogue" in said


@pytest.mark.parametrize("attack", of("recipes"), ids=name)
def test_a_recipe_is_refused_in_one_line(attack: Attack, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(FOLDER / attack.path)
    with pytest.raises(InputError):
        load_recipe(path, model="resnest50")
    refused(*call(capfd, "train", "data", "--output", "out", "--recipe", path))
    text = attack.content.decode(errors="surrogateescape")
    refused(*call(capfd, "train", "data", "--output", "out", "--set", f"epochs={text}"))


@pytest.mark.parametrize("attack", of("data"), ids=name)
def test_data_are_refused_in_one_line(attack: Attack, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(FOLDER / attack.path)
    refused(*call(capfd, "evaluate", path))
    refused(*call(capfd, "train", path, "--output", "out", "--model", "resnest14"))


def data_set(attack: Attack) -> Path:
    """A data set with the file as its annotations, in the format that the file's ending says."""
    folder, ending = Path("set"), Path(attack.path).suffix
    paths = {
        ".json": "train.json",
        ".xml": "Annotations/a.xml",
        ".txt": "labels/a.txt",
        ".yaml": "data.yaml",
        ".png": "masks/a.png",
    }
    images = {".json": ".", ".xml": "JPEGImages"}.get(ending, "images")
    others = {".txt": {"classes.txt": "a\n"}, ".png": {"classes.txt": "a\nb\n"}}
    others[".yaml"] = {"labels/a.txt": "0 0.5 0.5 0.1 0.1\n"}
    for path, text in others.get(ending, {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    path = folder / paths[ending]
    for parent in (path.parent, folder / images):
        parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(attack.content)
    for number in range(1 if ending == ".json" else 8):  # enough that some are for training
        stem = f"a{number}" if number else "a"
        Image.new("RGB", (16, 16)).save(folder / images / f"{stem}.png")
        if ending in (".xml", ".txt", ".png"):
            path.with_stem(stem).write_bytes(attack.content)
    return folder


@pytest.mark.parametrize("attack", of("annotations"), ids=name)
def test_annotations_are_read_or_refused_in_one_line(
    attack: Attack, capfd: pytest.CaptureFixture[str]
) -> None:
    data = data_set(attack)
    picture = ["--output", "batch.png", "--set", "train_size=32", "--set", "test_size=32"]
    picture += ["--set", "first_train_size=32"]
    status, said = call(capfd, "data", "show", str(data), *picture)
    if attack.valid:
        assert status == 0, said
        assert Path("batch.png").exists()
        return
    refused(status, said.splitlines()[-1])
    assert "root:" not in said  # of /etc/passwd
    assert not Path("batch.png").exists()


@pytest.mark.parametrize("attack", of("exported"), ids=name)
def test_an_exported_network_is_refused_in_one_line(
    attack: Attack, capfd: pytest.CaptureFixture[str]
) -> None:
    path = FOLDER / attack.path
    with pytest.raises(InputError) as error:
        open_network(weights=path)
    assert "root:" not in str(error.value)  # of /etc/passwd
    refused(*call(capfd, "predict", str(sample_photographs()[0]), "--weights", str(path)))
    refused(*call(capfd, "evaluate", "data", "--weights", str(path)))


# Images that are large in memory and small as files.
LARGE = {
    "transparent.png": ("RGBA", "PNG", {}),
    "deep.png": ("I;16", "PNG", {}),
    "float.tiff": ("F", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "lossless.webp": ("RGBA", "WEBP", {"lossless": True, "method": 0}),
    "lossless.jp2": ("RGBA", "JPEG2000", {}),
    "transparent.avif": ("RGBA", "AVIF", {"speed": 10}),
    "progressive.jpg": ("CMYK", "JPEG", {"progressive": True, "subsampling": 0}),
}
SIDE = 3_000
# Each image is decoded in a process of its own, after a small one that triggers lazy imports.
PROBE = """
import os, sys
from splitattn.environment import peak_memory
from splitattn.images.decode import decode
from splitattn.images.limits import Limits
for small, large in zip(sys.argv[1::2], sys.argv[2::2]):
    if not os.fork():
        decode(small)
        before = peak_memory()
        decode(large, limits=Limits(max_pixels=10**9))
        print(peak_memory() - before, flush=True)
        os._exit(0)
    os.wait()
"""


def test_the_largest_image_takes_less_than_2_gb(tmp_path: Path) -> None:
    """Measured below the pixel limit and scaled up, since memory grows in proportion."""
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = []
    # Pillow writes AVIF since 11.3, and only where it was built with it.
    written = {k: v for k, v in LARGE.items() if v[1] != "AVIF" or features.check("avif")}
    for name, (mode, kind, options) in written.items():
        for size in (64, SIDE):
            paths.append(tmp_path / f"{size}-{name}")
            Image.new(mode, (size, size)).save(paths[-1], kind, exif=exif, **options)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *paths], capture_output=True, text=True, check=True
    )
    for line, (name, (mode, kind, _)) in zip(
        done.stdout.splitlines(), written.items(), strict=True
    ):
        share = _SHARES.get(f"CMYK {kind}" if mode == "CMYK" else kind, 1)
        assert int(line) * DEFAULT_LIMITS.max_pixels * share / SIDE**2 < MEMORY, name
