"""Write the hostile files of this folder. The code shows what each of them contains.

usage: python tests/attacks/make.py

It uses the standard library only, since encoders refuse to write such files. The first folder
of a file's path names its reader: `images`, `weights`, `recipes`, `data`, `exported` or
`annotations`. A file whose description begins with "Valid:" must be read without an error.
"""

import io
import json
import pickle
import random
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
# The file that a hostile pickle creates if its code runs.
MARKER = "hostile-code-ran"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A file: its path below this folder, a description, and its bytes."""

    path: str
    what: str
    content: bytes

    @property
    def valid(self) -> bool:
        """Whether the file is unusual but not hostile, so that readers must accept it."""
        return self.what.startswith("Valid:")


# Images


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    pixels: bytes = b"",
    *,
    depth: int = 8,
    color: int = 2,
    before: bytes = b"",
    end: bytes = chunk(b"IEND", b""),
) -> bytes:
    """A PNG: `before` has the chunks before the pixels, `pixels` a filter byte before each row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + end


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg(
    width: int,
    height: int,
    *,
    components: int = 1,
    progressive: bool = False,
    scans: int = 1,
    before: bytes = b"",
) -> bytes:
    """A JPEG of one color: each Huffman table has only a 1-bit code for "no more in this block"."""
    channels = [bytes((i, 0x11, 0)) for i in range(1, components + 1)]
    frame = struct.pack(">BHHB", 8, height, width, components) + b"".join(channels)
    start = bytes((components,)) + b"".join(bytes((i, 0)) for i in range(1, components + 1))
    once = start + (b"\0\0\0" if progressive else b"\0\x3f\0")
    again = b"\x01\x01\0\x01\x3f\0"  # a scan over every block that has only headers
    blocks = -(-width // 8) * -(-height // 8) * components
    return (
        b"\xff\xd8"
        + before
        + segment(0xDB, b"\0" + bytes([1] * 64))
        + segment(0xC2 if progressive else 0xC0, frame)
        + segment(0xC4, b"\x00\x01" + bytes(15) + b"\0")
        + segment(0xC4, b"\x10\x01" + bytes(15) + b"\0")
        + segment(0xDA, once)
        + bytes(min(blocks // 4 + 1, 64))
        + segment(0xDA, again) * (scans - 1)
        + b"\xff\xd9"
    )


def ifd(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A little-endian TIFF directory: tag, type, count, value or offset; then the next offset."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + packed + struct.pack("<I", following)


def tiff(*entries: tuple[int, int, int, int], following: int = 0, data: bytes = b"") -> bytes:
    return b"II*\0" + struct.pack("<I", 8) + ifd(*entries, following=following) + data


LONG = 4
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIPS, ROWS, STRIP_BYTES, TILE_WIDTH, TILE_LENGTH = 273, 278, 279, 322, 323
TILES, TILE_BYTES = 324, 325


def webp(width: int, height: int) -> bytes:
    """A lossless WebP of one color."""
    size = (width - 1) | (height - 1) << 14 | 1 << 28
    image = b"\x2f" + struct.pack("<I", size) + bytes.fromhex("071011118888fe07")
    body = b"WEBPVP8L" + struct.pack("<I", len(image)) + image + b"\0" * (len(image) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(width: int, height: int, frames: int = 1) -> bytes:
    """A GIF of one color whose pixel data ends after the first few pixels."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0"
    header = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return header + frame * frames + b"\x3b"


def bmp(
    width: int, height: int, *, compression: int = 0, bits: int = 24, data: bytes = b""
) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    palette = bytes(4 << bits) if bits <= 8 else b""
    start = 14 + len(info) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + info + palette + data


def icon(content: bytes) -> bytes:
    """An icon whose header says 16 x 16 pixels, whatever `content` is."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(content), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + content


def jpeg2000(width: int, height: int, tile: int) -> bytes:
    """A JPEG 2000 code stream of one tile, whose header declares a grid of tiles."""
    size = struct.pack(">HIIIIIIIIHBBB", 0, width, height, 0, 0, tile, tile, 0, 0, 1, 7, 1, 1)
    coding = bytes.fromhex("000000010003040400 01".replace(" ", ""))
    return (
        b"\xff\x4f"
        + segment(0x51, size)
        + segment(0x52, coding)
        + segment(0x5C, bytes.fromhex("4040484850484850484850"))
        + bytes.fromhex("ff90000a0000000000150001ff93df800807808080ffd9")
    )


def orientation(value: int) -> bytes:
    return b"Exif\0\0" + tiff((0x0112, 3, 1, value))


RED_ROW = b"\0" + b"\xff\0\0" * 8
EIGHT = png(8, 8, RED_ROW * 8)
PLAIN_JPEG = jpeg(8, 8)


def images() -> list[tuple[str, str, bytes]]:
    bomb = zlib.compress(bytes(4_000_000), 9)
    long_rows = tuple((tag, LONG, 2**31, 8) for tag in (STRIPS, STRIP_BYTES))
    gray = ((WIDTH, LONG, 1, 16), (LENGTH, LONG, 1, 16), (BITS, 3, 1, 8), (PHOTOMETRIC, 3, 1, 1))
    tiled = ((TILE_WIDTH, LONG, 1, 60_000), (TILE_LENGTH, LONG, 1, 60_000))
    return [
        ("empty.jpg", "No bytes at all.", b""),
        ("text.jpg", "Text.", b"this is not a photograph\n"),
        (
            "bomb.png",
            "A header of 1.2 billion pixels (4 GB), with only a few of them.",
            png(40_000, 30_000, bytes(1_000_000)),
        ),
        ("more-than-memory.png", "2**31 - 1 pixels squared.", png(2**31 - 1, 2**31 - 1)),
        ("no-pixels.png", "No width.", png(0, 10)),
        ("truncated.png", "Breaks off in its pixels.", EIGHT[:-30]),
        ("header-only.png", "Breaks off after its header.", EIGHT[:33]),
        (
            "wrong-checksum.png",
            "A bit of its pixels is flipped.",
            EIGHT[:50] + bytes((EIGHT[50] ^ 1,)) + EIGHT[51:],
        ),
        (
            "long-chunk.png",
            "A chunk that says it has 2**31 - 1 bytes.",
            EIGHT[:33] + struct.pack(">I", 2**31 - 1) + EIGHT[37:],
        ),
        (
            "profile-bomb.png",
            "A color profile that unpacks to 4 MB.",
            png(8, 8, RED_ROW * 8, before=chunk(b"iCCP", b"x\0\0" + bomb)),
        ),
        (
            "text-bomb.png",
            "A note that unpacks to 4 MB.",
            png(8, 8, RED_ROW * 8, before=chunk(b"zTXt", b"x\0\0" + bomb)),
        ),
        (
            "frames.png",
            "An animation of 2**32 - 1 frames, of which none is there.",
            png(8, 8, RED_ROW * 8, before=chunk(b"acTL", b"\xff" * 8)),
        ),
        (
            "no-palette.png",
            "Pixels of a palette that is not there.",
            png(8, 8, (b"\0" + bytes(range(8))) * 8, color=3),
        ),
        (
            "16-bit.png",
            "Valid: 16 bits per channel.",
            png(8, 8, (b"\0" + b"\x80\x80" * 8) * 8, depth=16, color=0),
        ),
        (
            "transparent-palette.png",
            "Valid: a palette, one of its colors transparent.",
            png(
                8,
                8,
                (b"\0" + bytes(8)) * 8,
                color=3,
                before=chunk(b"PLTE", b"\xff\0\0") + chunk(b"tRNS", b"\0"),
            ),
        ),
        ("absurd.jpg", "65,535 pixels squared.", jpeg(65_535, 65_535)),
        ("no-height.jpg", "No height.", jpeg(8, 0)),
        ("truncated.jpg", "Breaks off in its tables.", PLAIN_JPEG[:100]),
        (
            "scans.jpg",
            "400 scans over 36 million pixels, of ten bytes each.",
            jpeg(6_000, 6_000, progressive=True, scans=400),
        ),
        (
            "hidden-scans.jpg",
            "The same, with the scans hidden behind a marker without a length.",
            jpeg(6_000, 6_000, progressive=True, scans=400).replace(
                b"\xff\xda\0\x08\x01\x01\0\x01", b"\xff\x01\xff\xda\0\x08\x01\x01\0\x01"
            ),
        ),
        ("components.jpg", "Twelve channels of color.", jpeg(8, 8, components=12)),
        (
            "cmyk.jpg",
            "Valid: cyan, magenta, yellow and black.",
            jpeg(8, 8, components=4, before=segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")),
        ),
        (
            "exif-count.jpg",
            "EXIF data with 2**32 - 1 values.",
            jpeg(8, 8, before=segment(0xE1, b"Exif\0\0" + tiff((0x0112, 3, 2**32 - 1, 8)))),
        ),
        (
            "exif-loop.jpg",
            "Valid: EXIF data whose directory is followed by itself.",
            jpeg(8, 8, before=segment(0xE1, b"Exif\0\0" + tiff((0x8769, LONG, 1, 8), following=8))),
        ),
        (
            "exif-orientation.jpg",
            "Valid: an EXIF orientation that does not exist.",
            jpeg(8, 8, before=segment(0xE1, orientation(255))),
        ),
        ("huge.gif", "65,535 pixels squared.", gif(65_535, 65_535)),
        (
            "large-frame.gif",
            "A frame larger than the picture that it is part of.",
            gif(8, 8).replace(
                struct.pack("<HHHHB", 0, 0, 8, 8, 0), struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0)
            ),
        ),
        ("frames.gif", "A hundred frames that break off.", gif(8, 8, frames=100)),
        ("huge.webp", "16,384 pixels squared, in 34 bytes.", webp(16_384, 16_384)),
        (
            "half.webp",
            "120 million pixels: 2 GB on the way through this format's decoder.",
            webp(12_000, 10_000),
        ),
        ("no-image.webp", "A container of nothing.", b"RIFF\x04\0\0\0WEBP"),
        ("huge.bmp", "20,000 pixels squared.", bmp(20_000, 20_000)),
        ("negative.bmp", "A width below zero.", bmp(-8, 8, data=bytes(192))),
        (
            "run-length.bmp",
            "Run-length code that leaves the picture.",
            bmp(64, 64, compression=1, bits=8, data=b"\0\x02\xff\xff" * 50),
        ),
        (
            "huge.tiff",
            "2**32 - 1 pixels squared.",
            tiff((WIDTH, LONG, 1, 2**32 - 1), (LENGTH, LONG, 1, 2**32 - 1)),
        ),
        ("strips.tiff", "2**31 strips.", tiff(*gray, *long_rows)),
        ("loop.tiff", "Its directory is followed by itself.", tiff(*gray, following=8)),
        (
            "tile.tiff",
            "One tile of 3.6 GB for 256 pixels.",
            tiff(
                *gray,
                (COMPRESSION, 3, 1, 5),
                *tiled,
                (TILES, LONG, 1, 8),
                (TILE_BYTES, LONG, 1, 100),
            ),
        ),
        (
            "rows.tiff",
            "A strip of 2**32 - 1 rows.",
            tiff(
                *gray,
                (COMPRESSION, 3, 1, 5),
                (STRIPS, LONG, 1, 8),
                (ROWS, LONG, 1, 2**32 - 1),
                (STRIP_BYTES, LONG, 1, 2**31),
            ),
        ),
        (
            "icon.ico",
            "400 million pixels behind a header that says 256.",
            icon(png(20_000, 20_000, bytes(100_000))),
        ),
        (
            "icon-bitmap.ico",
            "The same as a bitmap, with which Pillow warns and decodes before it is asked to.",
            icon(bmp(20_000, 40_000, bits=32, data=bytes(100))[14:]),
        ),
        (
            "icon-no-image.ico",
            "65,535 images, of which none is there.",
            struct.pack("<HHH", 0, 1, 65_535),
        ),
        ("tiles.jp2", "10**14 tiles of one pixel.", jpeg2000(10**7, 10**7, 1)),
        (
            "many-tiles.jp2",
            "A million tiles of one pixel, which the standard does not allow.",
            jpeg2000(1_000, 1_000, 1),
        ),
        ("digits.ppm", "A width of 3,000 digits.", b"P6 " + b"9" * 3_000 + b" 8 255\n"),
        (
            "plain.ppm",
            "100 million pixels in plain text, of which three are there.",
            b"P3 10000 10000 255\n1 2 3",
        ),
        (
            "nan.ppm",
            "Floats, none of them a number.",
            b"Pf\n2 2\n-1.0\n" + struct.pack("<f", float("nan")) * 4,
        ),
        (
            "ghostscript.jpg",
            "PostScript, which some libraries hand to Ghostscript.",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(touch "
            + MARKER.encode()
            + b") (w) file\n",
        ),
        (
            "document.png",
            "PDF.",
            b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n",
        ),
        (
            "drawing.png",
            "SVG that wants a file of the system.",
            b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        ),
        ("script.jpg", "A shell script.", f"#!/bin/sh\ntouch {MARKER}\n".encode()),
        (
            "fits.jpg",
            "FITS, a format that Pillow reads and this package does not.",
            b"SIMPLE  =                    T" + b" " * 51,
        ),
    ]


# Weights


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(*shape: int, begin: int = 0, end: int = 4, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def metadata(**changes: object) -> bytes:
    """A safetensors file of one number. `changes` replace fields of splitattn's metadata."""
    preprocessing = {
        "size": 32,
        "crop_fraction": 0.875,
        "interpolation": "bicubic",
        "order": "resize-crop",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }
    own = {key: changes.pop(key) for key in list(changes) if key in preprocessing}
    fields = {
        "model": "resnest14",
        "classes": ["a"],
        "preprocessing": preprocessing | own,
        "recipe": {},
        "metrics": {},
    }
    text = json.dumps(fields | changes)
    return safetensors({"__metadata__": {"splitattn": text}, "fc.bias": tensor(1)}, bytes(4))


def raw_metadata(text: str) -> bytes:
    return safetensors({"__metadata__": {"splitattn": text}, "fc.bias": tensor(1)}, bytes(4))


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def number(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes((len(encoded),)) + encoded


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def pickled_tensor(
    *shape: int, stride: tuple[int, ...], count: int, offset: int = 0, storage: str = "0"
) -> bytes:
    """A tensor as torch pickles it: a view of `count` floats."""
    where = b"(" + word("storage") + b"ctorch\nFloatStorage\n" + word(storage) + word("cpu")
    persistent = where + number(count) + b"tQ"
    view = b"(" + persistent + number(offset) + numbers(*shape) + numbers(*stride)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + view + b"\x89ccollections\nOrderedDict\n)RtR"


def state(**values: bytes) -> bytes:
    items = b"".join(word(key) + value for key, value in values.items())
    return b"\x80\x02}(" + items + b"u."


def archive(records: dict[str, bytes], *, packed: bool = False) -> bytes:
    """A zip file with a fixed time stamp, so that the bytes are always the same."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in records.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            file.writestr(entry, content, compresslevel=9)
    return stream.getvalue()


def saved(data: bytes, *, storage: bytes = bytes(4), **records: bytes) -> bytes:
    """The pickle `data` in the zip format that torch.save writes today."""
    own = {"a/data.pkl": data, "a/byteorder": b"little", "a/data/0": storage, "a/version": b"3\n"}
    return archive(own | records)


def legacy(data: bytes) -> bytes:
    """The pickle `data` in the format that torch.save wrote before 1.6."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    head = (0x1950A86A20F9469CFC6C, 1001, system)
    return b"".join(pickle.dumps(part, 2) for part in head) + data + pickle.dumps(["0"], 2)


# A pickled pair whose items are both the same pair, and so on, 60 levels deep.
SHARED = b"K\x01\x85" + b"2\x86" * 60


def weights() -> list[tuple[str, str, bytes]]:
    one = tensor(1)
    runs = b"cos\nsystem\n(" + word(f"touch {MARKER}") + b"tR"
    number_of = pickled_tensor(1, stride=(1,), count=1)
    twice = b'{"a":%s,"a":%s}' % ((json.dumps(one).encode(),) * 2)
    return [
        ("header-2-63.safetensors", "A header of 2**63 bytes.", struct.pack("<Q", 2**63) + b"{"),
        ("header-large.safetensors", "A header of 100 GB.", struct.pack("<Q", 10**11) + b"{"),
        ("no-header.safetensors", "A header of length 0, followed by one.", bytes(8) + b"{}"),
        (
            "truncated.safetensors",
            "Breaks off in its numbers.",
            safetensors({"fc.bias": tensor(8, end=32)}, bytes(20)),
        ),
        (
            "overlap.safetensors",
            "Two tensors of the same bytes.",
            safetensors({"a": one, "b": one}, bytes(4)),
        ),
        (
            "hole.safetensors",
            "Bytes that belong to no tensor.",
            safetensors({"a": tensor(1, begin=4, end=8)}, bytes(8)),
        ),
        (
            "backwards.safetensors",
            "A tensor that ends before it begins.",
            safetensors({"a": tensor(1, begin=4, end=0)}, bytes(4)),
        ),
        ("twice.safetensors", "Two tensors of one name.", safetensors(twice, bytes(4))),
        (
            "overflow.safetensors",
            "A shape whose product is 0 in 64 bits.",
            safetensors({"a": tensor(2**32, 2**32, end=0)}),
        ),
        (
            "no-numbers.safetensors",
            "A classifier of 2**60 classes and no features.",
            safetensors({"fc.bias": tensor(2**60, 0, end=0), "fc.weight": tensor(2**60, 0, end=0)}),
        ),
        ("negative.safetensors", "A side of -1.", safetensors({"a": tensor(-1)}, bytes(4))),
        (
            "dtype.safetensors",
            "Numbers of an unknown kind.",
            safetensors({"a": tensor(1, dtype="F33")}, bytes(4)),
        ),
        (
            "deep.safetensors",
            "Lists in lists, a thousand deep.",
            safetensors(b'{"a":' + b"[" * 1000 + b"]" * 1000 + b"}"),
        ),
        (
            "latin.safetensors",
            "A name that is not UTF-8.",
            safetensors(b'{"\xff":' + json.dumps(one).encode() + b"}", bytes(4)),
        ),
        (
            "names.safetensors",
            "A name of several lines that paints the terminal red.",
            safetensors({"\x1b[31m\nlayer\r": one}, bytes(4)),
        ),
        (
            "long-name.safetensors",
            "A name of 4,000 letters.",
            safetensors({"x" * 4_000: one}, bytes(4)),
        ),
        (
            "metadata-number.safetensors",
            "Metadata that are a number.",
            safetensors({"__metadata__": {"splitattn": 1}, "a": one}, bytes(4)),
        ),
        (
            "metadata-nan.safetensors",
            "A mean that is not a number.",
            metadata(mean=[float("nan"), 0, 0]),
        ),
        ("metadata-infinite.safetensors", "An infinite mean.", metadata(mean=[float("inf"), 0, 0])),
        ("metadata-size.safetensors", "Images of 10**9 pixels squared.", metadata(size=10**9)),
        (
            "metadata-crop.safetensors",
            "Images enlarged by 10**300 before they are cropped.",
            metadata(crop_fraction=1e-300),
        ),
        (
            "metadata-crop-small.safetensors",
            "Images enlarged to 32 million pixels squared before they are cropped.",
            metadata(crop_fraction=1e-6),
        ),
        (
            "metadata-digits.safetensors",
            "A size of 5,000 digits.",
            raw_metadata(
                '{"model": "resnest14", "classes": [], "preprocessing": {"size": 1'
                + "0" * 5000
                + "}}"
            ),
        ),
        (
            "metadata-deep.safetensors",
            "Metadata in lists, a thousand deep.",
            raw_metadata('{"model": ' + "[" * 1000 + "]" * 1000 + "}"),
        ),
        (
            "metadata-model.safetensors",
            "A model whose name is several lines.",
            metadata(model="resnest14\n\x1b[2J"),
        ),
        (
            "metadata-path.safetensors",
            "A model whose name is a path.",
            metadata(model="../../etc/passwd"),
        ),
        ("metadata-classes.safetensors", "Classes that are numbers.", metadata(classes=[1, 2])),
        (
            "code.pth",
            "A pickle that runs a command, in the format of today.",
            saved(state(state_dict=runs)),
        ),
        (
            "code-legacy.pth",
            "The same in the format before torch 1.6.",
            legacy(state(state_dict=runs)),
        ),
        ("code.pkl", "The same as a pickle alone.", state(state_dict=runs)),
        ("code.safetensors", "The same with another ending.", saved(state(state_dict=runs))),
        (
            "hash.pth",
            "A key of 2**60 shared tuples, which takes 10**11 seconds to hash.",
            saved(b"\x80\x02}" + SHARED + b"K\x01s."),
        ),
        ("hash.pkl", "The same as a pickle alone.", b"\x80\x02}" + SHARED + b"K\x01s."),
        (
            "shared.pth",
            "The same as a value, in a checkpoint of a training.",
            saved(state(identity=SHARED, metadata=SHARED, state_dict=SHARED)),
        ),
        (
            "reserve.pkl",
            "An array of bytes that takes 2**50 bytes before it is read.",
            b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b".",
        ),
        (
            "nested.pth",
            "A nested tensor among the weights.",
            saved(
                state(
                    a=b"ctorch._utils\n_rebuild_nested_tensor\n("
                    + pickled_tensor(1, stride=(1,), count=1)
                    + b"NNNtR"
                )
            ),
        ),
        (
            "code-in-pickle.pth",
            "A pickle that evaluates an expression.",
            saved(b"\x80\x02cbuiltins\neval\n(" + word(f"open({MARKER!r}, 'w')") + b"tR."),
        ),
        (
            "persistent.pth",
            "A storage whose class is a function, `os.system`.",
            saved(state(a=number_of.replace(b"ctorch\nFloatStorage", b"cos\nsystem"))),
        ),
        (
            "bomb.pth",
            "4 MB of weights packed into 4 KB.",
            archive(
                {
                    "a/data.pkl": state(a=number_of),
                    "a/data/0": bytes(4_000_000),
                    "a/version": b"3\n",
                },
                packed=True,
            ),
        ),
        (
            "stretched.pth",
            "A classifier of 2**40 classes, all of which are one number.",
            saved(
                state(
                    **{
                        "fc.bias": pickled_tensor(2**40, stride=(0,), count=1),
                        "fc.weight": pickled_tensor(2**40, 2048, stride=(0, 0), count=1),
                    }
                )
            ),
        ),
        (
            "outside.pth",
            "A tensor that goes on after its storage.",
            saved(state(a=pickled_tensor(10**6, stride=(1,), count=1))),
        ),
        (
            "before.pth",
            "A tensor that begins before its storage.",
            saved(state(a=pickled_tensor(1, stride=(1,), count=1, offset=-8))),
        ),
        (
            "count.pth",
            "A storage of 2**60 numbers, of which one is there.",
            saved(state(a=pickled_tensor(1, stride=(1,), count=2**60))),
        ),
        (
            "absolute.pth",
            "Records under an absolute path.",
            saved(
                state(a=pickled_tensor(1, stride=(1,), count=1, storage="/etc/passwd")),
                **{"/etc/passwd": bytes(4)},
            ),
        ),
        (
            "parent.pth",
            "Records whose paths lead out of the archive.",
            saved(
                state(a=pickled_tensor(1, stride=(1,), count=1, storage="../../x")),
                **{"a/data/../../x": bytes(4)},
            ),
        ),
        (
            "itself.pth",
            "A dictionary that holds itself.",
            saved(b"\x80\x02}q\0" + word("model") + b"h\0s."),
        ),
        ("deep.pth", "Lists in lists, 2,000 deep.", state(a=b"]" * 2_000 + b"a" * 1_999)),
        (
            "long.pth",
            "A text that says it has 2**32 - 1 bytes.",
            saved(b"\x80\x02X\xff\xff\xff\xff."),
        ),
        (
            "frame.pkl",
            "A frame that says it has 2**63 bytes.",
            b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"}.",
        ),
        ("no-records.pth", "A zip archive of nothing.", archive({})),
        ("truncated.pth", "Breaks off in its list of records.", saved(state(a=number_of))[:-40]),
    ]


# Recipes, data, exported networks


def recipes() -> list[tuple[str, str, bytes]]:
    return [
        ("deep.toml", "Lists in lists, 4,000 deep.", b"epochs = " + b"[" * 4_000),
        (
            "dotted.toml",
            "A table 2,000 deep where a number should be.",
            b"epochs" + b".a" * 2_000 + b" = 1",
        ),
        (
            "dotted-preset.toml",
            "The same where a name should be.",
            b"preset" + b".a" * 2_000 + b" = 1",
        ),
        (
            "dotted-long.toml",
            "A name of 6,000 parts, for which parsers take quadratic time.",
            b"a." * 6_000 + b"a = 1",
        ),
        ("digits.toml", "A number of 5,000 digits.", b"learning_rate = 1" + b"0" * 5_000),
        (
            "many-digits.toml",
            "A whole number too large for a float.",
            b"learning_rate = 1" + b"0" * 400,
        ),
        ("types.toml", "A list where a number should be.", b"epochs = [1, 2]"),
        ("table.toml", "A table where a number should be.", b"[epochs]\nvalue = 3"),
        ("date.toml", "A date where a number should be.", b"epochs = 2020-01-01"),
        ("nan.toml", "Not a number.", b"learning_rate = nan"),
        ("epochs.toml", "2**63 - 1 epochs.", b"epochs = 9223372036854775807"),
        ("size.toml", "Crops of 10**9 pixels squared.", b"train_size = 1000000000"),
        ("latin.toml", "Not UTF-8.", b"preset = '\xff\xfe'"),
        ("zeros.toml", "Zero bytes.", bytes(100)),
        (
            "yaml.toml",
            "YAML that would run a command.",
            f"!!python/object/apply:os.system ['touch {MARKER}']".encode(),
        ),
        ("key.toml", "A name of several lines.", b'"epochs\\n\\u001b[2J" = 1'),
        ("key-long.toml", "A name of 5,000 letters.", b"a" * 5_000 + b" = 1"),
        ("preset.toml", "A preset that is a list.", b'preset = ["plain"]'),
    ]


def thrift(**fields: tuple[int, bytes]) -> bytes:
    """A structure in Thrift's compact protocol. The argument `f1` is field number 1."""
    content, last = b"", 0
    for name, (kind, value) in fields.items():
        number = int(name[1:])
        content += bytes(((number - last) << 4 | kind,)) + value
        last = number
    return content + b"\0"


def i32(value: int) -> tuple[int, bytes]:
    return 5, varint(value << 1 if value >= 0 else (-value << 1) - 1)


def i64(value: int) -> tuple[int, bytes]:
    return 6, i32(value)[1]


def binary(content: bytes) -> tuple[int, bytes]:
    return 8, varint(len(content)) + content


def struct_of(content: bytes) -> tuple[int, bytes]:
    return 12, content


def list_of(kind: int, items: list[bytes]) -> tuple[int, bytes]:
    short = len(items) < 15
    head = bytes((len(items) << 4 | kind,)) if short else bytes((0xF0 | kind,)) + varint(len(items))
    return 9, head + b"".join(items)


INT64, DOUBLE, BYTE_ARRAY = 2, 5, 6
UTF8 = 0  # marks a byte array as text
HUGGINGFACE = b'{"info": {"features": {"label": {"names": %s}}}}'


def parquet(
    images: list[bytes] | tuple[bytes, int],
    labels: bytes | None = None,
    *,
    names: bytes = b'["goldfish", "bullfrog"]',
    label_kind: int = INT64,
    text: bool = False,
    unpacked: int | None = None,
    declared: int | None = None,
    values: dict[bytes, int] | None = None,
) -> bytes:
    """A shard in the Hugging Face image layout.

    Args:
        images: one value per row, or one value and the number of rows that share it.
        labels: encoded as numbers of 8 bytes each.
        text: mark the image bytes as text.
        unpacked: unpacked size in bytes that the header of the image page states.
        declared: unpacked size in bytes that the footer states for the images.
        values: number of values that the footer states, by column name.
    """
    content = b"PAR1"

    def page(kind: int, body: bytes, size: int | None, **more: tuple[int, bytes]) -> bytes:
        sizes = {"f2": i32(len(body) if size is None else size), "f3": i32(len(body))}
        return thrift(f1=i32(kind), **sizes, **more) + body

    def data_page(body: bytes, rows: int, encoding: int, size: int | None = None) -> bytes:
        levels = {"f3": i32(3), "f4": i32(3)}
        return page(0, body, size, f5=struct_of(thrift(f1=i32(rows), f2=i32(encoding), **levels)))

    def column(kind: int, path: list[bytes], rows: int, pages: list[bytes], codec: int) -> bytes:
        nonlocal content
        start, repeated = len(content), len(pages) > 1
        content += b"".join(pages)
        size = len(content) - start
        where = {"f9": i64(start + len(pages[0]) if repeated else start)}
        if repeated:
            where["f11"] = i64(start)
        stated = size if declared is None or path[-1] != b"bytes" else declared
        meta = thrift(
            f1=i32(kind),
            f2=list_of(5, [i32(8)[1] if repeated else i32(0)[1]]),
            f3=list_of(8, [binary(name)[1] for name in path]),
            f4=i32(codec),
            f5=i64((values or {}).get(path[-1], rows)),
            f6=i64(stated),
            f7=i64(size),
            **where,
        )
        return thrift(f2=i64(start), f3=struct_of(meta))

    def value(one: bytes) -> bytes:
        return struct.pack("<I", len(one)) + one

    if isinstance(images, tuple):
        one, rows = images
        run = b"\1" + varint(rows << 1) + b"\0"
        count = struct_of(thrift(f1=i32(1), f2=i32(0)))
        pages = [page(2, value(one), None, f7=count), data_page(run, rows, 8)]
        packed = False
    else:
        rows, packed = len(images), unpacked is not None
        body = b"".join(map(value, images))
        pages = [data_page(zlib.compress(body, 9, 31) if packed else body, rows, 0, unpacked)]
    labels = bytes(8 * rows) if labels is None else labels
    columns = [
        column(BYTE_ARRAY, [b"image", b"bytes"], rows, pages, 2 if packed else 0),
        column(label_kind, [b"label"], rows, [data_page(labels, rows, 0)], 0),
    ]
    converted = {"f6": i32(UTF8)} if text else {}
    schema = [
        thrift(f4=binary(b"schema"), f5=i32(2)),
        thrift(f3=i32(0), f4=binary(b"image"), f5=i32(1)),
        thrift(f1=i32(BYTE_ARRAY), f3=i32(0), f4=binary(b"bytes"), **converted),
        thrift(f1=i32(label_kind), f3=i32(0), f4=binary(b"label")),
    ]
    group = thrift(f1=list_of(12, columns), f2=i64(len(content)), f3=i64(rows))
    key = thrift(f1=binary(b"huggingface"), f2=binary(HUGGINGFACE % names))
    footer = thrift(
        f1=i32(1),
        f2=list_of(12, schema),
        f3=i64(rows),
        f4=list_of(12, [group]),
        f5=list_of(12, [key]),
    )
    return content + footer + struct.pack("<I", len(footer)) + b"PAR1"


def data() -> list[tuple[str, str, bytes]]:
    magic = b"PAR1"
    halves = struct.pack("<2d", 0.5, 1.5)
    noise = random.Random(0).randbytes(10_000)
    return [
        ("no-images.parquet", "Two values that are no images.", parquet([b"a", b"b"])),
        (
            "paths.parquet",
            "Images that are a path and an address.",
            parquet([b"/etc/passwd", b"http://127.0.0.1/"], text=True),
        ),
        (
            "float-labels.parquet",
            "Labels that are no whole numbers.",
            parquet([b"a", b"b"], halves, label_kind=DOUBLE),
        ),
        (
            "names-numbers.parquet",
            "Class names that are numbers.",
            parquet([b"a", b"b"], names=b"[0, 1]"),
        ),
        (
            "names-null.parquet",
            "Class names that are null.",
            parquet([b"a", b"b"], names=b"[null, null]"),
        ),
        (
            "names-lists.parquet",
            "Class names that are lists.",
            parquet([b"a", b"b"], names=b"[[0], [1]]"),
        ),
        ("names-number.parquet", "A number for class names.", parquet([b"a", b"b"], names=b"7")),
        (
            "names-same.parquet",
            "Two classes of one name.",
            parquet([b"a", b"b"], names=b'["a", "a"]'),
        ),
        (
            "names-deep.parquet",
            "Class names in lists, 9,000 deep.",
            parquet([b"a", b"b"], names=b"[" * 9_000 + b"]" * 9_000),
        ),
        ("dictionary.parquet", "Ten kilobytes that 600 rows repeat.", parquet((noise, 600))),
        ("rows.parquet", "A hundred million rows without an image.", parquet((b"", 1 << 26), b"")),
        (
            "zeros.parquet",
            "Zeros that unpack to 10 MB.",
            parquet([bytes(10_000_000)], unpacked=10_000_004),
        ),
        (
            "zeros-declared.parquet",
            "A page that says it unpacks to 2 GB, as the footer does.",
            parquet([bytes(1_000_000)], unpacked=2**31 - 1, declared=2**31 - 1),
        ),
        (
            "zeros-lie.parquet",
            "A page that says it unpacks to 2 GB, where the footer does not.",
            parquet([bytes(1_000_000)], unpacked=2**31 - 1),
        ),
        (
            "fewer-images.parquet",
            "A column with a negative number of images.",
            parquet([b"a", b"b"], values={b"bytes": -9}),
        ),
        (
            "fewer-labels.parquet",
            "One label for two images.",
            parquet([b"a", b"b"], values={b"label": 1}),
        ),
        ("empty.parquet", "No bytes at all.", b""),
        ("text.parquet", "Text.", b"not columns but prose\n"),
        ("magic.parquet", "Only the first and last bytes of a Parquet file.", magic + magic),
        (
            "footer-long.parquet",
            "A footer of 2**31 - 1 bytes.",
            magic + struct.pack("<I", 2**31 - 1) + magic,
        ),
        (
            "footer-deep.parquet",
            "A footer of structures in structures.",
            magic + b"\x1c" * 3_000 + struct.pack("<I", 3_000) + magic,
        ),
        (
            "footer-list.parquet",
            "A footer with a list of 2**31 - 1 columns.",
            magic + b"\x15\x02\x29\xfc\xff\xff\xff\xff\x07" + struct.pack("<I", 9) + magic,
        ),
        (
            "footer-zeros.parquet",
            "A footer of zeros.",
            magic + bytes(64) + struct.pack("<I", 64) + magic,
        ),
        (
            "code.parquet",
            "A pickle that runs a command.",
            state(image=b"cos\nsystem\n(" + word(f"touch {MARKER}") + b"tR"),
        ),
    ]


def field(tag: int, content: bytes | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(content, int):
        return varint(tag << 3) + varint(content)
    return varint(tag << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes((low | 0x80,)) + varint(rest) if rest else bytes((low,))


def onnx(location: str | None, *, elements: int = 4) -> bytes:
    """A graph whose output is a weight, stored in the file `location` if that is not None."""
    weight = field(1, elements) + field(2, 1) + field(8, b"w")
    if location is None:
        weight += field(9, bytes(16))
    else:
        weight += field(13, field(1, b"location") + field(2, location.encode())) + field(14, 1)
    kind = field(1, field(1, 1) + field(2, field(1, field(1, elements))))
    graph = (
        field(1, field(1, b"w") + field(2, b"logits") + field(4, b"Identity"))
        + field(2, b"g")
        + field(5, weight)
        + field(11, field(1, b"images") + field(2, kind))
        + field(12, field(1, b"logits") + field(2, kind))
    )
    return field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 20))


def xml(doctype: str, body: str) -> bytes:
    return f'<?xml version="1.0"?>\n{doctype}<net name="a" version="11">{body}</net>\n'.encode()


def exported() -> list[tuple[str, str, bytes]]:
    laughs = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    layer = '<layers><layer id="0" name="{}" type="{}" version="opset1">{}</layer></layers><edges/>'
    constant = '<data element_type="f32" shape="{}" offset="{}" size="{}"/>'
    return [
        ("text.onnx", "Text.", b"this is not a network\n"),
        ("zeros.onnx", "Zero bytes.", bytes(100)),
        ("passwd.onnx", "Weights that lie in a file of the system.", onnx("/etc/passwd")),
        (
            "parent.onnx",
            "Weights that lie above the network's folder.",
            onnx("../../../../../../etc/passwd"),
        ),
        (
            "device.onnx",
            "Weights that lie in a device without an end.",
            onnx("/dev/zero", elements=2**30),
        ),
        (
            "large.onnx",
            "A weight of 2**40 numbers, of which four are there.",
            onnx(None, elements=2**40),
        ),
        ("speechless.onnx", "A network that does not say what its outputs mean.", onnx(None)),
        (
            "laughs.xml",
            "Entities that unfold to 100 GB.",
            xml(f'<!DOCTYPE net [<!ENTITY a0 "ha">{laughs}]>', "&a11;"),
        ),
        (
            "laughs-net.xml",
            "The same after a beginning like a network's.",
            b'<?xml version="1.0"?><net name="a" version="11">'
            + xml(f'<!DOCTYPE net [<!ENTITY a0 "ha">{laughs}]>', "&a11;"),
        ),
        (
            "external.xml",
            "An entity that is a file of the system.",
            xml('<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "&x;"),
        ),
        ("deep.xml", "Elements in elements, 1,000 deep.", xml("", "<a>" * 1_000)),
        (
            "constant.xml",
            "A constant of 2**62 bytes.",
            xml("", layer.format("w", "Const", constant.format("4611686018427387904", 0, 2**62))),
        ),
        (
            "offset.xml",
            "A constant that lies before the weights.",
            xml("", layer.format("w", "Const", constant.format("4", -8, 16))),
        ),
        (
            "unknown.xml",
            "A layer of an unknown kind.",
            xml("", layer.format("w", "SystemCall", "")),
        ),
        ("empty.xml", "A network without layers.", xml("", "<layers/><edges/>")),
        (
            "code.pt2",
            "A pickle that runs a command.",
            saved(state(a=b"cos\nsystem\n(" + word(f"touch {MARKER}") + b"tR")),
        ),
    ]


def coco(**changes: object) -> bytes:
    """COCO's JSON of one 16 x 16 image with one object; `changes` replace fields of either."""
    row: dict[str, object] = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 8, 9]}
    image: dict[str, object] = {"id": 1, "file_name": "a.png", "width": 16, "height": 16}
    for key, value in changes.items():
        (image if key in image and key != "id" else row)[key] = value
    category = {"id": 1, "name": "a"}
    content = {"images": [image], "annotations": [row], "categories": [category]}
    return json.dumps(content).encode()


def voc(doctype: str, body: str) -> bytes:
    return f"{doctype}<annotation><filename>a.png</filename>{body}</annotation>".encode()


def annotations() -> list[tuple[str, str, bytes]]:
    """Annotations. The file's ending decides the format: COCO, VOC, YOLO, class names or a mask."""
    laughs = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    box = "<xmin>{}</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
    found = "<object><name>a</name><bndbox>" + box + "</bndbox></object>"
    aliases = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    depth = b"[" * 9_000
    runs = {"size": [2**19, 2**19], "counts": [0, 2**38]}
    return [
        ("empty.json", "Only two words of the format.", b'"annotations" "images"'),
        ("deep.json", "Lists in lists, 9,000 deep.", b'{"images": "annotations", "a": ' + depth),
        ("digits.json", "A number of 5,000 digits.", coco(image_id=1).replace(b"16", b"9" * 5_000)),
        ("nan.json", "A box of NaN and infinity.", coco(bbox=[float("nan"), 1, float("inf"), 2])),
        ("logical-id.json", "An image whose id is true.", coco(image_id=True, id=True)),
        ("null-byte.json", "A file name with a null byte.", coco(file_name="a\0.png")),
        ("passwd.json", "An image that is a file of the system.", coco(file_name="/etc/passwd")),
        ("device.json", "An image that is a device without an end.", coco(file_name="/dev/zero")),
        (
            "endless.json",
            "Run lengths of which one never ends.",
            coco(segmentation={"size": [16, 16], "counts": "o" * 9_000}),
        ),
        (
            "minus.json",
            "Run lengths below zero.",
            coco(segmentation={"size": [16, 16], "counts": [300, -44]}),
        ),
        (
            "runs.json",
            "Valid: run lengths of 2**38 pixels, of another size than their image.",
            coco(segmentation=runs),
        ),
        (
            "huge.json",
            "An image that says it has 2**38 pixels, and run lengths of as many.",
            coco(segmentation=runs, width=2**19, height=2**19),
        ),
        (
            "far.json",
            "Valid: a polygon that reaches 100 million pixels out of its image.",
            coco(segmentation=[[-1e8, -1e8, 1e8, -1e8, 1e8, 1e8, -1e8, 1e8]]),
        ),
        (
            "points.json",
            "Valid: a polygon of 1,500 points.",
            coco(segmentation=[[k % 17 for k in range(3_000)]]),
        ),
        (
            "laughs.xml",
            "Entities that unfold to 100 GB.",
            voc(f'<!DOCTYPE a [<!ENTITY a0 "ha">{laughs}]>', "&a11;"),
        ),
        (
            "external.xml",
            "An entity that is a file of the system.",
            voc('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "&x;"),
        ),
        ("deep.xml", "Elements in elements, 1,000 deep.", voc("", "<a>" * 1_000)),
        ("nan.xml", "A box that begins at NaN.", voc("", found.format("nan"))),
        ("far.xml", "A box that begins at 1e300.", voc("", found.format("1e300"))),
        (
            "outside.xml",
            "Valid: a box that begins outside its image.",
            voc("", found.format("-1e8")),
        ),
        ("nan.txt", "A box of NaN.", b"0 nan nan nan nan\n"),
        ("pixels.txt", "A box in pixels.", b"0 120 80 40 30\n"),
        ("class.txt", "A class of 20 digits.", b"99999999999999999999 0.5 0.5 0.1 0.1\n"),
        ("bytes.txt", "Bytes that are no text.", bytes(range(128, 256))),
        ("odd.txt", "A polygon that lacks a number.", b"0 0.1 0.1 0.5 0.1 0.5\n"),
        (
            "laughs.yaml",
            "Aliases of aliases that expand to 9**11 names.",
            f"a0: &a0 [a]\n{aliases}names: [*a11]\n".encode(),
        ),
        (
            "code.yaml",
            "A name that runs a command.",
            f"names: !!python/object/apply:os.system ['touch {MARKER}']\n".encode(),
        ),
        ("deep.yaml", "Lists in lists, 9,000 deep.", b"names: " + depth),
        ("bomb.png", "A mask of 4 billion pixels in a few bytes.", png(65_000, 65_000, color=0)),
        (
            "number.png",
            "A mask of a class that is not named.",
            png(16, 16, (b"\0" + b"\xc8" * 16) * 16, color=0),
        ),
        (
            "deep.png",
            "Valid: a mask of 16 bits, all of them 0.",
            png(16, 16, (b"\0" + bytes(32)) * 16, depth=16, color=0),
        ),
        ("colors.png", "A mask in colors.", png(16, 16, (b"\0" + bytes(48)) * 16)),
    ]


KINDS = {
    "images": images,
    "weights": weights,
    "recipes": recipes,
    "data": data,
    "exported": exported,
    "annotations": annotations,
}


def attacks() -> list[Attack]:
    return [
        Attack(path=f"{kind}/{name}", what=what, content=content)
        for kind, make in KINDS.items()
        for name, what, content in make()
    ]


def readme() -> str:
    """README.md, with a table for each kind."""
    lines = [
        "# Hostile files",
        "",
        "Files that try to make a reader crash, hang, run code, read other files or use all",
        "memory. Files marked Valid are only unusual and must be read. `make.py` writes all of",
        "them and this page. `test_attacks.py` gives each to its reader and to the command line,",
        "which must answer with one line of error or a result, within two minutes and half a",
        "gigabyte. `tests/fuzz` uses those under `images`, `weights`, `recipes` and `data` as",
        "seeds, together with valid files.",
    ]
    for kind in KINDS:
        lines += ["", f"## {kind}", "", "| file | what it is | bytes |", "|---|---|---:|"]
        lines += [
            f"| `{Path(attack.path).name}` | {attack.what} | {len(attack.content):,} |"
            for attack in attacks()
            if attack.path.startswith(f"{kind}/")
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    for attack in attacks():
        path = FOLDER / attack.path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(attack.content)
    README.write_text(readme(), encoding="utf-8")
    sys.stdout.write(f"{len(attacks())} files\n")


if __name__ == "__main__":
    main()
