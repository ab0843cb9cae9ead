"""Decode paths, URLs, bytes and arrays to upright RGB images, within limits."""

import re
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, IcoImagePlugin, Image, JpegImagePlugin

from splitattn.errors import ImageError
from splitattn.files import LFS_POINTER, as_on_disk, open_file
from splitattn.images.crop import cropped
from splitattn.images.header import Header, read_header
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.images.npy import NPY, read_npy
from splitattn.images.paths import images_below, is_url
from splitattn.images.portable_maps import needs_scaling, scaled
from splitattn.images.raster import Raster, from_array, from_pillow, is_deep, tiles
from splitattn.images.structure import (
    BoundedStream,
    check_directories,
    check_entries,
    check_scans,
    hide_exif,
    orientation,
    upright,
)
from splitattn.libraries import installed

ImageSource = str | Path | bytes | NDArray[Any] | Image.Image

# Raster formats that Pillow decodes without other programs (EPS would start Ghostscript). Pillow
# tries them in this order, so the most common come first.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "DIB")


class _Plugin(NamedTuple):
    brands: tuple[bytes, ...]  # bytes 8 to 12 of a file
    library: str
    package: str
    register: str


# More formats of photographs, which Pillow reads only with another package or in some builds.
_PLUGINS = {
    "HEIF": _Plugin(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"),
        "pillow_heif",
        "pillow-heif",
        "register_heif_opener",
    ),
    "AVIF": _Plugin((b"avif", b"avis"), "pillow_avif", "pillow-avif-plugin", ""),
}

# Fractions of the pixel limit that apply to formats whose decoders use 12 to 24 bytes per pixel;
# otherwise a file of 34 bytes could allocate gigabytes. Pillow counts the pixels of an icon twice,
# and would warn of large ones.
_SHARES = {"WEBP": 1 / 2, "AVIF": 1 / 2, "CMYK JPEG": 1 / 2, "ICO": 1 / 4, "JPEG2000": 1 / 3}
_SHARES["HEIF"] = 1 / 3
# RGB with 16 bits per channel is decoded twice.
_SHARES["48-bit"] = 1 / 2
_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
# Offset of the bit depth in a PNG file; the color type follows it.
_PNG_DEPTH, _PNG_GRAY = 24, 0
_OLD_HEADER = 12  # bytes of the old bitmap header, whose width and height have 16 bits

# Pillow's modes of PNG files with one channel.
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16")
# Images for networks of this many channels are decoded to 8 bits.
RGB = 3

# Pixels from which `decode_reduced` reduces. Smaller files decode in milliseconds, so reducing them
# is not worth a changed label.
_LARGE = 500_000

_WHITE = (255, 255, 255, 255)
# EXIF orientations that swap width and height.
_QUARTER_TURNS = (5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """A decoded image that may be smaller than the whole one.

    Attributes:
        image: upright, RGB.
        whole: width and height of the whole image, upright, in pixels.
        scale: the factor by which each side was reduced: 1, 2, 4 or 8.
    """

    image: Image.Image
    whole: tuple[int, int]
    scale: int


def decode(
    source: ImageSource,
    *,
    limits: Limits = DEFAULT_LIMITS,
    name: str | None = None,
    white_level: float | None = None,
) -> Image.Image:
    """Decode `source` to RGB with 8 bits per channel, turned upright by its EXIF data.

    Transparent images are put on white, and animations give their first frame. More than 8 bits per
    channel are scaled to 8, by the bit depth or the largest value in the header. If the header has
    neither, the scale is the smallest usual one (8, 10, 12, 14 or 16 bits; 1 for floats) that at
    most one in a thousand pixels exceeds. Brighter values become white.

    Args:
        source: a path, an http(s) URL, an encoded file's bytes, an array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4) of uint8, uint16 or floats from 0 to 1, or a Pillow image. A file
            may also be such an array in NumPy's `.npy` format.
        limits: images beyond these limits are refused before they are decoded.
        name: the source's name in errors; by default its path.
        white_level: the value of full brightness in images of more than 8 bits per channel; None
            determines it for each image.

    Raises:
        ImageError: `source` is not an image, is broken, or is over a limit; the message is one
            line that names the source.
    """
    return decode_reduced(source, None, limits=limits, name=name, white_level=white_level).image


def decode_reduced(
    source: ImageSource,
    least_side: int | None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    name: str | None = None,
    white_level: float | None = None,
) -> Reduced:
    """Decode like `decode`, but JPEG files of half a megapixel or more at 1/2, 1/4 or 1/8 size.

    This is several times as fast and changes pixels slightly. Files in other formats, Pillow images
    and arrays keep their size.

    Args:
        source, limits, name, white_level: see `decode`. Limits apply to the whole image.
        least_side: the shorter side is not reduced below this many pixels
            (`preprocessing.least_side` computes it); None does not reduce.

    Raises:
        ImageError: see `decode`.
    """
    with _named(source, name) as called:
        found = _decode(source, limits, least_side, white_level, called)
        with _damage_reported():
            return Reduced(image=_to_rgb(found.pixels), whole=found.whole, scale=found.scale)


def as_reduced(image: Image.Image | Reduced) -> Reduced:
    """Wrap an RGB, upright image like a result of `decode_reduced`."""
    if isinstance(image, Reduced):
        return image
    return Reduced(image=image, whole=image.size, scale=1)


def decode_planes(
    source: ImageSource,
    channels: int,
    *,
    limits: Limits = DEFAULT_LIMITS,
    name: str | None = None,
    white_level: float | None = None,
) -> NDArray[np.float32]:
    """Decode `source` at its full bit depth, for a network of `channels` channels.

    For one channel, colors become their luma, and transparent images are put on white. Otherwise
    the image must have exactly `channels` channels: gray with alpha has 2, RGB with alpha 4, CMYK
    4, and an array (H, W, C) has C.

    Args:
        source, name, white_level: see `decode`.
        limits: apply to the pixels of all channels together.

    Returns:
        float32 (channels, H, W) from 0 to 1, upright.

    Raises:
        ImageError: see `decode`, or the image has another number of channels.
    """
    limits = replace(limits, max_pixels=max(limits.max_pixels // channels, 1))
    with _named(source, name) as called:
        pixels = _decode(source, limits, None, white_level, called).pixels
        with _damage_reported():
            return _raster(pixels, channels, called).planes(channels)


def decode_as(
    source: ImageSource,
    channels: int,
    *,
    name: str | None = None,
    white_level: float | None = None,
) -> Image.Image | NDArray[np.float32]:
    """Decode `source` for a network of `channels` channels: RGB by `decode`, or `decode_planes`.

    Raises:
        ImageError: see there.
    """
    if channels == RGB:
        return decode(source, name=name, white_level=white_level)
    return decode_planes(source, channels, name=name, white_level=white_level)


def read_size(path: str | Path, *, limits: Limits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Width and height, in pixels, of the upright image in a file. Only the header is read.

    Raises:
        ImageError: the file is not an image, or is over a limit.
    """
    with _named(path, None):
        content = _read_file(Path(path), limits)
        with _damage_reported():
            content, exif = hide_exif(content) if content.startswith(_JPEG) else (content, b"")
            image = _open(content, limits)
            _check_size(image, limits)
            turned = orientation(image, exif) in _QUARTER_TURNS
        return image.size[::-1] if turned else image.size


def decode_indices(path: str | Path, *, limits: Limits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """The raw values (H, W) of a PNG with one channel, such as the class of each pixel.

    For a palette image these are its indices. Values are not scaled and the image is not turned.

    Raises:
        ImageError: the file is not a PNG with one channel, has a value above 255, is broken, or is
            over a limit.
    """
    with _named(path, None):
        content = _read_file(Path(path), limits)
        if not content.startswith(_PNG):
            raise ImageError("a mask must be a PNG file, which keeps numbers as they are")
        with _damage_reported():
            image = _open(content, limits)
            _check_size(image, limits)
            if image.mode not in _ONE_CHANNEL:
                raise ImageError(
                    "a mask must have one channel, with the number of a class in each pixel, got "
                    f"{image.mode}: write the numbers, not colors"
                )
            numbers = np.asarray(_loaded(image))
            depth, color = content[_PNG_DEPTH : _PNG_DEPTH + 2]
            if color == _PNG_GRAY and depth in (2, 4):
                numbers = numbers // (255 // (2**depth - 1))  # Pillow scales them to 8 bits
        if numbers.size and (most := int(numbers.max())) > 255:
            raise ImageError(f"a mask must have numbers from 0 to 255, got {most}")
        return numbers.astype(np.uint8)


@contextmanager
def _named(source: ImageSource, name: str | None) -> Iterator[str]:
    called = name or name_of(source)
    try:
        yield called
    except ImageError as error:
        raise ImageError(error.reason, called) from error.__cause__


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """Upright `pixels`; as a Pillow image they have 8 bits per channel. See `Reduced`."""

    pixels: Image.Image | Raster
    whole: tuple[int, int]
    scale: int = 1


def _decode(
    source: ImageSource,
    limits: Limits,
    least_side: int | None,
    white_level: float | None,
    name: str,
) -> _Decoded:
    if isinstance(source, Image.Image):
        _check_size(source, limits)
        with _damage_reported():
            header = read_header(source, b"")
            orientation = source.getexif().get(ExifTags.Base.Orientation, 1)
            image = upright(_loaded(source), orientation)
        return _whole(_with_all_bits(image, None, header, white_level, name))
    if isinstance(source, np.ndarray):
        return _whole(_from_array(source, limits, white_level, name))
    source = _content(source, limits)
    if isinstance(source, bytes):
        _check_bytes(len(source), limits)
        if source.startswith(NPY):
            return _whole(_from_array(read_npy(source), limits, white_level, name))
        return _from_content(source, limits, least_side, white_level, name)
    raise ImageError(
        "an image must be a path, a URL, bytes, an array or a Pillow image, "
        f"got {type(source).__name__}"
    )


def read_content(source: ImageSource, *, limits: Limits = DEFAULT_LIMITS) -> ImageSource:
    """The bytes of a path or URL, to decode it twice; other sources are returned unchanged.

    Raises:
        ImageError: it cannot be read, or has too many bytes.
    """
    with _named(source, None):
        return _content(source, limits)


def _content(source: ImageSource, limits: Limits) -> ImageSource:
    if isinstance(source, str) and is_url(source):
        from splitattn.images.fetch import fetch  # not needed for files

        return fetch(source, limits=limits)
    if isinstance(source, str) and not source:
        raise ImageError("expected the path of an image, got an empty path")
    return _read_file(Path(source), limits) if isinstance(source, str | Path) else source


def _whole(pixels: Image.Image | Raster) -> _Decoded:
    return _Decoded(pixels=pixels, whole=pixels.size)


def name_of(source: ImageSource) -> str:
    """An image's name in errors: its path, or the kind of object."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "Pillow image"
    return "array" if isinstance(source, np.ndarray) else type(source).__name__


def _advice(missing: Path) -> str:
    """Advice for a file that does not exist; the path may be an address."""
    scheme = re.match(r"([a-z][a-z0-9]+):/", str(missing))
    if scheme is None:
        return "check the path"
    if scheme[1] in ("s3", "gs"):
        return "splitattn bulk reads buckets"
    return "only http and https addresses can be read"


def _read_file(path: Path, limits: Limits) -> bytes:
    path = as_on_disk(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            empty = next(images_below(path, Counter()), None) is None
            raise ImageError(
                "expected an image file, got a folder"
                + (" without images in it" if empty else "; name the images in it")
            )
        # Opening a pipe would wait for a writer, and reading a device may never end.
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("expected an image file, got a pipe or device")
        _check_bytes(status.st_size, limits)
        with open_file(path) as file:  # checks again: the file may have been replaced
            return file.read()
    except FileNotFoundError:
        raise ImageError(f"no such file; {_advice(path)}") from None
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"not a path: {error}") from None


def _check_bytes(size: int, limits: Limits) -> None:
    if not size:
        raise ImageError("expected an image, got 0 bytes")
    if size > limits.max_bytes:
        raise ImageError(f"an image may have at most {limits.max_bytes:,} bytes, got {size:,}")


def _from_content(
    content: bytes, limits: Limits, least_side: int | None, white_level: float | None, name: str
) -> _Decoded:
    with _damage_reported():
        content, exif = hide_exif(content) if content.startswith(_JPEG) else (content, b"")
        opened = [_open(content, limits)]
        _check_size(opened[0], limits)
        header = read_header(opened[0], content)
        lower = None
        if header.lower_tiles:
            _check_pixels(opened[0].size, "48-bit", limits)
            lower = _lower_bytes(content, header, limits)
        whole = opened[0].size
        scale = _reduce(opened[0], least_side) if least_side else 1
        stored = opened[0].size
        # Taken out of the list, so that each step frees the previous step's pixels.
        image = _loaded(opened.pop())
        image = upright(image, orientation(image, exif))
    if image.size != stored:  # turned by 90 degrees
        whole = whole[::-1]
    pixels = _with_all_bits(image, lower, header, white_level, name)
    return _Decoded(pixels=pixels, whole=whole, scale=scale)


def _lower_bytes(content: bytes, header: Header, limits: Limits) -> Image.Image:
    image: Any = _open(content, limits)
    image.tile = header.lower_tiles
    image.load()
    if header.gray_alpha:
        _, gray, _, alpha = image.split()
        image = Image.merge("LA", (gray, alpha))
    return upright(image, orientation(image))


def _with_all_bits(
    image: Image.Image,
    lower: Image.Image | None,
    header: Header,
    white_level: float | None,
    name: str,
) -> Image.Image | Raster:
    if header.gray_alpha:
        image = Image.merge("LA", (image.getchannel("R"), image.getchannel("A")))
    if lower is None and not is_deep(image.mode):
        return image
    return from_pillow(
        image,
        lower=lower,
        white=header.white if white_level is None else white_level,
        chosen=white_level is not None,
        bits=header.bits,
        unsigned=header.unsigned,
        signed=header.signed,
        black=header.black,
        name=name,
    )


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


def _open(content: bytes, limits: Limits) -> Image.Image:
    """Read the header, like `Image.open` but without its warning about large images."""
    Image.preinit()
    # Pillow's test for DIB unpacks four bytes, and raises if there are fewer.
    prefix, stream = content[:16].ljust(4, b"\0"), BoundedStream(content)
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()  # loads the plug-ins of rarer formats, which takes time
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or (accepts is not None and accepts(prefix) is not True):
            continue
        if name == "AVIF":
            check_directories(content)
        if name == "TIFF":
            check_entries(content)
        stream.seek(0)
        if name == "ICO":  # for icons, Pillow decodes the largest image when it reads the header
            icon = IcoImagePlugin.IcoFile(stream)
            _check_icon(icon, limits)
            stream.header_is_read()
            return icon.frame(0)
        image = factory(stream, "")
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            progressive = "progressive" in image.info
            check_scans(content, components=image.layers, progressive=progressive)
        stream.header_is_read()
        return image
    return _open_by_plugin(stream, content)


def _open_by_plugin(stream: BoundedStream, content: bytes) -> Image.Image:
    """Read the header of an image for which Pillow needs another package.

    Raises:
        ImageError: the package is not installed, or the format is unknown.
    """
    brand = content[8:12] if content[4:8] == b"ftyp" else b""
    for kind, plugin in _PLUGINS.items():
        if brand in plugin.brands:
            if not installed(plugin.library):
                package = plugin.package
                raise ImageError(f"{kind} images need {package}: pip install {package}")
            module = import_module(plugin.library)
            if register := getattr(module, plugin.register, None):
                register()
            check_directories(content)
            stream.seek(0)
            image = Image.OPEN[kind][0](stream, "")
            stream.header_is_read()
            return image
    if content.startswith(LFS_POINTER):
        raise ImageError("the file is a pointer of Git LFS: get the image with git lfs pull")
    raise ImageError(f"expected an image ({', '.join(FORMATS)}), got something else")


def _from_array(
    array: NDArray[Any], limits: Limits, white_level: float | None, name: str
) -> Image.Image | Raster:
    if array.ndim not in (2, 3) or not array.size:
        raise ImageError(f"an array must be (H, W) or (H, W, C), got {array.shape}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    height, width, *channels = array.shape
    _check_pixels((width, height), "", limits)
    if array.dtype == np.uint8 and channels in ([], [3], [4]):
        return Image.fromarray(np.ascontiguousarray(array))
    white = white_level
    if np.issubdtype(array.dtype, np.floating) and white is None:
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:  # NaN fails this too
            raise ImageError(
                f"an array of floats must be from 0 to 1, got {low:g} to {high:g}; use uint8, or "
                "set white_level (--white-level)"
            )
        white = 1.0
    elif array.dtype == np.uint8:
        white = 255.0
    elif not np.issubdtype(array.dtype, np.floating) and array.dtype != np.uint16:
        raise ImageError(f"an array must be uint8, uint16 or floats from 0 to 1, got {array.dtype}")
    return from_array(array, white=white, name=name)


def _raster(pixels: Image.Image | Raster, channels: int, name: str) -> Raster:
    if isinstance(pixels, Raster):
        return pixels
    if pixels.mode in ("P", "PA", "La", "RGBa") or "transparency" in pixels.info:
        pixels = pixels.convert("RGBA" if pixels.has_transparency_data else "RGB")
    elif pixels.mode not in ("1", "L", "LA", "RGB", "RGBA", "CMYK") or (
        pixels.mode == "CMYK" and channels == 1  # to gray by way of RGB
    ):
        pixels = pixels.convert("RGB")
    return from_pillow(pixels, white=None, name=name)


def _check_icon(icon: IcoImagePlugin.IcoFile, limits: Limits) -> None:
    """Raise if the image that Pillow would take from an icon is too large, by its own header."""
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
        height = abs(height) // 2  # the lower half is the transparency mask
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
    """Make a JPEG decoder decode at reduced size; return the scale, 1 for other formats."""
    if image.width * image.height < _LARGE:
        return 1
    whole, short = image.width, min(image.size)
    scale = next((scale for scale in (8, 4, 2) if short >= scale * least_side), 1)
    image.draft(None, (image.width // scale, image.height // scale))
    return 1 if image.width == whole else scale


def _loaded(image: Image.Image) -> Image.Image:
    """`image` with its pixels in memory."""
    if needs_scaling(image):
        return scaled(image)
    image.load()
    # This format's decoder keeps two more copies as long as its image exists.
    return image.copy() if image.format == "WEBP" else image


def _to_rgb(image: Image.Image | Raster) -> Image.Image:
    if isinstance(image, Raster):
        return image.rgb()
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    for box in tiles(*image.size):
        tile = cropped(image, box).convert("RGBA")
        rgb.paste(
            Image.alpha_composite(Image.new("RGBA", tile.size, _WHITE), tile).convert("RGB"), box
        )
    return rgb
