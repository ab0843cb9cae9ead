"""Limits on the cost of an image file's structure, besides its pixels.

A hostile file may have very many parts of a few bytes each. Decoders read them one by one in
Python, join those of one kind in quadratic time, or read the same bytes again for each part.
"""

import io
import re
import struct
from typing import Literal

from PIL import Image

from splitattn.errors import ImageError

# Limits on reads and bytes for the header. A profile of 1 MB takes 8,000 reads in a GIF, and the
# offsets of a TIFF with a million rows take 8 MB.
_HEADER_READS, _HEADER_BYTES = 10_000, 32 * 2**20
# Limits on reads for the pixels: a constant, plus one read per this many bytes of the file. Chunks
# of a PNG usually have 8,192 bytes, and each takes four reads.
_PIXEL_READS, _BYTES_PER_READ = 50_000, 64

# A scan over all pixels may take only ten bytes of the file. Ten scans are usual; libtiff has this
# limit.
MOST_SCANS = 100
# An ICC profile has up to 255 segments, and each scan has a few tables.
_MOST_SEGMENTS = 10_000
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")
_NO_FILL = re.compile(rb"[^\xff]")
_APP1, _START_OF_SCAN, _END_OF_IMAGE, _START_OF_IMAGE = 0xE1, 0xDA, 0xD9, 0xD8
_EXIF = b"Exif\0\0"

_TIFF_HEADER = re.compile(rb"II\*\0|MM\0\*")
_MOST_DIRECTORIES = 16
_MOST_ENTRIES = 1_000  # raw files of cameras have two hundred
# Bytes of the types 1 to 12 of TIFF.
_TYPE_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8)
_ORIENTATION = 0x0112
# The orientation in XMP data.
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BoundedStream(io.BytesIO):
    """A file's bytes, with a limit on how often a decoder may read.

    Raises:
        ImageError: by `read`, beyond the limit.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._reads, self._bytes = _HEADER_READS, max(_HEADER_BYTES, len(content))
        self._size = len(content)

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BytesIO`."""
        part = super().read(size)
        self._reads -= 1
        self._bytes -= len(part)
        if self._reads < 0 or self._bytes < 0:
            raise ImageError("an image must have fewer parts, its decoder reads too often")
        return part

    def header_is_read(self) -> None:
        """Start counting reads for the pixels."""
        self._reads = _PIXEL_READS + self._size // _BYTES_PER_READ
        self._bytes = 2 * self._size + _HEADER_BYTES


def hide_exif(content: bytes) -> tuple[bytes, bytes]:
    """Hide EXIF data in a JPEG from decoders; return the JPEG and the first EXIF data, if any.

    Decoders would join all EXIF segments, and read bytes again for each of thousands of entries.

    Raises:
        ImageError: it has too many segments.
    """
    found: list[tuple[int, int]] = []
    position = 2
    for _ in range(_MOST_SEGMENTS):
        marker = _NO_FILL.search(content, position)
        if marker is None or marker.start() == position:
            break
        kind, position = marker[0][0], marker.end()
        if kind in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        if kind <= 1 or 0xD0 <= kind <= _START_OF_IMAGE:
            continue  # a marker without a length
        length = int.from_bytes(content[position : position + 2])
        if kind == _APP1 and content.startswith(_EXIF, position + 2):
            found.append((position + 2, position + length))
        position += max(length, 2)
    else:
        raise _too_many_segments()
    if not found:
        return content, b""
    starts = [start for start, _ in found]
    ends = [0, *(start + len(_EXIF) for start in starts)]
    kept = [
        memoryview(content)[end:start] for end, start in zip(ends, [*starts, None], strict=True)
    ]
    return bytes(len(_EXIF)).join(kept), content[slice(*found[0])]


def check_scans(content: bytes, *, components: int, progressive: bool) -> None:
    """Raise if a JPEG has too many scans, each of which is a pass over all pixels.

    Args:
        components: number of components in the image.
        progressive: whether more scans may follow one with all components.

    Raises:
        ImageError: the message says the limit.
    """
    position = scans = 0
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(content, position)
        if found is None or found[1][0] == _END_OF_IMAGE:
            return
        position = found.end()
        if found[1][0] == _START_OF_SCAN:
            scans += 1
            if not progressive and content[position + 2] == components:
                return  # this scan is the whole image
        if scans > MOST_SCANS:
            raise ImageError(f"a JPEG image may have at most {MOST_SCANS} scans, got more")
        if position > 2:  # all segments but the first marker have a length
            position += int.from_bytes(content[position : position + 2])
    raise _too_many_segments()


def _too_many_segments() -> ImageError:
    return ImageError(f"a JPEG image may have at most {_MOST_SEGMENTS:,} segments, got more")


def check_directories(content: bytes) -> None:
    """Raise if the entries of EXIF data anywhere in the file have more bytes than the file.

    For formats whose decoder passes EXIF data to Pillow, which reads all entries.

    Raises:
        ImageError: entries overlap, or there are too many possible EXIF blocks.
    """
    for number, header in enumerate(_TIFF_HEADER.finditer(content)):
        order = "<" if header[0].startswith(b"I") else ">"
        size = sum(
            (_TYPE_SIZES[kind] if kind < len(_TYPE_SIZES) else 0) * count
            for _, kind, count, _ in _entries(content[header.start() :], order)
        )
        if number >= _MOST_DIRECTORIES or size > len(content):
            raise ImageError("the EXIF data must not overlap, got more than the file has bytes")


def check_entries(content: bytes) -> None:
    """Raise if the first directory of a TIFF is too long; Pillow may log a warning per entry.

    Raises:
        ImageError: the message says the limit.
    """
    order = "<" if content.startswith(b"I") else ">"
    if len(_entries(content, order)) > _MOST_ENTRIES:
        raise ImageError(f"a TIFF image may have at most {_MOST_ENTRIES} tags, got more")


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a loaded `image` by one of EXIF's eight orientations."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image, exif: bytes = b"") -> int:
    """The orientation in a file's EXIF data, or if it has none, in its XMP data; 1 is upright.

    Args:
        image: loaded, since some formats store these data after the pixels.
        exif: the EXIF data, if they were hidden from Pillow.
    """
    if image.format == "TIFF":  # Pillow turns it when loading, and removes the tag
        return int(getattr(image, "tag_v2", {}).get(_ORIENTATION, 1))
    exif = exif or image.info.get("exif", b"")
    if isinstance(exif, bytes):
        data = exif.removeprefix(_EXIF)
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
        for tag, kind, count, value in _entries(data, order) if order else ():
            if tag == _ORIENTATION and count == 1 and kind in (1, 3, 4):
                end: Literal["little", "big"] = "little" if order == "<" else "big"
                return int.from_bytes(value[: _TYPE_SIZES[kind]], end)
    for name in ("XML:com.adobe.xmp", "xmp"):
        xmp = image.info.get(name, b"")
        xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
        if isinstance(xmp, bytes) and (said := _XMP_ORIENTATION.search(xmp)):
            return int(said[1])
    return 1


def _entries(data: bytes, order: str) -> list[tuple[int, int, int, bytes]]:
    """Tag, type, count and value of each entry in the first directory, as far as the data go."""
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
    except struct.error:
        return []
    body = data[start + 2 : start + 2 + 12 * count]
    return list(struct.iter_unpack(f"{order}HHI4s", body[: len(body) // 12 * 12]))
