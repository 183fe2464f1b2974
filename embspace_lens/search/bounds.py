"""Rows made on demand, and the arithmetic that the searches share: tiles, rounding bounds, equal rows.

Whatever the order of summation, `|fl(x·y) - x·y| <= gamma_d |x||y|` with gamma_d = d u / (1 - d u), u the unit roundoff
(Higham 2002, Accuracy and Stability of Numerical Algorithms, §3.1).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import EmbspaceError

UNDERFLOW = 1e-36  # no product in float32 or bfloat16 is trusted below this


def finite(size: float) -> float:
    """The size itself; NaN and infinity are refused."""
    if not math.isfinite(size):
        raise EmbspaceError("The rows hold NaN or infinity, so they cannot be ranked. Is the checkpoint damaged?")
    return size


def length_bound(tile: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """A bound on the length of each row: its norm, and what rounding and underflow of squares may have taken off."""
    d = tile.shape[1]
    return torch.linalg.vector_norm(tile, dim=1) * (1 + (d + 8) * 2**-23) + math.sqrt(d) * 2e-19


def rounding(d: int, dtype: torch.dtype, device: torch.device) -> float:
    """A factor on |x||y| that bounds the error of their product over d coordinates, fast modes included."""
    unit, inputs = (2**-53, 0.0) if dtype is torch.float64 else (2**-24, input_rounding(device))
    gamma = d * unit / (1 - d * unit) * (2 if inputs else 1)  # tensor cores truncate
    return ((1 + inputs) ** 2 * (1 + gamma) - 1) * 1.001


def input_rounding(device: torch.device) -> float:
    """What the float32 products of a device may first take from their inputs, as the user has set it."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    mode = getattr(getattr(backend, "matmul", None), "fp32_precision", None)  # torch >= 2.9
    mode = mode or {"high": "tf32", "medium": "bf16"}.get(torch.get_float32_matmul_precision())
    return {"tf32": 2**-10, "bf16": 2**-8}.get(str(mode), 0.0)


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No gradients, and no autocast behind the bounds' back."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@cache
def screen_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it several times as fast as float32."""
    able = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
