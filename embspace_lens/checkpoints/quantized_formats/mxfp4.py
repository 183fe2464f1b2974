"""Stacks of experts in MXFP4 (gpt-oss): 4-bit floating point, with a power of 2 as the scale of each 32 values."""

from typing import Any

import torch
from jaxtyping import BFloat16, UInt8
from torch import Tensor

from ..lazy_tensor import Entrywise, LazyTensor
from .parts import Tensors, check_shape, part_of

NAME = "MXFP4"
BLOCKS, SCALES = "_blocks", "_scales"
BLOCK_BYTES = 16
VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
"""The values of the 4-bit codes of the format E2M1."""

EXPONENT_BIAS = 127
"""A scale of one byte b is 2^(b − 127)."""


def name_of(settings: dict[str, Any]) -> str:
    """The format in words."""
    return NAME


def decoded_tensors(checkpoint: Tensors, settings: dict[str, Any]) -> dict[str, LazyTensor]:
    """The tensors of the unquantised checkpoint. A weight has dtype bfloat16, which holds each value without rounding.

    A stack is decoded one expert at a time. Its weights are transposed, as in transformers.

    Args:
        checkpoint: The tensors as stored.
        settings: The `quantization_config` of the configuration.

    Raises:
        EmbspaceError: If a weight has no scales, or its scales do not fit its shape.
    """
    weights = {name.removesuffix(BLOCKS): name for name, x in checkpoint.items() if _is_packed(name, x)}
    used = {weight + suffix for weight in weights for suffix in (BLOCKS, SCALES)}
    tensors = {name: tensor for name, tensor in checkpoint.items() if name not in used}
    for weight, name in weights.items():
        blocks, scales = checkpoint[name], part_of(checkpoint, weight + SCALES, weight, NAME)
        check_shape(name, blocks, (*blocks.shape[:-1], BLOCK_BYTES), weight, NAME)
        check_shape(weight + SCALES, scales, tuple(blocks.shape[:-1]), weight, NAME)
        n_experts, n_rows, n_groups, _ = blocks.shape
        like = torch.empty(n_experts, n_groups * BLOCK_BYTES * 2, n_rows, dtype=torch.bfloat16, device="meta")
        tensors[weight] = LazyTensor(Entrywise(unpacked, (blocks, scales)), like)
    return tensors


def unpacked(
    blocks: UInt8[Tensor, "*experts n_rows n_groups n_bytes"], scales: UInt8[Tensor, "*experts n_rows n_groups"]
) -> BFloat16[Tensor, "*experts n_columns n_rows"]:
    """The weights, transposed: two values of each byte, the one of the lower four bits first, times the scale of their group."""
    values = torch.tensor(VALUES, dtype=torch.bfloat16, device=blocks.device)
    codes = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)
    rows = torch.ldexp(values[codes.int()], scales.int().unsqueeze(-1) - EXPONENT_BIAS).flatten(-2)
    return rows.transpose(-1, -2).contiguous()


def _is_packed(name: str, tensor: LazyTensor) -> bool:
    return name.endswith(BLOCKS) and tensor.dtype == torch.uint8 and tensor.ndim == 4
