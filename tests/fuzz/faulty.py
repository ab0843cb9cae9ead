"""A fuzzing target with every kind of fault that the fuzzer must find."""

import os
import time
from pathlib import Path

from splitattn.errors import InputError
from tests.fuzz.target import Target

KINDS = (b"fine", b"refused", b"silent", b"exception", b"crash", b"hang", b"loop", b"memory")


def read(content: bytes, _: Path) -> None:
    match content:
        case b"refused":
            raise InputError("it must be fine, got refused")
        case b"silent":
            raise InputError("")
        case b"exception":
            raise KeyError("key")
        case b"crash":
            os.abort()
        case b"hang":
            time.sleep(3600)
        case b"loop":
            while True:
                pass
        case b"memory":
            assert len(bytearray(b"x") * 300_000_000) > len(content)


TARGETS = (
    Target(
        name="faulty",
        seeds=lambda: list(KINDS),
        read=read,
        make=lambda seeds, dice: dice.choice(seeds),
    ),
)
