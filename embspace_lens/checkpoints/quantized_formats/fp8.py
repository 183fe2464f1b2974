"""Weights in 8-bit floating point with a scale per block, row, column or tensor (DeepSeek V3, Qwen 3, FBGEMM, MXFP8)."""

import math
import re
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ... import errors
from ..lazy_tensor import Entrywise, LazyTensor, Operation
from .parts import Tensors, check_shape

FLOAT8 = {torch.float8_e4m3fn, torch.float8_e5m2}
MXFP8_BLOCK = [1, 32]
FBGEMM = "fbgemm_fp8"

SCALES = ("{name}_scale_inv", "{name}_scale", "{module}.scale", "{module}.qscale_weight")
"""Names under which checkpoints store the scale of a weight."""

ACTIVATIONS = re.compile(r"\.(activation_scale|input_scale|input_scale_ub|qscale_act|self_attn\.[kv]_scale)$")
"""Names of the scales of activations, which no weight needs."""


def name_of(settings: dict[str, Any]) -> str:
    """The format in words."""
    block = settings.get("weight_block_size")
    if settings["quant_method"] == "mxfp8":
        return "MXFP8"
    if block:
        return f"FP8 in blocks of {block[0]} × {block[1]}"
    return "FP8 per row" if settings["quant_method"] == FBGEMM else "FP8 per tensor"


def decoded_tensors(checkpoint: Tensors, settings: dict[str, Any]) -> dict[str, LazyTensor]:
    """The tensors of the unquantised checkpoint. A weight has dtype float32, in which it is multiplied by its scale.

    A stack of weights with a stack of scales is decoded one entry at a time.

    Args:
        checkpoint: The tensors as stored.
        settings: The `quantization_config` of the configuration.

    Raises:
        EmbspaceError: If a weight has no scale, or its scale does not fit its shape.
    """
    format_name = name_of(settings)
    block = settings.get("weight_block_size") or (MXFP8_BLOCK if settings["quant_method"] == "mxfp8" else None)
    scale_names = {name: _scale_name(checkpoint, name, settings) for name, x in checkpoint.items() if x.dtype in FLOAT8}
    used = set(scale_names.values())
    tensors = {}
    for name, tensor in checkpoint.items():
        if name in scale_names:
            scale = checkpoint[scale_names[name]]
            _check_scale(scale_names[name], scale, name, tensor, block, format_name)
            stacked = tensor.ndim == scale.ndim == 3 and len(tensor) == len(scale)
            decode = partial(multiplied, block=block)
            source = (Entrywise if stacked else Operation)(decode, (tensor, scale))
            tensors[name] = LazyTensor(source, torch.empty(tensor.shape, dtype=torch.float32, device="meta"))
        elif name not in used and not ACTIVATIONS.search(name):
            tensors[name] = tensor
    return tensors


def multiplied(weight: Tensor, scale: Tensor, block: list[int] | None) -> Tensor:
    """A weight times its scale: w̃[i, j] = w[i, j] · s[⌊i / r⌋, ⌊j / c⌋] for blocks of r × c.

    Args:
        weight: The 8-bit values.
        scale: The scale of each block, or one that broadcasts to the weight; bytes of the format E8M0 stand for powers of 2.
        block: The numbers of rows and columns of a block; the last ones may be cut. None if the scale broadcasts.

    Returns:
        The weight in float32.
    """
    result = weight.to(torch.float32)
    if scale.dtype == torch.uint8:
        scale = scale.view(torch.float8_e8m0fnu)
    scale = scale.to(torch.float32)
    if block is None:
        return result.mul_(scale)
    n_rows, n_columns = block
    scale = scale.repeat_interleave(n_columns, dim=-1)[..., : weight.shape[-1]]
    for i in range(scale.shape[-2]):  # one row of blocks at a time: no scale of each single value is kept
        result[..., i * n_rows : (i + 1) * n_rows, :] *= scale[..., i : i + 1, :]
    return result


def _scale_name(checkpoint: Tensors, name: str, settings: dict[str, Any]) -> str:
    names = [pattern.format(name=name, module=name.removesuffix(".weight")) for pattern in SCALES]
    for scale_name in names:
        if scale_name in checkpoint:
            return scale_name
    raise errors.missing_part_of_weight(name, names[settings["quant_method"] == FBGEMM], name_of(settings))


def _check_scale(
    name: str, scale: LazyTensor, weight_name: str, weight: LazyTensor, block: list[int] | None, format_name: str
) -> None:
    if block is not None:
        blocks = tuple(math.ceil(n / size) for n, size in zip(weight.shape[-2:], block))
        check_shape(name, scale, (*weight.shape[:-2], *blocks), weight_name, format_name)
    elif scale.numel() != 1:
        broadcasts = scale.ndim == weight.ndim and all(n in (1, size) for n, size in zip(scale.shape, weight.shape))
        per_row = (*weight.shape[:-1], 1)
        check_shape(name, scale, tuple(scale.shape) if broadcasts else per_row, weight_name, format_name)
