"""The class of fuzzing targets."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutate import mutated


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader of outside input, and its inputs.

    Attributes:
        name: the kind of input.
        seeds: returns valid and hostile inputs to start from.
        read: reads an input; its second argument is a folder for files.
        make: makes a damaged input of the seeds.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], None]
    make: Callable[[Sequence[bytes], random.Random], bytes] = mutated
