import itertools
import os
from pathlib import Path

import pytest

from splitattn.images.paths import expand


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


def test_stdin_is_read_no_further_than_needed() -> None:
    endless = (f"{number}.jpg\n" for number in itertools.count())
    assert list(itertools.islice(expand(["-"], endless), 2)) == ["0.jpg", "1.jpg"]
    assert next(endless) == "2.jpg\n"


def test_a_link_in_a_circle_ends(photos: Path) -> None:
    (photos / "sub/circle").symlink_to(photos, target_is_directory=True)
    assert len(list(expand([str(photos)]))) == len(BELOW)


def test_a_name_too_long_or_not_text_is_passed_on() -> None:
    names = ["x" * 5000, os.fsdecode(b"\xff.jpg"), "nul\0.jpg"]
    assert list(expand(names)) == names
