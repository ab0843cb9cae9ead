"""Measures the peak rates of this machine: multiply-adds and copied bytes per second."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from splitattn.libraries import installed

_REPEATS = 15
# Rounds are apart, so that one busy moment of the machine does not hit every run.
_ROUNDS = 3

Product = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """The peak rates of this machine.

    Attributes:
        multiply_adds: per second, by precision, of the product of two large square matrices.
        copied_bytes: per second, read and written, of a copy far larger than any cache.
    """

    multiply_adds: dict[str, float]
    copied_bytes: float


def measure_peaks(
    device: torch.device, *, side: int = 2048, copied_floats: int = 64 * 2**20
) -> Peaks:
    """Measure this machine, with each library's own number of threads.

    A rate is that of the fastest run of whichever library is best at it: a network can be faster
    than one library's product of matrices, so one product is no upper limit.

    Args:
        side: of the square matrices that are multiplied.
        copied_floats: numbers of four bytes in the copied vector.
    """
    products = _torch_products(device, side)
    if device.type == "cpu":
        products["fp32"].append(_numpy_product(side))
        if installed("openvino"):
            for precision in ("fp32", "int8"):
                products[precision].append(_openvino_product(side, precision))
    source = torch.randn(copied_floats, device=device)
    target = torch.empty_like(source)
    return Peaks(
        multiply_adds={
            precision: side**3 / _seconds(ways, device) for precision, ways in products.items()
        },
        copied_bytes=2 * source.nbytes / _seconds([lambda: target.copy_(source)], device),
    )


def _torch_products(device: torch.device, side: int) -> dict[str, list[Product]]:
    a = torch.randn(side, side, device=device)
    integers = torch.randint(-128, 127, (side, side), dtype=torch.int8, device=device)
    products: dict[str, list[Product]] = {
        "fp32": [lambda: a @ a],
        "int8": [lambda: torch._int_mm(integers, integers)],
    }
    if device.type == "cuda":
        half, brain = a.half(), a.bfloat16()
        products |= {"fp16": [lambda: half @ half], "bf16": [lambda: brain @ brain]}
    return products


def _numpy_product(side: int) -> Product:
    a = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    return lambda: a @ a


def _openvino_product(side: int, precision: str) -> Product:
    """A 1x1 convolution with as many channels as pixels, which is a product of two matrices.

    In int8 its inputs are rounded to 256 steps by FakeQuantize nodes, as NNCF inserts them.
    """
    import openvino as ov

    from splitattn.engines.open_vino import OpenVinoEngine  # which imports OpenVINO silently

    operators = ov.opset13
    weights = np.random.default_rng(0).standard_normal((side, side, 1, 1), dtype=np.float32)
    images = operators.parameter([1, side, 1, side], np.float32)
    factors = [images, operators.constant(weights)]
    if precision == "int8":
        ends = [operators.constant(np.float32(end)) for end in (-1.28, 1.27)]
        factors = [operators.fake_quantize(x, *ends, *ends, 256) for x in factors]
    output = operators.convolution(*factors, [1, 1], [0, 0], [0, 0], [1, 1])
    engine = OpenVinoEngine(ov.Model([operators.result(output)], [images]))
    values = np.random.default_rng(1).standard_normal((1, side, 1, side), dtype=np.float32)
    return lambda: engine.logits(values)


def _seconds(ways: list[Product], device: torch.device) -> float:
    """The fastest of many runs of the fastest way."""
    times = []
    for _ in range(_ROUNDS):
        for way in ways:
            for _ in range(_REPEATS):
                begin = time.perf_counter()
                way()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - begin)
    return min(times)
