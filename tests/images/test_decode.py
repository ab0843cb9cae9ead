import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import IcoImagePlugin, Image, features

from splitattn.errors import ImageError, InputError
from splitattn.images.decode import decode, decode_reduced
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from tests.attacks.make import icon, jpeg, segment

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixel(image: Image.Image, x: int = 4, y: int = 4) -> tuple[int, ...]:
    return tuple(int(value) for value in np.asarray(image)[y, x])


def png_declaring(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 10) + b"IDAT" + bytes(14)


def bmp_declaring(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 154, 0, 0, 54) + info + bytes(100)


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(skimage.data.chelsea())


@pytest.mark.parametrize(
    "format", ["PNG", "BMP", "DIB", "TIFF", "PPM", "GIF", "WEBP", "JPEG2000", "AVIF"]
)
def test_every_common_format_is_read(format: str, photograph: Image.Image) -> None:
    if format in ("WEBP", "AVIF") and not features.check(format.lower()):
        pytest.skip(f"this Pillow has no {format}")
    decoded = decode(encoded(photograph, format))
    assert (decoded.mode, decoded.size) == ("RGB", photograph.size)
    difference = np.asarray(decoded, dtype=int) - np.asarray(photograph)
    assert np.abs(difference).mean() < 8


def test_path_string_bytes_array_and_pillow_image_give_the_same_pixels(
    tmp_path: Path, photograph: Image.Image
) -> None:
    path = tmp_path / "chelsea.png"
    photograph.save(path)
    array = np.asarray(photograph)
    for source in (path, str(path), path.read_bytes(), array, photograph, Image.open(path)):
        np.testing.assert_array_equal(np.asarray(decode(source)), array)


# How an upright picture is stored under each of the eight EXIF orientations.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    upright = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(stored, format, exif=exif))
    np.testing.assert_array_equal(np.asarray(decoded), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_picture(photograph: Image.Image) -> None:
    content = encoded(photograph, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert decode(content).size == photograph.size


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Image.new("L", (9, 9), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (9, 9), 1), "PNG", WHITE),
        (Image.new("LA", (9, 9), (10, 0)), "PNG", WHITE),
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "PNG", WHITE),
        (Image.new("RGBA", (9, 9), (255, 0, 0, 255)), "PNG", RED),
        (Image.new("RGBA", (9, 9), (0, 0, 0, 51)), "PNG", (204, 204, 204)),
        (Image.new("I;16", (9, 9), 0x8080), "PNG", (128, 128, 128)),
        (Image.new("I;16", (9, 9), 65535), "TIFF", WHITE),
        (Image.new("I", (9, 9), 2**31 - 1), "TIFF", WHITE),
        (Image.new("F", (9, 9), 0.2), "TIFF", (51, 51, 51)),
        (Image.new("F", (9, 9), 51.0), "TIFF", (51, 51, 51)),
        (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "TIFF", RED),
    ],
)
def test_every_pixel_format_becomes_rgb(
    image: Image.Image, format: str, expected: tuple[int, int, int]
) -> None:
    assert pixel(decode(encoded(image, format))) == expected


def test_adobe_cmyk_jpeg_is_not_inverted() -> None:
    content = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in content
    np.testing.assert_allclose(pixel(decode(content)), RED, atol=3)


def test_transparent_colors_of_a_palette_lie_on_white() -> None:
    image = Image.new("P", (9, 9), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    decoded = decode(encoded(image, "PNG", transparency=b"\x00\xff"))
    assert (pixel(decoded, 0, 0), pixel(decoded)) == (WHITE, RED)


def test_a_transparent_color_key_lies_on_white() -> None:
    image = Image.new("RGB", (9, 9), (1, 2, 3))
    assert pixel(decode(encoded(image, "PNG", transparency=(1, 2, 3)))) == WHITE


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert pixel(decode(content)) == RED


@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 1), (9, 9, 3), (9, 9, 4)])
def test_arrays_of_bytes_and_of_fractions_mean_the_same(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    channels = array.reshape(9, 9, -1)
    channels[:, :, 3:] = 255
    expected = np.broadcast_to(channels[:, :, :3], (9, 9, 3))
    for same in (array, array / 255, (array / 255).astype(np.float32), np.asfortranarray(array)):
        np.testing.assert_array_equal(np.asarray(decode(same)), expected)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 9, 9, 3), np.uint8),
        np.zeros((3, 9, 9), np.uint8),
        np.zeros((9, 9, 2), np.uint8),
        np.zeros((9, 9, 3), np.int16),
        np.zeros(9, np.uint8),
        np.zeros((0, 9), np.uint8),
        np.zeros((9, 9, 3), np.int64),
        np.full((9, 9, 3), 200.0),
        np.full((9, 9, 3), -0.1),
        np.full((9, 9, 3), np.nan),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"array|channels"):
        decode(array)


PNG = encoded(Image.new("RGB", (64, 64), "red"), "PNG")
JPEG = encoded(Image.fromarray(skimage.data.chelsea()), "JPEG")

HOSTILE = {
    "empty.jpg": b"",
    "text.jpg": b"this is not a photograph\n",
    "truncated.jpg": JPEG[: len(JPEG) // 2],
    "header-only.jpg": JPEG[:20],
    "truncated.png": PNG[: len(PNG) // 2],
    "gigantic.png": png_declaring(20_000, 20_000),
    "more-than-memory.png": png_declaring(2**31 - 1, 2**31 - 1),
    "no-pixels.png": png_declaring(0, 10),
    "gigantic.bmp": bmp_declaring(20_000, 20_000),
    "no-data.bmp": bmp_declaring(1_000, 1_000),
    "runs-ghostscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "line\nbreak\x1b[2J.jpg": b"text",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_file_is_reported_in_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ImageError) as raised:
        decode(path)
    message = str(raised.value)
    assert message.isprintable()
    assert ascii(name)[1:-1] in message


def test_a_pointer_of_git_lfs_is_named() -> None:
    with pytest.raises(ImageError, match="a pointer of Git LFS: get the image with git lfs pull"):
        decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")


@pytest.mark.parametrize("size", [(20_000, 20_000), (178_956_971, 1)])
def test_the_pixel_limit_is_checked_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"178,956,970 pixels, got {size[0]} x {size[1]}"):
        decode(png_declaring(*size))


def test_only_our_own_pixel_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(PNG).size == (64, 64)
    with pytest.raises(ImageError, match="4,095 pixels"):
        decode(PNG, limits=Limits(max_pixels=4095))


def test_the_byte_limit_holds_for_files_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(PNG)
    for source in (path, PNG):
        decode(source, limits=Limits(max_bytes=len(PNG)))
        with pytest.raises(ImageError, match="bytes"):
            decode(source, limits=Limits(max_bytes=len(PNG) - 1))


def test_limits_must_be_positive() -> None:
    with pytest.raises(InputError, match="max_pixels must be more than 0, got 0"):
        Limits(max_pixels=0)


@pytest.mark.timeout(10)
def test_sources_that_are_not_regular_files_are_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    for source, complaint in (
        (tmp_path, "folder"),
        (tmp_path / "missing.jpg", "no such file; check the path"),
        ("s3://bucket/a.jpg", "no such file; splitattn bulk reads buckets"),
        ("file:///photos/a.jpg", "no such file; only http and https addresses can be read"),
        (tmp_path / ("x" * 5000), "cannot be read"),
        ("nul\0.jpg", "not a path"),
        (pipe, "pipe or device"),
        (7, "got int"),
    ):
        with pytest.raises(ImageError, match=complaint):
            decode(source)


@contextmanager
def not_as_root() -> Iterator[None]:
    """Run the block without root's permissions, which allow reading any file."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_without_read_permission_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(PNG)
    path.chmod(0)
    with not_as_root(), pytest.raises(ImageError, match="Permission denied"):
        decode(path)


def test_a_damaged_pillow_image_is_reported() -> None:
    image = Image.open(io.BytesIO(JPEG[: len(JPEG) // 2]))
    with pytest.raises(ImageError, match="damaged"):
        decode(image)


def test_a_pillow_image_is_left_as_it_was() -> None:
    image = Image.new("RGBA", (9, 9), (255, 0, 0, 0))
    image.getexif()[0x0112] = 6
    decode(image)
    assert (image.mode, image.getexif()[0x0112]) == ("RGBA", 6)


@pytest.mark.parametrize("scans", [1, 100, 101])
def test_a_jpeg_may_have_at_most_a_hundred_scans(scans: int) -> None:
    content = jpeg(64, 64, progressive=True, scans=scans)
    if scans <= 100:
        assert decode(content).size == (64, 64)
        return
    # The scans are also counted behind a thumbnail, fill bytes and markers without a length.
    thumbnail = segment(0xE1, jpeg(8, 8))
    first = content.index(b"\xff\xda") + 2
    for hidden in (
        content,
        content.replace(b"\xff\xc4", thumbnail + b"\xff\xc4", 1),
        content.replace(b"\xff\xc4", b"\xff\xff\xff\xc4", 1),
        content[:first] + content[first:].replace(b"\xff\xda", b"\xff\x01\xff\xda"),
    ):
        with pytest.raises(ImageError, match="at most 100 scans"):
            decode(hidden)


def test_scans_of_other_pictures_in_a_file_do_not_count() -> None:
    many = jpeg(64, 64, progressive=True, scans=400)
    assert decode(jpeg(64, 64) + many).size == (64, 64)
    assert decode(jpeg(64, 64, before=segment(0xE1, many))).size == (64, 64)


def test_a_jpeg_that_is_not_progressive_may_hide_scans_too() -> None:
    content = jpeg(64, 64, components=3)
    (one,) = (i for i in range(len(content)) if content[i : i + 2] == b"\xff\xda")
    of_one_component = segment(0xDA, b"\x01\x01\0\0\x3f\0") * 101
    with pytest.raises(ImageError, match="at most 100 scans"):
        decode(content[:one] + of_one_component + content[one:])


def test_an_icon_has_the_size_of_its_picture_and_not_of_its_header() -> None:
    content = icon(encoded(Image.new("RGB", (400, 300), "red"), "PNG"))
    assert decode(content).size == (400, 300)
    with pytest.raises(ImageError, match="1,000 pixels, got 400 x 300"):
        decode(content, limits=Limits(max_pixels=4_000))


def bitmap_icon(width: int, height: int) -> bytes:
    image = Image.new("RGBA", (width, height), "red")
    return encoded(image, "ICO", bitmap_format="bmp", sizes=[image.size])


def test_an_icons_picture_is_not_decoded_before_its_size_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = bitmap_icon(64, 48)
    assert decode(content, limits=Limits(max_pixels=4 * 64 * 48)).getpixel((0, 0)) == RED
    monkeypatch.setattr(IcoImagePlugin.IcoFile, "frame", None)
    with pytest.raises(ImageError, match="a ICO image may have 1 to 3,071 pixels, got 64 x 48"):
        decode(content, limits=Limits(max_pixels=4 * 3_071))


def test_an_icon_that_is_let_through_brings_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns if a picture and its mask together exceed Pillow's own limit of pixels."""
    assert DEFAULT_LIMITS.max_pixels == 2 * Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2 * 64 * 48)
    monkeypatch.setattr("splitattn.images.decode.DEFAULT_LIMITS", Limits(max_pixels=4 * 64 * 48))
    fits, warns = (bitmap_icon(64, height) for height in (48, 49))
    assert decode(fits).size == (64, 48)
    with pytest.raises(ImageError, match="a ICO image may have 1 to 3,072 pixels"):
        decode(warns)


@pytest.mark.parametrize(
    ("format", "share"), [("WEBP", 2), ("AVIF", 2), ("CMYK JPEG", 2), ("JPEG2000", 3)]
)
def test_formats_whose_decoders_take_more_memory_may_have_fewer_pixels(
    format: str, share: int
) -> None:
    if format in ("WEBP", "AVIF") and not features.check(format.lower()):
        pytest.skip(f"this Pillow has no {format}")
    mode = "CMYK" if format == "CMYK JPEG" else "RGB"
    content = encoded(Image.new(mode, (64, 64)), format.removeprefix("CMYK "))
    assert decode(content, limits=Limits(max_pixels=share * 64 * 64)).size == (64, 64)
    with pytest.raises(ImageError, match=f"a {format} image may have 1 to 4,095 pixels"):
        decode(content, limits=Limits(max_pixels=share * 4_095))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "I;16", "F"])
def test_tiles_leave_no_seams(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 70, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., :2].copy().view(np.uint16)[..., 0])
    else:
        image = Image.fromarray(values).convert("RGB" if mode == "P" else mode)
    if mode == "P":
        image = image.quantize(16)
        image.info["transparency"] = bytes(range(0, 256, 16))
    whole = decode(image)
    monkeypatch.setattr("splitattn.images.raster._TILE", 16)
    np.testing.assert_array_equal(np.asarray(decode(image)), np.asarray(whole))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_corrupted_bytes_give_an_image_or_an_image_error(format: str) -> None:
    rng = random.Random(0)
    intact = encoded(Image.fromarray(skimage.data.chelsea()).resize((32, 24)), format)
    limits = Limits(max_pixels=10**6)
    for _ in range(150):
        content = bytearray(intact)
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(min(len(content), 400))] = rng.randrange(256)
        with suppress(ImageError):
            assert decode(bytes(content), limits=limits).mode == "RGB"


@pytest.fixture(scope="module")
def large() -> Image.Image:
    """A photograph of 1600 x 1200 pixels, with noise so that each pixel has detail."""
    photograph = Image.fromarray(skimage.data.coffee()).resize((1600, 1200))
    noise = np.random.default_rng(0).normal(0, 8, (1200, 1600, 3))
    return Image.fromarray((np.asarray(photograph) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("least_side", "size"),
    [
        (1, (200, 150)),
        (150, (200, 150)),
        (151, (400, 300)),
        (300, (400, 300)),
        (600, (800, 600)),
        (601, (1600, 1200)),
        (5000, (1600, 1200)),
    ],
)
def test_a_jpeg_is_reduced_no_further_than_to_the_least_side(
    large: Image.Image, least_side: int, size: tuple[int, int]
) -> None:
    assert decode_reduced(encoded(large, "JPEG"), least_side).image.size == size


@pytest.mark.parametrize("size", [(800, 624), (1000, 500), (256, 256)])
def test_a_jpeg_of_less_than_half_a_megapixel_is_decoded_in_full(
    large: Image.Image, size: tuple[int, int]
) -> None:
    reduced = decode_reduced(encoded(large.resize(size), "JPEG"), 32)
    assert (reduced.scale == 1) == (size[0] * size[1] < 500_000)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (801, 603), (1599, 450), (333, 1111)])
@pytest.mark.parametrize("least_side", [1, 5, 30, 111, 225])
def test_sides_that_eight_does_not_divide_are_reduced_alike(
    large: Image.Image, size: tuple[int, int], least_side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitattn.images.decode._LARGE", 0)
    reduced = decode_reduced(encoded(large.resize(size), "JPEG"), least_side)
    scale = next((scale for scale in (8, 4, 2) if min(size) >= scale * least_side), 1)
    assert (reduced.whole, reduced.scale) == (size, scale)
    assert reduced.image.size == (-(-size[0] // scale), -(-size[1] // scale))
    assert min(reduced.image.size) >= min(least_side, *size)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_reduced_pixels_are_those_of_the_reduced_picture(
    large: Image.Image, mode: str, progressive: bool
) -> None:
    content = encoded(large.convert(mode), "JPEG", quality=95, progressive=progressive)
    reduced = decode_reduced(content, 300).image
    expected = decode(content).reduce(4)  # the mean of 4 x 4 pixels
    assert (reduced.mode, reduced.size) == ("RGB", (400, 300))
    difference = np.abs(np.asarray(reduced, dtype=int) - np.asarray(expected))
    assert difference.mean() < 1
    assert np.quantile(difference, 0.999) <= 8


@pytest.mark.parametrize("orientation", STORED)
def test_a_reduced_picture_is_upright_too(large: Image.Image, orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(large))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, "JPEG", quality=95, exif=exif)
    upright = decode_reduced(encoded(large, "JPEG", quality=95), 300).image
    reduced = decode_reduced(content, 300)
    assert (reduced.whole, reduced.scale) == ((1600, 1200), 4)
    assert reduced.image.size == (400, 300)
    difference = np.abs(np.asarray(reduced.image, dtype=int) - np.asarray(upright))
    assert difference.mean() < 1


def test_a_file_of_two_pictures_is_reduced_as_well(large: Image.Image) -> None:
    """Phones write such files: a preview follows the photograph."""
    content = encoded(large, "MPO", save_all=True, append_images=[large.reduce(4)])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    assert decode_reduced(content, 300).image.size == (400, 300)


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP"])
def test_other_formats_are_decoded_exactly(large: Image.Image, format: str) -> None:
    content = encoded(large.reduce(4), format)
    exact = np.asarray(decode(content))
    reduced = decode_reduced(content, 10)
    assert (reduced.whole, reduced.scale) == ((400, 300), 1)
    np.testing.assert_array_equal(np.asarray(reduced.image), exact)


def test_a_pillow_image_of_the_callers_is_not_reduced(large: Image.Image) -> None:
    opened = Image.open(io.BytesIO(encoded(large, "JPEG")))
    assert decode_reduced(opened, 10).image.size == opened.size == large.size


def test_limits_count_the_pixels_of_the_whole_picture(large: Image.Image) -> None:
    limits = Limits(max_pixels=1600 * 1200 - 1)
    with pytest.raises(ImageError, match="got 1600 x 1200"):
        decode_reduced(encoded(large, "JPEG"), 10, limits=limits)
    whole = Limits(max_pixels=1600 * 1200)
    assert decode_reduced(encoded(large, "JPEG"), 10, limits=whole).image.size == (200, 150)
    with pytest.raises(ImageError, match="a CMYK JPEG image may have 1 to 960,000 pixels"):
        decode_reduced(encoded(large.convert("CMYK"), "JPEG"), 10, limits=whole)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_damaged_jpeg_is_refused_when_reduced_as_well(
    large: Image.Image, progressive: bool
) -> None:
    content = encoded(large, "JPEG", progressive=progressive)
    with pytest.raises(ImageError, match="damaged"):
        decode_reduced(content[: len(content) // 2], 10)


def test_an_upright_picture_is_decoded_into_a_copy(photograph: Image.Image) -> None:
    decoded = decode(photograph)
    decoded.putpixel((0, 0), RED)
    assert photograph.getpixel((0, 0)) != RED


@pytest.mark.parametrize(
    ("brand", "kind", "package"),
    [(b"heic", "HEIF", "pillow-heif"), (b"heix", "HEIF", "pillow-heif")],
)
def test_a_format_of_another_package_is_named_with_it(
    monkeypatch: pytest.MonkeyPatch, brand: bytes, kind: str, package: str
) -> None:
    monkeypatch.setattr("splitattn.images.decode.installed", lambda _: False)
    with pytest.raises(ImageError, match=f"{kind} images need {package}: pip install {package}$"):
        decode(b"\0\0\0\x18ftyp" + brand + bytes(99))


def test_avif_is_named_with_its_package_where_pillow_cannot_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    monkeypatch.setattr("splitattn.images.decode.installed", lambda _: False)
    with pytest.raises(ImageError, match=r"pip install pillow-avif-plugin$"):
        decode(b"\0\0\0\x18ftypavif" + bytes(99))


def test_three_bytes_are_no_image() -> None:
    with pytest.raises(ImageError, match="expected an image"):
        decode(b"abc")


@pytest.mark.parametrize(
    ("magic", "maxval"),
    [("P5", 15), ("P5", 100), ("P5", 1023), ("P5", 4095), ("P6", 100), ("P6", 4095), ("P6", 65535)],
)
def test_portable_maps_are_scaled_by_their_maxval(magic: str, maxval: int) -> None:
    """Pillow reads them pixel by pixel, more often than a file may be read; the values are its."""
    shape = (256, 256) if magic == "P5" else (256, 256, 3)
    # Larger values than maxval, which a file should not have, are white too.
    end = min(maxval + 20, 65536 if maxval > 255 else 256)
    stored = np.random.default_rng(0).integers(0, end, shape)
    pixels = stored.astype(">u2" if maxval > 255 else np.uint8).tobytes()
    content = f"{magic} 256 256 {maxval}\n".encode() + pixels
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image)
    if expected.dtype != np.uint8:  # gray of more than 8 bits
        expected = np.rint(expected / 65535 * 255)
    decoded = np.asarray(decode(content))
    np.testing.assert_array_equal(
        decoded, np.broadcast_to(expected.reshape(256, 256, -1), decoded.shape)
    )
    with pytest.raises(ImageError, match="damaged"):
        decode(content[:-1])
