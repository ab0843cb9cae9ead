"""Whatever holds a picture becomes an upright RGB image, within limits, or one line of error."""

import io
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import IcoImagePlugin, Image, ImageOps, JpegImagePlugin

from splitattn.errors import ImageError
from splitattn.images.crop import Box, cropped
from splitattn.images.fetch import fetch, is_url
from splitattn.images.limits import DEFAULT_LIMITS, Limits

ImageSource = str | Path | bytes | NDArray[Any] | Image.Image

# Raster formats that Pillow decodes by itself: EPS, for one, would start Ghostscript. The most
# common come first, for each is asked in turn whether a file is its own.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")

# What part of the limit on pixels these formats have, whose decoders take 12 to 24 bytes for each
# pixel on the way: a file of 34 bytes could else ask for gigabytes. Of an icon, Pillow counts twice
# the pixels, and would warn of many.
_SHARES = {"WEBP": 1 / 2, "AVIF": 1 / 2, "CMYK JPEG": 1 / 2, "ICO": 1 / 4, "JPEG2000": 1 / 3}
# A pass over all pixels may cost ten bytes of a file. Ten scans are usual, libtiff's limit is this.
_MOST_SCANS = 100
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd7])")
_PNG = b"\x89PNG\r\n\x1a\n"
_OLD_HEADER = 12  # bytes of the bitmap header whose sides have 16 bits
_END_OF_IMAGE, _START_OF_SCAN = b"\xd9", b"\xda"

# Side of the tiles in which the pixels of a large image are converted, so that what a conversion
# needs besides its result stays small.
_TILE = 1024

# The brightest value of images with more than 8 bits per channel: the smallest that no pixel
# exceeds, for such files do not say.
_FULL_SCALES = {"I": (65535.0, 2.0**31 - 1), "F": (1.0, 255.0, 65535.0)}
_WHITE = (255, 255, 255, 255)


def decode(
    source: ImageSource, *, limits: Limits = DEFAULT_LIMITS, name: str | None = None
) -> Image.Image:
    """Decode `source` to RGB, 8 bits per channel, turned upright as its EXIF data says.

    Transparency is laid on white, of an animation the first frame is taken, and more than 8 bits
    per channel are scaled to 8.

    Args:
        source: a path, an http(s) URL, an encoded file's bytes, an array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4) of uint8 or of floats from 0 to 1, or a Pillow image.
        limits: what is refused before it is decoded.
        name: what errors call the source; by default its path.

    Raises:
        ImageError: `source` is not an image, is broken, or is over a limit; the message is one
            line that names the source.
    """
    try:
        return _decode(source, limits)
    except ImageError as error:
        raise ImageError(f"{name or _name(source)}: {error}") from error.__cause__


def _decode(source: ImageSource, limits: Limits) -> Image.Image:
    if isinstance(source, Image.Image):
        with _damage_reported():
            return _to_rgb(_loaded(source, limits))
    if isinstance(source, np.ndarray):
        return _to_rgb(_loaded(_from_array(source), limits))
    if isinstance(source, str) and is_url(source):
        source = fetch(source, limits=limits)
    if isinstance(source, bytes):
        _check_bytes(len(source), limits)
        with io.BytesIO(source) as stream:
            return _from_stream(stream, limits)
    if isinstance(source, str | Path):
        return _from_file(Path(source), limits)
    raise ImageError(
        "an image must be a path, a URL, bytes, an array or a Pillow image, "
        f"got {type(source).__name__}"
    )


def _name(source: ImageSource) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "Pillow image"
    return "array" if isinstance(source, np.ndarray) else type(source).__name__


def _from_file(path: Path, limits: Limits) -> Image.Image:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("expected an image file, got a folder")
        # Opening a pipe would wait for a writer, and reading a device need not end.
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("expected an image file, got a pipe or device")
        _check_bytes(status.st_size, limits)
        with path.open("rb") as stream:
            return _from_stream(stream, limits)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("no such file; check the path") from None
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ImageError(f"not a path: {error}") from None


def _check_bytes(size: int, limits: Limits) -> None:
    if not size:
        raise ImageError("expected an image, got 0 bytes")
    if size > limits.max_bytes:
        raise ImageError(f"an image may have at most {limits.max_bytes:,} bytes, got {size:,}")


def _from_stream(stream: IO[bytes], limits: Limits) -> Image.Image:
    with _damage_reported():
        # Without names on the way: of a large image, each step sees the last one's pixels alone.
        return _to_rgb(_loaded(_open(stream, limits), limits))


@contextmanager
def _damage_reported() -> Iterator[None]:
    # Pillow's decoders raise whatever a hostile file provokes: OSError, SyntaxError, struct.error,
    # IndexError, MemoryError, ...
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"the image is damaged or of an unknown kind: {error}") from error


def _open(stream: IO[bytes], limits: Limits) -> Image.Image:
    """Read the header. As `Image.open`, whose warning about large images `Limits` replaces."""
    Image.init()
    prefix = stream.read(16)
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or (accepts is not None and accepts(prefix) is not True):
            continue
        stream.seek(0)
        if name == "ICO":  # Pillow decodes an icon's largest image where it should read its header
            icon = IcoImagePlugin.IcoFile(stream)
            _check_icon(icon, limits)
            return icon.frame(0)
        image = factory(stream, "")
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            _check_scans(image, stream)
        return image
    raise ImageError(f"expected an image ({', '.join(FORMATS)}), got something else")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise ImageError(
            f"an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}"
        )
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:  # not a number fails this too
            raise ImageError(f"floats must be from 0 to 1, got {low:g} to {high:g}; use uint8")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(f"an array must be uint8 or floats from 0 to 1, got {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))


def _check_scans(image: JpegImagePlugin.JpegImageFile, stream: IO[bytes]) -> None:
    """Raise if decoding would go over the pixels too often."""
    stream.seek(0)
    content = stream.read()
    position = scans = 0
    while found := _JPEG_MARKER.search(content, position):
        position = found.end()
        if found[1] == _END_OF_IMAGE:
            return
        if found[1] == _START_OF_SCAN:
            scans += 1
            components = content[position + 2]
            if components == image.layers and "progressive" not in image.info:
                return  # one scan has it all
        if scans > _MOST_SCANS:
            raise ImageError(f"a JPEG image may have at most {_MOST_SCANS} scans, got more")
        if position > 2:  # all but the start of the image tell their length
            position += int.from_bytes(content[position : position + 2])


def _check_icon(icon: IcoImagePlugin.IcoFile, limits: Limits) -> None:
    """Raise if the image that Pillow takes is too large, by the header of that image itself."""
    entry = icon.entry[0]
    icon.buf.seek(
        entry["offset"] if isinstance(entry, dict) else entry.offset
    )  # by Pillow's version
    header = icon.buf.read(24)
    if header.startswith(_PNG):
        width, height = struct.unpack(">II", header[16:])
    else:
        sides = ("<HH", header[4:8]) if header[0] == _OLD_HEADER else ("<Ii", header[4:12])
        width, height = struct.unpack(*sides)
        height = abs(height) // 2  # below the picture lies its transparency
    most = min(limits.max_pixels, DEFAULT_LIMITS.max_pixels)
    _check_pixels((width, height), "ICO", replace(limits, max_pixels=most))


def _check_pixels(size: tuple[int, int], kind: str, limits: Limits) -> None:
    limit = int(limits.max_pixels * _SHARES.get(kind, 1))
    if not 0 < size[0] * size[1] <= limit:
        raise ImageError(
            f"{f'a {kind}' if kind in _SHARES else 'an'} image may have 1 to {limit:,} pixels, "
            f"got {size[0]} x {size[1]}"
        )


def _loaded(image: Image.Image, limits: Limits) -> Image.Image:
    """`image` with its pixels in memory, if it is within limits."""
    kind = image.format or ""
    _check_pixels(image.size, f"CMYK {kind}" if image.mode == "CMYK" else kind, limits)
    image.load()
    # The decoder of this format keeps two more copies for as long as its image lives.
    return image.copy() if image.format == "WEBP" else image


def _to_rgb(image: Image.Image) -> Image.Image:
    image = _upright(image)
    deep = image.mode == "F" or image.mode.startswith("I")
    if not deep and not image.has_transparency_data:
        return image.convert("RGB")
    full_scale = _full_scale(image) if deep else 0.0
    rgb = Image.new("RGB", image.size)
    for box in _tiles(image):
        tile = cropped(image, box)
        if deep:
            tile = _to_8_bit(tile, full_scale)
        if tile.has_transparency_data:
            tile = tile.convert("RGBA")
            tile = Image.alpha_composite(Image.new("RGBA", tile.size, _WHITE), tile)
        rgb.paste(tile.convert("RGB"), box)
    return rgb


def _tiles(image: Image.Image) -> Iterator[Box]:
    for top in range(0, image.height, _TILE):
        for left in range(0, image.width, _TILE):
            yield left, top, min(left + _TILE, image.width), min(top + _TILE, image.height)


def _upright(image: Image.Image) -> Image.Image:
    # Broken EXIF data says nothing about the pixels, and it too can raise anything.
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _full_scale(image: Image.Image) -> float:
    """What is white in an image of more than 8 bits per channel."""
    brightest = max(float(_values(cropped(image, box)).max()) for box in _tiles(image))
    full_scales = _FULL_SCALES.get(image.mode, (65535.0,))
    return next((scale for scale in full_scales if brightest <= scale), brightest)


def _to_8_bit(image: Image.Image, full_scale: float) -> Image.Image:
    return Image.fromarray((_values(image) * (255 / full_scale)).round().astype(np.uint8))


def _values(image: Image.Image) -> NDArray[np.float32]:
    return np.nan_to_num(np.asarray(image, dtype=np.float32)).clip(min=0)
