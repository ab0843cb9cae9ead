"""Seeded damage to files: flipped bits, cuts, copies, splices and numbers that overflow."""

import random
import struct
from collections.abc import Callable, Sequence

LONGEST = 64 * 1024

_NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
_NUMBERS_64 = (2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (b"-1", b"0", b"1e999", b"NaN", b"null", b"[[[[", b"}}", b'"', b"\n", b"\x1b[2J", b"\xff")
_DIGITS = b"0123456789"


def mutated(seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """One of `seeds`, damaged one to four times."""
    content = bytearray(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4))):
        dice.choice(_DAMAGES)(content, seeds, dice)
    return bytes(content[:LONGEST])


def _place(content: bytearray, dice: random.Random) -> int:
    # Headers and indices, which decide what a parser does, are near the beginning or the end.
    size = len(content)
    near = min(size, 200)
    return dice.choice(
        (dice.randrange(size), dice.randrange(near), size - 1 - dice.randrange(near))
    )


def _span(content: bytearray, dice: random.Random) -> slice:
    begin = _place(content, dice)
    return slice(begin, begin + dice.choice((1, 4, 12, 64, 400, len(content))))


def _flip(content: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 2, 8)) if content else 0):
        content[_place(content, dice)] ^= 1 << dice.randrange(8)


def _replace(content: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 4, 16)) if content else 0):
        content[_place(content, dice)] = dice.randrange(256)


def _cut_end(content: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    if content:
        del content[_place(content, dice) :]


def _remove(content: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    if content:
        del content[_span(content, dice)]


def _repeat(content: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    if content:
        span = _span(content, dice)
        content[span.start : span.start] = content[span] * dice.choice((1, 2, 100))


def _splice(content: bytearray, seeds: Sequence[bytes], dice: random.Random) -> None:
    other = bytearray(dice.choice(seeds))
    if content and other:
        content[_place(content, dice) :] = other[_place(other, dice) :]


def _insert(content: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    where = _place(content, dice) if content else 0
    content[where:where] = dice.choice(_TEXTS) * dice.choice((1, 1, 3, 2_000))


def _number(content: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    if len(content) < 8:
        return
    where = min(_place(content, dice), len(content) - 8)
    order = dice.choice("<>")
    kind = dice.choice("BHIQ")
    value = dice.choice(_NUMBERS + _NUMBERS_64) % 2 ** (8 * struct.calcsize(kind))
    struct.pack_into(order + kind, content, where, value)


def _digits(content: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    """Replace one decimal digit by a number, which may be very long."""
    places = [i for i, byte in enumerate(content) if byte in _DIGITS]
    if places:
        where = dice.choice(places)
        new = str(dice.choice(_NUMBERS + _NUMBERS_64)).encode()
        content[where : where + 1] = dice.choice((new, b"-" + new, new + b".5", b"9" * 500))


_DAMAGES: tuple[Callable[[bytearray, Sequence[bytes], random.Random], None], ...] = (
    _flip,
    _flip,
    _replace,
    _cut_end,
    _remove,
    _repeat,
    _splice,
    _insert,
    _number,
    _number,
    _digits,
)
