"""The number format of the forward pass."""

import torch

from splitattn.training.recipes import Precision

_FORMATS: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype for autocast, or None for float32.

    "auto" is bfloat16 where the hardware supports it; elsewhere PyTorch's emulation is slower than
    float32.
    """
    if precision == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else None
    return _FORMATS.get(precision)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # later than torch 2.11
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
