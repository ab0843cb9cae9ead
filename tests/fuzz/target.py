"""The class of fuzzing targets."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutate import mutated


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader of something from outside.

    Attributes:
        name: of what it reads.
        seeds: what its inputs are made from, as bytes.
        read: reads an input, in a folder of its own.
        make: makes an input.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], None]
    make: Callable[[Sequence[bytes], random.Random], bytes] = mutated
