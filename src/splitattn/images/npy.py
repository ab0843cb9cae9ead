"""Arrays in NumPy's `.npy` format."""

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from splitattn.errors import ImageError

NPY = npy_format.MAGIC_PREFIX


def read_npy(content: bytes) -> NDArray[Any]:
    """The array in the bytes of an `.npy` file, without a copy.

    Raises:
        ImageError: the file is damaged, or its array holds objects, which could run code.
    """
    stream = io.BytesIO(content)
    try:
        version = npy_format.read_magic(stream)
        read = (
            npy_format.read_array_header_1_0
            if version == (1, 0)
            else npy_format.read_array_header_2_0
        )
        shape, fortran_order, dtype = read(stream)
        body = memoryview(content)[stream.tell() :]
    except Exception as error:  # the header is Python text, and its reader raises many kinds
        raise ImageError(f"the array is damaged: {' '.join(str(error).split())[:200]}") from error
    if dtype.hasobject or dtype.kind not in "uif":
        raise ImageError(f"an array must hold numbers, got {str(dtype)[:60]}")
    if math.prod(shape) * dtype.itemsize != len(body):
        raise ImageError(f"an array {shape} of {dtype} cannot have {len(body):,} bytes")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran_order else "C")
