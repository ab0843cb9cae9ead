"""Images that would take time or memory because of their structure, not their pixels.

They are too large to be stored. Before there were limits, the first took 37 s and the TIFF 1.8 GB.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image, features

from splitattn.environment import peak_memory
from splitattn.errors import ImageError
from splitattn.images.decode import decode
from tests.attacks.make import chunk, jpeg, png, segment

MEMORY = 2**29
KB, MB = 2**10, 2**20


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    before = peak_memory() or 0
    yield
    assert (peak_memory() or 0) - before < MEMORY


def directory(
    entries: int, size: int, tags: dict[int, int] | None = None, first: int = 1000
) -> bytes:
    """A TIFF whose entries, from tag `first` on, all point to the same `size` bytes."""
    where = 8 + 2 + 12 * (entries + len(tags or {})) + 4
    parts = [struct.pack("<HHII", first + i, 7, size, where) for i in range(entries)]
    parts += [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in (tags or {}).items()]
    body = b"".join(sorted(parts, key=lambda part: struct.unpack("<H", part[:2])))
    return struct.pack("<2sHIH", b"II", 42, 8, len(parts)) + body + bytes(4) + bytes(size)


def fill_bytes(size: int) -> bytes:
    content = jpeg(16, 16)
    return content[:2] + b"\xff" * size + b"\0" + content[2:]


def fill_bytes_behind_a_scan(size: int) -> bytes:
    content = jpeg(16, 16, progressive=True)
    return content[:-2] + b"\xff" * size + b"\0" + content[-2:]


def skipped_markers(size: int) -> bytes:
    return jpeg(16, 16, before=b"\xff\0" * (size // 2))


def tiny_segments(size: int) -> bytes:
    return jpeg(16, 16, before=segment(0xFE, b"") * (size // 4))


def exif_segments(size: int) -> bytes:
    return jpeg(16, 16, before=segment(0xE1, b"Exif\0\0" + bytes(8)) * (size // 18))


def exif_of_many_entries(size: int) -> bytes:
    """A JPEG whose EXIF data fills many segments, which decoders join."""
    exif = directory(min(size // 24, 60_000), size // 2)
    parts = (exif[i : i + 60_000] for i in range(0, len(exif), 60_000))
    return jpeg(16, 16, before=b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts))


def gif(extension: bytes) -> bytes:
    stream = io.BytesIO()
    Image.new("P", (16, 16)).save(stream, "GIF")
    content = stream.getvalue()
    header = 13 + 3 * (2 << (content[10] & 7))
    return content[:header] + extension + content[header:]


def gif_comments_of_one_byte(size: int) -> bytes:
    return gif(b"\x21\xfe" + b"\1x" * (size // 2) + b"\0")


def gif_comments(size: int) -> bytes:
    return gif(b"\x21\xfe" + (b"\xff" + bytes(255)) * (size // 256) + b"\0")


def gif_extensions(size: int) -> bytes:
    return gif(b"\x21\xfe\0" * (size // 3))


def tiff_entries(size: int) -> bytes:
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 256}
    return directory(min(size // 24, 20_000), size // 2, tags, first=40_000)


def png_exif(size: int) -> bytes:
    exif = chunk(b"eXIf", directory(min(size // 24, 60_000), size // 2))
    return png(16, 16, bytes(16 * 49), before=exif)


def png_chunks(size: int) -> bytes:
    return png(16, 16, bytes(16 * 49), before=chunk(b"abCd", b"") * (size // 12))


def png_pixels_in_no_pieces(size: int) -> bytes:
    return png(16, 16, bytes(16 * 49), before=chunk(b"IDAT", b"") * (size // 12))


def jpeg2000_boxes(size: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG2000")
    content = stream.getvalue()
    return content[:32] + struct.pack(">I4s", 8, b"free") * (size // 8) + content[32:]


def ppm_comment(size: int) -> bytes:
    return b"P5 # " + b"x" * size + b"\n16 16 255\n" + bytes(256)


def webp_exif(size: int) -> bytes:
    return saved_with_exif("WEBP", directory(min(size // 24, 60_000), size // 2))


def avif_exif(size: int) -> bytes:
    """The entries are inserted after saving, because Pillow would parse them when it writes."""
    exif = directory(min(size // 24, 60_000), size // 2)
    content = saved_with_exif("AVIF", directory(1, len(exif) - 26))
    start = content.index(b"II*\0")
    return content[:start] + exif + content[start + len(exif) :]


def saved_with_exif(format: str, exif: bytes) -> bytes:
    if not features.check(format.lower()):
        pytest.skip(f"this Pillow has no {format}")
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, format, exif=exif)
    return stream.getvalue()


# Whether the image is decoded all the same (True) or refused (False).
STRUCTURES: dict[Callable[[int], bytes], bool] = {
    fill_bytes: False,
    fill_bytes_behind_a_scan: True,
    skipped_markers: False,
    tiny_segments: False,
    exif_segments: False,
    exif_of_many_entries: True,
    gif_comments_of_one_byte: False,
    gif_comments: False,
    gif_extensions: False,
    tiff_entries: False,
    png_exif: True,
    png_chunks: False,
    png_pixels_in_no_pieces: False,
    jpeg2000_boxes: False,
    ppm_comment: False,
    webp_exif: True,
    avif_exif: False,
}


@pytest.mark.timeout(10, func_only=True)
@pytest.mark.parametrize("make", STRUCTURES, ids=lambda make: make.__name__)
def test_structure_costs_little_time_and_memory(make: Callable[[int], bytes]) -> None:
    content = make(4 * MB)
    if STRUCTURES[make]:
        assert decode(content).size == (16, 16)
        return
    with pytest.raises(ImageError) as raised:
        decode(content)
    assert str(raised.value).isprintable()


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
@pytest.mark.parametrize("make", STRUCTURES, ids=lambda make: make.__name__)
def test_a_little_of_the_same_is_let_through(make: Callable[[int], bytes]) -> None:
    if make is avif_exif:
        return  # at any size its entries refer to more bytes than the file has
    assert decode(make(2 * KB)).size == (16, 16)


def test_pixels_in_many_small_parts_are_read() -> None:
    """Encoders that send a picture while they make it write such files."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    parts = b"".join(chunk(b"IDAT", data[i : i + 100]) for i in range(0, len(data), 100))
    content = png(200, 200, before=parts).replace(chunk(b"IDAT", zlib.compress(b"", 9)), b"")
    np.testing.assert_array_equal(np.asarray(decode(content)), pixels)
