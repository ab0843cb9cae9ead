"""`predict --draw FOLDER`: pictures with their labels beneath them."""

from pathlib import Path
from typing import TYPE_CHECKING

from splitattn.errors import ImageError, InputError

if TYPE_CHECKING:
    from splitattn.classifier import Prediction

_QUALITY = 90
_LONGEST_NAME = 60  # characters, so that the name fits into any file system's


class Pictures:
    """Writes a JPEG for each labeled image into a folder, called after the image.

    Args:
        folder: made if it is not there.
        white_level: see `Preprocessing`.

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, *, white_level: float | None) -> None:
        self._folder = folder
        self._white_level = white_level
        self._names: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error

    def add(self, source: str, predictions: "list[Prediction]") -> ImageError | None:
        """Draw one image.

        Returns:
            Why it cannot be drawn: it can no longer be read, or has channels that no screen has.

        Raises:
            InputError: the picture cannot be written.
        """
        from splitattn.files import replacing
        from splitattn.images.decode import decode_reduced
        from splitattn.images.drawing import WIDTH, draw_labels

        try:
            image = decode_reduced(source, WIDTH, white_level=self._white_level).image
        except ImageError as error:
            return error
        drawn = draw_labels(image, [(p.label, p.probability) for p in predictions])
        path = self._folder / self._free_name(source)
        try:
            with replacing(path) as temporary:
                drawn.save(temporary, "JPEG", quality=_QUALITY)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        return None

    def _free_name(self, source: str) -> str:
        stem = Path(source.split("?")[0]).stem[:_LONGEST_NAME] or "image"
        name, number = f"{stem}.jpg", 1
        while name in self._names:
            number += 1
            name = f"{stem}-{number}.jpg"
        self._names.add(name)
        return name


def _unwritable(folder: Path, error: OSError) -> InputError:
    reason = error.strerror or error
    return InputError(f"--draw must be a folder to write to, got {folder}: {reason}")
