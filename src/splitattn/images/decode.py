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

# Raster formats that Pillow decodes by itself: EPS, for one, would start Ghostscript. The most
# common come first, for each is asked in turn whether a file is its own.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")


class _Plugin(NamedTuple):
    brands: tuple[bytes, ...]  # bytes 8 to 12 of a file
    library: str
    package: str
    register: str


# Formats that are photographs' too, and that Pillow reads only with another package, if at all.
_PLUGINS = {
    "HEIF": _Plugin(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"),
        "pillow_heif",
        "pillow-heif",
        "register_heif_opener",
    ),
    "AVIF": _Plugin((b"avif", b"avis"), "pillow_avif", "pillow-avif-plugin", ""),
}

# What part of the limit on pixels these formats have, whose decoders take 12 to 24 bytes for each
# pixel on the way: a file of 34 bytes could else ask for gigabytes. Of an icon, Pillow counts twice
# the pixels, and would warn of many.
_SHARES = {"WEBP": 1 / 2, "AVIF": 1 / 2, "CMYK JPEG": 1 / 2, "ICO": 1 / 4, "JPEG2000": 1 / 3}
_SHARES["HEIF"] = 1 / 3
# RGB of 16 bits per channel is read twice.
_SHARES["48-bit"] = 1 / 2
_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
# Where a PNG file says the bits of a pixel, and after them its kind of color.
_PNG_DEPTH, _PNG_GRAY = 24, 0
_OLD_HEADER = 12  # bytes of the bitmap header whose sides have 16 bits

# Pillow's modes of images of one channel that PNG files can have.
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16")
# Channels of the images that are decoded to 8 bits.
RGB = 3

# Pixels from which `decode_reduced` reduces. Smaller files decode in milliseconds, and reducing
# them could change a label for no gain.
_LARGE = 500_000

_WHITE = (255, 255, 255, 255)
# EXIF's orientations whose width is the upright image's height.
_QUARTER_TURNS = (5, 6, 7, 8)


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
    source: ImageSource,
    *,
    limits: Limits = DEFAULT_LIMITS,
    name: str | None = None,
    white_level: float | None = None,
) -> Image.Image:
    """Decode `source` to RGB, 8 bits per channel, turned upright as its EXIF data says.

    Transparency is laid on white, and of an animation the first frame is taken. More than 8 bits
    per channel are scaled to 8: by the number of bits or the largest value that the header states,
    or else by the smallest usual scale (8, 10, 12, 14 or 16 bits; floats to 1) that all but one in
    a thousand pixels keep to. What is brighter than white becomes white.

    Args:
        source: a path, an http(s) URL, an encoded file's bytes, an array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4) of uint8, uint16 or floats from 0 to 1, or a Pillow image. A file
            may also be such an array in NumPy's `.npy` format.
        limits: what is refused before it is decoded.
        name: what errors call the source; by default its path.
        white_level: the value of full brightness in images of more than 8 bits per channel; None
            takes it from each image.

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

    That is several times as fast, and changes pixels slightly. Pillow images and arrays, which are
    decoded already, and files in other formats keep their size.

    Args:
        source, limits, name, white_level: see `decode`. Limits count the pixels of the whole image.
        least_side: pixels that the shorter side keeps at least (`preprocessing.least_side` computes
            them); None does not reduce.

    Raises:
        ImageError: see `decode`.
    """
    with _named(source, name) as called:
        found = _decode(source, limits, least_side, white_level, called)
        with _damage_reported():
            return Reduced(image=_to_rgb(found.pixels), whole=found.whole, scale=found.scale)


def as_reduced(image: Image.Image | Reduced) -> Reduced:
    """An image that is RGB and upright, as `decode_reduced` gives it."""
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
    """Decode `source` with all bits that it has, for a network of `channels` channels.

    For one channel, colors become their luma and transparency is laid on white. Otherwise the
    image must have exactly these channels: gray and transparency are 2, RGB and transparency 4,
    CMYK 4, and an array (H, W, C) has C.

    Args:
        source, name, white_level: see `decode`.
        limits: the pixels of all channels count.

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
    """Width and height of the image that `decode` makes of a file. Only its header is decoded.

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
    """The numbers (H, W) that a PNG of one channel holds, such as the class of each pixel.

    Of an image with a palette these are the indices into it. Nothing is scaled and nothing turned.

    Raises:
        ImageError: the file is no PNG of one channel, has a number above 255, is broken, or is
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
                numbers = numbers // (255 // (2**depth - 1))  # Pillow spreads them over 8 bits
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
    """`pixels` are upright; a Pillow image has 8 bits per channel. See `Reduced` for the others."""

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
    """The bytes of a path or URL, and anything else as it is, for those who decode it twice.

    Raises:
        ImageError: it cannot be read, or has too many bytes.
    """
    with _named(source, None):
        return _content(source, limits)


def _content(source: ImageSource, limits: Limits) -> ImageSource:
    if isinstance(source, str) and is_url(source):
        from splitattn.images.fetch import fetch  # not needed for files

        return fetch(source, limits=limits)
    if source == "":
        raise ImageError("expected the path of an image, got none")
    return _read_file(Path(source), limits) if isinstance(source, str | Path) else source


def _whole(pixels: Image.Image | Raster) -> _Decoded:
    return _Decoded(pixels=pixels, whole=pixels.size)


def name_of(source: ImageSource) -> str:
    """What errors call an image: its path, or what kind of object it is."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "Pillow image"
    return "array" if isinstance(source, np.ndarray) else type(source).__name__


def _advice(missing: Path) -> str:
    """What to do about a file that is not there, which may be an address."""
    scheme = re.match(r"([a-z][a-z0-9]+):/", str(missing))
    if scheme is None:
        return "check the path"
    if scheme[1] in ("s3", "gs"):
        return "splitattn bulk reads buckets"
    return "of addresses only http and https are read"


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
        # Opening a pipe would wait for a writer, and reading a device need not end.
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("expected an image file, got a pipe or device")
        _check_bytes(status.st_size, limits)
        with open_file(path) as file:  # between the look and here, it may have been replaced
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
        # Out of the list, without a name: each step frees the pixels of the one before.
        image = _loaded(opened.pop())
        image = upright(image, orientation(image, exif))
    if image.size != stored:  # turned by a quarter
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
    """Read the header. As `Image.open`, whose warning about large images `Limits` replaces."""
    Image.preinit()
    prefix, stream = content[:16], BoundedStream(content)
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
        if name == "ICO":  # Pillow decodes an icon's largest image where it should read its header
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
    """Read the header of an image that Pillow needs another package for.

    Raises:
        ImageError: the package is not installed, or the image is of no known kind.
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
        if not 0 <= low <= high <= 1:  # not a number fails this too
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
        pixels.mode == "CMYK" and channels == 1  # its colors become gray as all others do
    ):
        pixels = pixels.convert("RGB")
    return from_pillow(pixels, white=None, name=name)


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
