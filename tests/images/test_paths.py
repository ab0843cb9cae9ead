import itertools
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, features

from splitattn.data.sources import open_data
from splitattn.images.decode import decode
from splitattn.images.paths import expand, passed_over_text


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "b.jpg",
        "a.JPEG",
        "notes.txt",
        "._b.jpg",
        "[1].png",
        "sub/c.png",
        "sub/deep/d.webp",
        ".thumbnails/e.png",
        "__MACOSX/b.jpg",
        "sub/@eaDir/c.png",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "photos/empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


BELOW = ["[1].png", "a.JPEG", "b.jpg", "sub/c.png", "sub/deep/d.webp"]


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("photos", [f"photos/{name}" for name in BELOW]),
        ("photos/", [f"photos/{name}" for name in BELOW]),
        ("photos/notes.txt", ["photos/notes.txt"]),
        ("photos/*.jpg", ["photos/b.jpg"]),
        ("photos/**/*.png", ["photos/[1].png", "photos/sub/c.png"]),
        ("photos/[1].png", ["photos/[1].png"]),
        ("https://example.org/*.jpg?a=[1]", ["https://example.org/*.jpg?a=[1]"]),
        ("photos/empty", ["photos/empty"]),
        ("photos/*.gif", ["photos/*.gif"]),
        ("missing", ["missing"]),
    ],
)
def test_a_path_stands_for_its_images(path: str, expected: list[str]) -> None:
    assert list(expand([path])) == [str(Path(p)) if "://" not in p else p for p in expected]


def test_an_absolute_glob_works(photos: Path) -> None:
    assert list(expand([f"{photos}/**/*.webp"])) == [str(photos / "sub/deep/d.webp")]


@pytest.mark.usefixtures("photos")
def test_stdin_is_a_list_in_its_place_among_the_paths() -> None:
    lines = ["photos/sub\n", "\n", "photos/[1].png\r\n", "http://example.org/x\n", "missing*"]
    assert list(expand(["first", "-", "last"], lines)) == [
        "first",
        "photos/sub/c.png",
        "photos/sub/deep/d.webp",
        "photos/[1].png",
        "http://example.org/x",
        "missing*",
        "last",
    ]


def test_an_empty_name_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert list(expand([""])) == [""]
    assert list(expand(["."])) == ["a.jpg"]


def test_names_in_a_list_may_end_in_nul() -> None:
    assert list(expand(["-"], ["a b.jpg\0c.jpg\0"])) == ["a b.jpg", "c.jpg"]


def test_a_list_may_begin_with_a_byte_order_mark() -> None:
    lines = ["\ufeffa.png\n", "\ufeffb.png\n"]
    assert list(expand(["-"], lines)) == ["a.png", "\ufeffb.png"]


def test_a_folder_is_found_however_its_accents_are_composed(tmp_path: Path) -> None:
    (tmp_path / "cafe\u0301").mkdir()
    (tmp_path / "cafe\u0301" / "a.png").touch()
    assert list(expand([str(tmp_path / "caf\u00e9")])) == [str(tmp_path / "cafe\u0301" / "a.png")]


def test_stdin_is_read_no_further_than_needed() -> None:
    endless = (f"{number}.jpg\n" for number in itertools.count())
    assert list(itertools.islice(expand(["-"], endless), 2)) == ["0.jpg", "1.jpg"]
    assert next(endless) == "2.jpg\n"


@pytest.mark.parametrize("pattern", ["{}", "{}/**/*.*", "{}/**"])
def test_links_to_folders_are_followed_once(photos: Path, pattern: str) -> None:
    """glob would follow the two loops of links without end."""
    for name in ("sub/circle", "sub/deep/circle", "round"):
        (photos / name).symlink_to(photos, target_is_directory=True)
    other = photos.parent / "other"
    other.mkdir()
    (other / "z.jpg").touch()
    (photos / "linked").symlink_to(other)
    (photos / "linked again").symlink_to(other)
    found = [Path(path).name for path in expand([pattern.format(photos)])]
    images = [name for name in found if name.endswith(("g", "G"))]
    assert sorted(images) == sorted(
        [Path(name).name for name in BELOW if "webp" not in name] + ["z.jpg"]
    )


def test_files_that_may_be_pictures_are_counted_by_ending(photos: Path) -> None:
    for name in ("x.SVG", "y.svg", "sub/z.psd", "IMG_1", "a.json", "Thumbs.db", "a.jfif", "b.heic"):
        (photos / name).touch()
    passed_over: Counter[str] = Counter()
    found = {Path(path).name for path in expand([str(photos)], passed_over=passed_over)}
    assert found == {*(Path(name).name for name in BELOW), "a.jfif", "b.heic"}
    assert passed_over == {".svg": 2, ".psd": 1, "no ending": 1}
    assert passed_over_text(passed_over) == (
        "4 files are skipped, not images by name: .svg (2), no ending (1), .psd (1)"
    )


def test_a_name_too_long_or_not_text_is_passed_on() -> None:
    names = ["x" * 5000, os.fsdecode(b"\xff.jpg"), "nul\0.jpg"]
    assert list(expand(names)) == names


KINDS = {".avif": "AVIF", ".webp": "WEBP", ".jp2": "JPEG2000"}


@pytest.mark.parametrize("ending", [".jpe", ".JFIF", ".pjpeg", *KINDS, ".heic"])
def test_pictures_of_rarer_endings_are_found_and_read(tmp_path: Path, ending: str) -> None:
    kind = KINDS.get(ending, "JPEG")
    if not features.check(
        {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}.get(kind, "jpg")
    ):
        pytest.skip(f"this Pillow writes no {kind}")
    path = tmp_path / "data" / "blue" / f"a{ending}"
    path.parent.mkdir(parents=True)
    blue = Image.new("RGB", (40, 30), (10, 40, 200))
    if ending == ".heic":
        pillow_heif.from_pillow(blue).save(path)  # does not register itself with Pillow
    else:
        blue.save(path, kind)
    assert list(expand([str(tmp_path)])) == [str(path)]
    data = open_data(str(tmp_path / "data"), "val")
    assert list(data.images) == [str(path)]
    pixels = np.asarray(decode(data.images[0]))
    assert pixels.shape == (30, 40, 3)
    np.testing.assert_allclose(pixels.mean((0, 1)), (10, 40, 200), atol=4)
