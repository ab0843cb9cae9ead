"""Decode paths, URLs, bytes and arrays to upright RGB images, within limits."""

import io
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, IcoImagePlugin, Image, ImageOps, JpegImagePlugin

from splitattn.errors import ImageError
from splitattn.images.crop import cropped
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.images.paths import is_url
from splitattn.preprocessing import Box

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

# Pixels from which `decode_reduced` reduces. Smaller files decode in milliseconds, and reducing
# them could change a label for no gain.
_LARGE = 500_000

# Side of the tiles in which the pixels of a large image are converted, so that what a conversion
# needs besides its result stays small.
_TILE = 1024

# The brightest value of images with more than 8 bits per channel: the smallest that no pixel
# exceeds, for such files do not say.
_FULL_SCALES = {"I": (65535.0, 2.0**31 - 1), "F": (1.0, 255.0, 65535.0)}
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """A decoded image that may be smaller than the whole one.

    Attributes:
        image: upright, RGB.
        whole: width and height of the whole image, upright.
        scale: how many of its pixels a side make one of `image`: 1, 2, 4 or 8.
    """

    image: Image.Image
    whole: tuple[int, int]
    scale: int


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
    return decode_reduced(source, None, limits=limits, name=name).image


def decode_reduced(
    source: ImageSource,
    least_side: int | None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    name: str | None = None,
) -> Reduced:
    """Decode like `decode`, but JPEG files of half a megapixel or more at 1/2, 1/4 or 1/8 size.

    That is several times as fast, and changes pixels slightly. Pillow images and arrays, which are
    decoded already, and files in other formats keep their size.

    Args:
        source, limits, name: see `decode`. Limits count the pixels of the whole image.
        least_side: pixels that the shorter side keeps at least (`preprocessing.least_side` computes
            them); None does not reduce.

    Raises:
        ImageError: see `decode`.
    """
    try:
        return _decode(source, limits, least_side)
    except ImageError as error:
        raise ImageError(f"{name or _name(source)}: {error}") from error.__cause__


def _decode(source: ImageSource, limits: Limits, least_side: int | None) -> Reduced:
    if isinstance(source, Image.Image):
        _check_size(source, limits)
        with _damage_reported():
            return _whole(_to_rgb(_loaded(source)))
    if isinstance(source, np.ndarray):
        image = _from_array(source)
        _check_size(image, limits)
        return _whole(_to_rgb(image))
    if isinstance(source, str) and is_url(source):
        from splitattn.images.fetch import fetch  # not needed for files

        source = fetch(source, limits=limits)
    if isinstance(source, bytes):
        _check_bytes(len(source), limits)
        with io.BytesIO(source) as stream:
            return _from_stream(stream, limits, least_side)
    if isinstance(source, str | Path):
        return _from_file(Path(source), limits, least_side)
    raise ImageError(
        "an image must be a path, a URL, bytes, an array or a Pillow image, "
        f"got {type(source).__name__}"
    )


def _whole(image: Image.Image) -> Reduced:
    return Reduced(image=image, whole=image.size, scale=1)


def _name(source: ImageSource) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "Pillow image"
    return "array" if isinstance(source, np.ndarray) else type(source).__name__


def _from_file(path: Path, limits: Limits, least_side: int | None) -> Reduced:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("expected an image file, got a folder")
        # Opening a pipe would wait for a writer, and reading a device need not end.
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("expected an image file, got a pipe or device")
        _check_bytes(status.st_size, limits)
        with path.open("rb") as stream:
            return _from_stream(stream, limits, least_side)
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


def _from_stream(stream: IO[bytes], limits: Limits, least_side: int | None) -> Reduced:
    with _damage_reported():
        opened = [_open(stream, limits)]
        _check_size(opened[0], limits)
        whole = opened[0].size
        scale = _reduce(opened[0], least_side) if least_side else 1
        stored = opened[0].size
        # Out of the list, without a name: each step frees the pixels of the one before.
        image = _to_rgb(_loaded(opened.pop()))
    if image.size != stored:  # turned by a quarter
        whole = whole[::-1]
    return Reduced(image=image, whole=whole, scale=scale)


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
    Image.preinit()
    prefix = stream.read(16)
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()  # loads the plug-ins of rarer formats, which takes time
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


def _check_size(image: Image.Image, limits: Limits) -> None:
    kind = image.format or ""
    _check_pixels(image.size, f"CMYK {kind}" if image.mode == "CMYK" else kind, limits)


def _reduce(image: Image.Image, least_side: int) -> int:
    """Make a JPEG decoder skip the finest detail. Returns the scale; 1 for all other formats."""
    if image.width * image.height < _LARGE:
        return 1
    whole, short = image.width, min(image.size)
    scale = next((scale for scale in (8, 4, 2) if short >= scale * least_side), 1)
    image.draft(None, (image.width // scale, image.height // scale))
    return 1 if image.width == whole else scale


def _loaded(image: Image.Image) -> Image.Image:
    """`image` with its pixels in memory."""
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
    # Broken EXIF data can raise anything, but the pixels may be good all the same.
    with suppress(Exception):
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would make a copy
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
