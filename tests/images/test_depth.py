"""White in images of more than 8 bits, and unscaled numbers in images of fewer."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from splitattn.errors import ImageError
from splitattn.images import raster
from splitattn.images.decode import decode, decode_indices, decode_planes
from splitattn.images.raster import Raster
from splitattn.images.samples import sample_photographs
from tests.attacks.make import chunk


def png(values: np.ndarray, before: bytes = b"") -> bytes:
    """A PNG of 16 bits per channel, with 1 to 4 channels; `before` is put before the pixels."""
    height, width, channels = values.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def encoded(values: np.ndarray, format: str = "TIFF", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format, **options)
    return stream.getvalue()


def tiff(
    values: bytes, bits: int, channels: int = 1, planar: int = 1, *, white_is_zero: bool = False
) -> bytes:
    """A little-endian TIFF of one row of 8 pixels; `values` are its packed samples."""
    photometric = int(not white_is_zero) if channels == 1 else 2
    shorts = {256: 8, 257: 1, 259: 1, 262: photometric, 277: channels, 278: 1, 284: planar}
    table = 10 + 12 * 10 + 4
    strips = channels if planar == 2 else 1
    bits_at, offsets_at, counts_at = table, table + 2 * channels, table + 2 * channels + 4 * strips
    at = counts_at + 4 * strips
    lengths = [len(values) // strips] * strips
    entries = {tag: struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in shorts.items()}
    many = {258: (3, channels, bits_at, bits), 273: (4, strips, offsets_at, at)}
    many[279] = (4, strips, counts_at, lengths[0])
    for tag, (kind, count, where, value) in many.items():
        entries[tag] = struct.pack("<HHII", tag, kind, count, value if count == 1 else where)
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(entries))
        + b"".join(entry for _, entry in sorted(entries.items()))
        + bytes(4)
        + struct.pack(f"<{channels}H", *[bits] * channels)
        + struct.pack(f"<{strips}I", *(at + i * lengths[0] for i in range(strips)))
        + struct.pack(f"<{strips}I", *lengths)
        + values
    )


def ramp(white: float, dtype: type = np.uint16) -> np.ndarray:
    """64 columns from 0 to the value `white`."""
    return (np.linspace(0, 1, 64)[None].repeat(64, 0) * white).astype(dtype)


EXPECTED = np.linspace(0, 255, 64)[None].repeat(64, 0)


def assert_ramp(content: bytes | np.ndarray | Image.Image, tolerance: float = 1.5) -> None:
    decoded = np.asarray(decode(content), float)
    np.testing.assert_allclose(decoded, EXPECTED[..., None].repeat(3, 2), atol=tolerance)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_fewer_bits_in_16_are_as_bright_as_16(bits: int, channels: int) -> None:
    values = ramp(2**bits - 1)
    of_png = png(values[..., None].repeat(channels, 2))
    assert_ramp(of_png)
    if channels == 1:
        assert_ramp(encoded(values))
        assert_ramp(Image.fromarray(values))
        assert_ramp(values)
        assert_ramp(encoded(values.astype(np.int32)))


@pytest.mark.parametrize("white", [1.0, 255.0, 4095.0, 65535.0])
def test_floats_are_scaled_by_the_range_that_nearly_all_keep_to(white: float) -> None:
    assert_ramp(encoded(ramp(white, np.float32)), 0.5)
    overshot = ramp(white, np.float32)
    overshot[:, -3:] = white * 1.1
    overshot[:, :3] = -white * 0.02
    decoded = np.asarray(decode(encoded(overshot)))[..., 0]
    assert decoded[:, -3:].min() == 255
    assert decoded[:, :3].max() == 0
    np.testing.assert_allclose(decoded[:, 3:-3], EXPECTED[:, 3:-3], atol=0.5)


def test_a_floatmap_is_as_bright_as_other_floats() -> None:
    for white in (1.0, 255.0):
        values = ramp(white, np.float32)
        content = b"Pf\n64 64\n-1.0\n" + values[::-1].astype("<f4").tobytes()
        assert_ramp(content, 0.5)


@pytest.mark.parametrize("white", [4095, 2**15 - 1])
def test_signed_16_bits_count_as_at_most_fifteen_bits(white: int) -> None:
    tags = ImageFileDirectory_v2()
    tags[339] = 2
    content = encoded(ramp(white), tiffinfo=tags)
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.mode == "I"
    assert_ramp(content)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("white", [255, 1023, 4095])
def test_one_bright_pixel_changes_no_other(dtype: type, white: int) -> None:
    values = ramp(white, dtype)
    brighter = values.copy()
    brighter[7, 7] = 60_000
    plain, bright = (np.asarray(decode(encoded(one))) for one in (values, brighter))
    assert bright[7, 7].tolist() == [255] * 3
    bright = bright.copy()
    bright[7, 7] = plain[7, 7]
    np.testing.assert_array_equal(bright, plain)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_significant_bits_of_a_png_are_the_lower_or_the_upper_ones(bits: int) -> None:
    """PNG wants samples scaled to 16 bits, but cameras often store them unscaled."""
    said = chunk(b"sBIT", bytes([bits]))
    # The image is so dark that its pixels alone would suggest fewer bits.
    dark = (ramp(2**bits - 1) // 16)[..., None]
    plain = np.asarray(decode(png(dark, said)))
    np.testing.assert_allclose(plain[..., 0], dark[..., 0] * (255 / (2**bits - 1)), atol=0.5)
    for scaled in (
        dark << (16 - bits),
        dark << (16 - bits) | dark >> (2 * bits - 16),
        np.rint(dark * (65535 / (2**bits - 1))).astype(np.uint16),  # as netpbm's pnmtopng
    ):
        np.testing.assert_allclose(np.asarray(decode(png(scaled, said))), plain, atol=1)


def test_pixels_above_the_significant_bits_are_scaled() -> None:
    """Lower bits of a camera may hold noise, so that only the range tells."""
    plain = ramp(65535)[..., None]
    noisy = plain ^ np.random.default_rng(0).integers(0, 16, plain.shape, np.uint16)
    decoded = np.asarray(decode(png(noisy, chunk(b"sBIT", bytes([12])))))
    np.testing.assert_allclose(decoded[..., 0], noisy[..., 0] / 257, atol=0.6)
    dark = (noisy // 16) & 4095  # of twelve bits, and one pixel brighter
    dark[3, 3] = 60_000
    decoded = np.asarray(decode(png(dark, chunk(b"sBIT", bytes([12])))))[..., 0]
    np.testing.assert_allclose(decoded, (dark[..., 0] * (255 / 4095)).clip(max=255), atol=0.6)


@pytest.mark.parametrize(
    ("count", "value", "white"),
    [(4, 60_000, 4095), (5, 60_000, 65535), (100, 65535, 4095)],
    ids=["one in 1,000", "more", "saturated"],
)
def test_a_few_pixels_above_the_significant_bits_mean_nothing(
    count: int, value: int, white: int
) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (64, 64, 1), np.uint16)
    values.ravel()[:count] = value
    decoded = np.asarray(decode(png(values, chunk(b"sBIT", bytes([12])))))[..., 0]
    np.testing.assert_allclose(decoded, (values[..., 0] * (255 / white)).clip(max=255), atol=0.6)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_the_largest_value_that_a_tiff_states_gives_its_bits(bits: int) -> None:
    values = ramp(2**bits // 4)
    tags = ImageFileDirectory_v2()
    tags[281] = 2**bits - 1
    decoded = np.asarray(decode(encoded(values, tiffinfo=tags)))[..., 0]
    np.testing.assert_allclose(decoded, EXPECTED / 4, atol=0.6)


def test_the_brightest_value_that_a_tiff_states_is_not_white() -> None:
    values = ramp(3000)  # less than white in 12 bits
    tags = ImageFileDirectory_v2()
    tags[281] = 3000
    stated, unstated = (
        np.asarray(decode(encoded(values, tiffinfo=info)))
        for info in (tags, ImageFileDirectory_v2())
    )
    np.testing.assert_array_equal(stated, unstated)


def test_twelve_packed_bits_of_a_tiff_are_twelve_bits() -> None:
    values = [0, 100, 200, 300, 400, 500, 600, 700]  # values that ten bits could hold
    packed = int("".join(f"{value:012b}" for value in values), 2).to_bytes(12, "big")
    decoded = np.asarray(decode(tiff(packed, 12)))[0, :, 0]
    np.testing.assert_allclose(decoded, np.array(values) * 255 / 4095, atol=0.5)


@pytest.mark.parametrize("largest", [2**31 - 1, 2**32 - 1])
def test_unsigned_integers_of_32_bits_have_no_sign(largest: int) -> None:
    values = (np.linspace(0, 1, 8) * largest).astype(np.uint32)
    decoded = np.asarray(decode(tiff(values.tobytes(), 32)))[0, :, 0]
    np.testing.assert_allclose(decoded, np.linspace(0, 255, 8), atol=1)


@pytest.mark.parametrize("bits", [8, 16])
def test_zero_is_white_where_a_tiff_says_so(bits: int) -> None:
    fractions = np.arange(8) / 7
    values = (fractions * (2.0**bits - 1)).round().astype(f"<u{bits // 8}")
    for zero, expected in ((False, fractions), (True, 1 - fractions)):
        file = tiff(values.tobytes(), bits, white_is_zero=zero)
        np.testing.assert_allclose(decode_planes(file, 1)[0, 0], expected, atol=0.003)
        gray = np.asarray(decode(file))[0, :, 0]
        np.testing.assert_array_equal(gray, (expected * 255).round())


def test_channels_of_16_bits_that_lie_apart_are_refused() -> None:
    with pytest.raises(ImageError, match="store their channels together"):
        decode(tiff(bytes(48), 16, channels=3, planar=2))
    assert decode(tiff(bytes(48), 16, channels=3)).size == (8, 1)


def test_a_given_white_level_decides() -> None:
    said = chunk(b"sBIT", b"\x0c")
    for content in (png(ramp(1023)[..., None], said), encoded(ramp(1023)), ramp(1023)):
        decoded = np.asarray(decode(content, white_level=2046))[..., 0]
        np.testing.assert_allclose(decoded, EXPECTED / 2, atol=1)
    eight_bits = np.full((4, 4), 200, np.uint8)
    assert np.asarray(decode(eight_bits, white_level=1000)).max() == 200


def test_transparent_pixels_of_16_bits_are_blended_with_white() -> None:
    for color in ([0], [0, 0, 0]):
        pixel = np.array([*color, 16384])
        values = pixel[None, None].repeat(8, 0).repeat(8, 1)
        values[0] = 65535
        assert np.asarray(decode(png(values)))[4, 4].tolist() == [191] * 3


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("opaque", [4095, 65535])
def test_an_opaque_alpha_channel_does_not_affect_white(channels: int, opaque: int) -> None:
    values = np.repeat(ramp(4095)[..., None], channels, axis=2)
    values[..., -1] = opaque
    assert_ramp(png(values))


def test_gray_with_transparency_of_16_bits_has_two_channels() -> None:
    values = np.stack([ramp(65535), np.full_like(ramp(65535), 40000)], axis=-1)
    planes = decode_planes(png(values), 2)
    np.testing.assert_allclose(planes, values.transpose(2, 0, 1) / 65535, atol=1e-6)
    with pytest.raises(ImageError, match="takes images of 4 channels, got 2: save all channels"):
        decode_planes(png(values), 4)


def test_four_inks_become_gray_by_their_luma() -> None:
    inks = Image.new("RGB", (4, 4), (10, 200, 60)).convert("CMYK")
    stream = io.BytesIO()
    inks.save(stream, "TIFF")
    planes = decode_planes(stream.getvalue(), 1)
    expected = (0.299 * 10 + 0.587 * 200 + 0.114 * 60) / 255
    np.testing.assert_allclose(planes, np.full((1, 4, 4), expected), atol=0.01)
    assert decode_planes(stream.getvalue(), 4).shape == (4, 4, 4)


def test_gray_keeps_the_bits_that_its_file_has() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (50, 30)).astype(np.uint16)
    for content in (png(values[..., None]), encoded(values), values):
        planes = decode_planes(content, 1)
        assert planes.shape == (1, 50, 30)
        assert planes.dtype == np.float32
        np.testing.assert_allclose(planes[0] * 65535, values, atol=0.01)


HOUNSFIELD = np.linspace(-1000, 3000, 4096).reshape(64, 64)
REFUSED = "values from 0, got {} of the pixels negative: .* or set white_level"


@pytest.mark.parametrize(
    ("values", "share"),
    [
        # 25 % of the values are below zero, of which 1.5 % only slightly.
        (HOUNSFIELD.astype(np.float32), "23.5%"),
        (HOUNSFIELD.astype(np.int32), "23.5%"),
        (np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64), "49.0%"),
        (np.where(np.arange(4096) < 8, -9999, 300).astype(np.float32).reshape(64, 64), "0.2%"),
        (np.full((8, 8), -5, np.float32), "100.0%"),
    ],
    ids=["float", "integer", "around zero", "missing values", "all"],
)
def test_many_negative_values_are_refused(values: np.ndarray, share: str) -> None:
    with pytest.raises(ImageError, match=REFUSED.format(share)):
        decode(encoded(values))
    decoded = np.asarray(decode(encoded(values), white_level=3000))[..., 0]
    np.testing.assert_allclose(decoded, (values / 3000).clip(0, 1) * 255, atol=0.5)


def test_negative_values_are_refused_where_the_file_names_white() -> None:
    tags = ImageFileDirectory_v2()
    tags[281] = 4095
    with pytest.raises(ImageError, match=REFUSED.format("23.5%")):
        decode(encoded(HOUNSFIELD.astype(np.float32), tiffinfo=tags))


def test_one_channel_below_zero_is_seen() -> None:
    values = np.full((8, 8, 2), 200.0)
    values[..., 0] = -50
    planes = Raster(size=(8, 8), channels=2, samples=lambda _: values, white=None)
    with pytest.raises(ImageError, match=REFUSED.format("100.0%")):
        planes.planes(2)


@pytest.mark.parametrize("filter", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_negative_values_from_resizing_become_black(filter: Image.Resampling) -> None:
    for photograph in sample_photographs():
        whole = Image.open(photograph).convert("F")
        small = np.asarray(whole.resize((whole.width // 3, whole.height // 3), filter))
        decoded = np.asarray(decode(encoded(small)))[..., 0]
        np.testing.assert_allclose(decoded, small.clip(0, 255), atol=0.51)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("white_level", [None, 1.0])
def test_nan_and_infinity_are_refused(value: float, white_level: float | None) -> None:
    values = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    values[5, 5] = value
    with pytest.raises(ImageError, match="must have finite numbers, got NaN or infinity: write"):
        decode(encoded(values), white_level=white_level)


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_the_order_of_bytes_in_an_array_does_not_matter(dtype: str) -> None:
    values = np.linspace(0, 65535, 48).reshape(4, 4, 3)
    array = (values if dtype == "u2" else values / 65535).astype(dtype)
    little, big = (decode(array.astype(f"{order}{dtype}")) for order in "<>")
    assert little.tobytes() == big.tobytes()


@pytest.mark.parametrize(
    ("whites", "told"),
    [
        ((16383, 4095), [16383, 4095]),
        ((65535, 65535), []),  # what most files mean
        ((65535, 4095), [4095]),
        ((65535, 255), [255]),
        ((4095, 65535), [4095, 65535]),  # two scales in one data set
        ((1.0, 1.0), []),
        ((1.0, 255.0), [255]),
        ((255.0, 1.0), [255, 1]),
    ],
)
def test_guessed_white_levels_are_reported_once_each(
    whites: tuple[float, float],
    told: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(raster, "_seen_whites", set())
    for name in ("a.png", "b.png"):
        for white in whites:
            floats = isinstance(white, float)
            decode(encoded(ramp(white, np.float32)) if floats else ramp(white), name=name)
    said = [record.getMessage().partition("; set")[0] for record in caplog.records]
    assert said == [
        f"a.png does not state which value is white, its pixels suggest {white}" for white in told
    ]


def png_of_few_bits(depth: int, color: int, numbers: list[int]) -> bytes:
    """A PNG file of one row of `numbers`, each of `depth` bits."""
    bits = "".join(f"{number:0{depth}b}" for number in numbers)
    size = -(-len(bits) // 8)
    row = int(bits.ljust(8 * size, "0"), 2).to_bytes(size, "big")
    header = struct.pack(">IIBBBBB", len(numbers), 1, depth, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(3 * 2**depth))) if color == 3 else b""
    image = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + image + chunk(b"IEND", b"")


@pytest.mark.parametrize("color", [0, 3], ids=["gray", "palette"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_numbers_of_few_bits_are_not_scaled(depth: int, color: int, tmp_path: Path) -> None:
    numbers = [0, 1, 2**depth - 1, 0, 1]
    (tmp_path / "mask.png").write_bytes(png_of_few_bits(depth, color, numbers))
    assert decode_indices(tmp_path / "mask.png").tolist() == [numbers]
