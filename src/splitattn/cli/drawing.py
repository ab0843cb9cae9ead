"""Folders of pictures: `predict --draw` and `--class-maps`, `explain --output`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitattn.cli.output import say
from splitattn.errors import ImageError, InputError, counted, write_failure
from splitattn.files import check_can_make_folder

if TYPE_CHECKING:
    from PIL import Image

_SAVING: dict[str, dict[str, Any]] = {
    ".jpg": {"format": "JPEG", "quality": 90},
    ".png": {"format": "PNG"},
}
# Endings of single files: a folder that is called so would be a mistake.
_FILE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".pdf", ".svg")
_LONGEST_NAME = 60  # characters, so that the name fits into any file system's


def check_folder(folder: Path, option: str) -> None:
    """Check, before any work is done, that `folder` can take pictures. It is not made yet.

    Args:
        option: the option that names the folder, for messages.

    Raises:
        InputError: it is called like a file, cannot be read, or is not empty.
    """
    if folder == Path("-"):
        raise InputError(f"{option} must be a folder, got -: pictures cannot go to stdout")
    if folder.suffix.lower() in _FILE_ENDINGS:
        raise InputError(
            f"{option} must be a folder, got {folder}, which would be a file: each image gets "
            "a picture of its own in the folder"
        )
    try:
        with os.scandir(folder) as entries:
            empty = next(entries, None) is None
    except FileNotFoundError:
        empty = True
    except OSError as error:
        raise _unwritable(folder, option, error) from error
    check_can_make_folder(folder, f"{option} must be a folder to write to, got")
    if not empty:
        raise InputError(
            f"{option} must be a new or empty folder, so that no file is replaced, got {folder}: "
            "choose another name"
        )


def _unwritable(folder: Path, option: str, error: OSError) -> InputError:
    return InputError(write_failure(folder, error, f"{option} must be a folder to write to, got"))


class Pictures:
    """Writes a picture for each answered image into a folder, called after the image.

    Args:
        folder: made for the first picture if it is not there.
        draw: from an image and its answer to the picture; raises `ImageError`.
        option: the option that names the folder, for messages.
        ending: of the pictures: ".jpg" or ".png".

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        draw: "Callable[[str | bytes, Any], Image.Image]",
        option: str = "--draw",
        ending: str = ".jpg",
    ) -> None:
        self._folder, self._option, self._ending = folder, option, ending
        self._draw = draw
        self._names: set[str] = set()
        self._written = 0
        check_folder(folder, option)

    def add(self, name: str, source: str | bytes, answer: Any) -> ImageError | None:
        """Draw one image.

        Args:
            name: after which the picture is called; "-" is stdin.
            source: the image: a path, a URL or its bytes.
            answer: what `draw` draws.

        Returns:
            Why it cannot be drawn: it can no longer be read, or has channels that no screen has.

        Raises:
            InputError: the picture cannot be written.
        """
        from splitattn.files import replacing

        try:
            drawn = self._draw(source, answer)
        except ImageError as error:
            return error
        path = self._folder / self._free_name(name)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                drawn.save(temporary, **_SAVING[self._ending])
        except OSError as error:
            raise _unwritable(self._folder, self._option, error) from error
        self._written += 1
        return None

    def conclude(self) -> None:
        """Say on stderr how many pictures were written, if any."""
        if self._written:
            say(f"{self._folder}: {counted(self._written, 'picture')}")

    def _free_name(self, source: str) -> str:
        stem = "stdin" if source == "-" else Path(source.split("?")[0]).stem[:_LONGEST_NAME]
        stem = stem or "image"
        name, number = f"{stem}{self._ending}", 1
        while name.casefold() in self._names:  # some disks do not tell A.jpg from a.jpg
            number += 1
            name = f"{stem}-{number}{self._ending}"
        self._names.add(name.casefold())
        return name
