r"""Proven bounds on rounding errors, and the precision in which scores are first computed.

A product of two vectors of d entries that is computed in floating point differs from the exact one by at most
$\gamma_d |x||y|$, whatever the order of summation, with $\gamma_d = d u / (1 - d u)$ and u the unit roundoff.

References:
    Higham (2002), Accuracy and Stability of Numerical Algorithms, §3.1.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors

UNDERFLOW = 1e-36  # added to every error bound: products below this may underflow in float32 and bfloat16
_forced_screen_dtype: ContextVar[torch.dtype | None] = ContextVar("screen_dtype", default=None)


def check_finite(size: float) -> float:
    """Return the size, a norm or a sum of norms, after a check.

    Raises:
        EmbspaceError: If it is NaN or infinite, because a row holds NaN or infinity.
    """
    if not math.isfinite(size):
        raise errors.not_finite("the rows to rank")
    return size


def norm_bound(rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """An upper bound on the exact norm of each row: the computed norm plus its rounding and underflow."""
    d = rows.shape[1]
    return torch.linalg.vector_norm(rows, dim=1) * (1 + (d + 8) * 2**-23) + math.sqrt(d) * 2e-19


def rounding_factor(d: int, dtype: torch.dtype, device: torch.device) -> float:
    """The factor on |x||y| that bounds the error of a product of d entries, also if the device rounds its inputs first."""
    unit, inputs = (2**-53, 0.0) if dtype is torch.float64 else (2**-24, input_rounding(device))
    gamma = d * unit / (1 - d * unit) * (2 if inputs else 1)  # tensor cores truncate instead of rounding
    return ((1 + inputs) ** 2 * (1 + gamma) - 1) * 1.001


def input_rounding(device: torch.device) -> float:
    """The relative error of the inputs of float32 products, if the user allows TF32 or bfloat16 for them; 0 by default."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    mode = getattr(getattr(backend, "matmul", None), "fp32_precision", None)  # torch >= 2.9
    mode = mode or {"high": "tf32", "medium": "bf16"}.get(torch.get_float32_matmul_precision())
    return {"tf32": 2**-10, "bf16": 2**-8}.get(str(mode), 0.0)


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No gradients and no autocast, which would change precisions that the bounds assume."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def screen_dtype(device: torch.device) -> torch.dtype:
    """The precision of the first pass over float32 scores: bfloat16 if the device multiplies it much faster than float32."""
    return _forced_screen_dtype.get() or _fast_dtype(device)


@contextmanager
def screen_with(dtype: torch.dtype) -> Iterator[None]:
    """Set the precision of the first pass within a `with` block. Results do not depend on it."""
    token = _forced_screen_dtype.set(dtype)
    try:
        yield
    finally:
        _forced_screen_dtype.reset(token)


@cache
def _fast_dtype(device: torch.device) -> torch.dtype:
    has_capabilities = device.type == "cpu" and hasattr(torch.cpu, "get_capabilities")
    capabilities = torch.cpu.get_capabilities() if has_capabilities else {}
    is_fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if is_fast else torch.float32
