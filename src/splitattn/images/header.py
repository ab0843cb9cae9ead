"""Reads from a file's header how many bits its samples have, and which value is white."""

import re
import struct
import sys
from dataclasses import dataclass
from typing import Any

from PIL import Image

from splitattn.errors import ImageError

# Tags of TIFF.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE, _SAMPLE_FORMAT, _S_MAX_SAMPLE_VALUE = 258, 281, 339, 341
_UNSIGNED = 1
# The largest values of 8 to 16 bits.
_WHOLE_BITS = {2.0**bits - 1 for bits in range(8, 17)}

# Pillow keeps only the upper 8 bits of 16-bit samples with several channels. With the byte order
# swapped, it reads the lower 8 bits.
_SWAPPED = {f"{mode};16B": f"{mode};16L" for mode in ("RGB", "RGBA", "RGBX")}
_SWAPPED |= {swapped: mode for mode, swapped in _SWAPPED.items()}
# For 16-bit gray with transparency, it reads all four bytes.
_GRAY_ALPHA = "LA;16B"
_SWAPPED[_GRAY_ALPHA] = "RGBA"
_NATIVE = ";16L" if sys.byteorder == "little" else ";16B"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a header states about the samples.

    Attributes:
        white: the value of full brightness, if stated.
        bits: how many of 16 bits are significant, if a PNG states it.
        unsigned: whether 32-bit integers are unsigned.
        signed: whether 16-bit integers are signed; Pillow converts them to 32 bits.
        black: in a TIFF of more than 8 bits whose zero is white: the largest value, which is black.
        lower_tiles: value for Pillow's `tile` that reads the lower bytes of 16-bit samples; None if
            Pillow reads all bits.
        gray_alpha: whether these tiles read both bytes of gray, then both of transparency.
    """

    white: float | None
    bits: int | None
    unsigned: bool
    signed: bool
    black: int | None
    lower_tiles: list[Any] | None
    gray_alpha: bool


def read_header(image: Image.Image, content: bytes) -> Header:
    """Read the header of `image`, which is opened but not loaded.

    Args:
        content: the file's bytes.

    Raises:
        ImageError: Pillow would misread the samples.
    """
    tags = getattr(image, "tag_v2", {})
    tiles = list(getattr(image, "tile", ()))
    ways = [_raw_mode(tile) for tile in tiles]
    if 16 in _numbers(tags, _BITS_PER_SAMPLE) and any(way in ("R", "G", "B", "A") for way in ways):
        raise ImageError(
            "16-bit TIFF images must store their channels together (PlanarConfiguration 1), "
            "got separate planes; convert the file"
        )
    lower = None
    if tiles and all(way in _SWAPPED for way in ways):
        lower = [
            (*tile[:3], _with_raw_mode(tile, _SWAPPED[way]))
            for tile, way in zip(tiles, ways, strict=True)
        ]
    unsigned = _numbers(tags, _SAMPLE_FORMAT) in ([], [_UNSIGNED]) and bool(tags)
    return Header(
        white=_white(image, tags),
        bits=_significant_bits(content) if image.format == "PNG" else None,
        unsigned=unsigned,
        signed=any(way in ("I;16S", "I;16BS") for way in ways),
        black=_black(tags) if unsigned else None,
        lower_tiles=lower,
        gray_alpha=_GRAY_ALPHA in ways,
    )


def _white(image: Image.Image, tags: Any) -> float | None:
    if image.format in ("PPM", "JPEG2000") and image.mode != "F":  # floats are Portable FloatMap
        return 65535.0  # Pillow scales these to 16 bits
    most = max(_numbers(tags, _S_MAX_SAMPLE_VALUE) + _numbers(tags, _MAX_SAMPLE_VALUE), default=0.0)
    if most in _WHOLE_BITS:  # another value would only be this image's brightest
        return most
    bits = max(_numbers(tags, _BITS_PER_SAMPLE), default=16)
    # Many files use fewer bits than the 16 or 32 that they state.
    return None if bits % 8 == 0 else 2.0**bits - 1


def _black(tags: Any) -> int | None:
    """The largest value if zero is white and Pillow does not invert, as it does up to 8 bits."""
    bits = int(max(_numbers(tags, _BITS_PER_SAMPLE), default=0))
    return (1 << bits) - 1 if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and bits > 8 else None


def _significant_bits(content: bytes) -> int | None:
    """The significant bits that the chunk sBIT of a PNG states."""
    position = 8
    while len(head := content[position : position + 8]) == 8 and head[4:] != b"IDAT":
        length, kind = struct.unpack(">I4s", head)
        if kind == b"sBIT":
            bits = max(content[position + 8 : position + 8 + length] or b"\0")
            return bits if 8 <= bits < 16 else None
        position += 12 + length
    return None


def _numbers(tags: Any, tag: int) -> list[float]:
    found = tags.get(tag, ())
    values = found if isinstance(found, tuple) else (found,)
    return [float(value) for value in values]


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]
    mode = arguments if isinstance(arguments, str) else arguments[0]
    return re.sub(";16N$", _NATIVE, str(mode))


def _with_raw_mode(tile: Any, mode: str) -> Any:
    return mode if isinstance(tile[3], str) else (mode, *tile[3][1:])
