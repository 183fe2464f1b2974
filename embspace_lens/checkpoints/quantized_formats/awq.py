"""Weights in AWQ: 4-bit integers with a scale and a zero point for each group of inputs."""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from ... import errors
from ..lazy_tensor import LazyTensor
from .parts import Tensors, check_shape, decoded, part_of

N_BITS = 4
PER_WORD = 8
"""How many values a word of 32 bits holds."""

ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""In which four bits of its word, counted from the lowest, each of eight values lies."""


def name_of(settings: dict[str, Any]) -> str:
    """The format in words."""
    return f"AWQ int{settings.get('bits', N_BITS)} in groups of {settings.get('group_size', 128)}"


def decoded_tensors(checkpoint: Tensors, settings: dict[str, Any]) -> dict[str, LazyTensor]:
    """The tensors of the unquantised checkpoint. A weight has the dtype of its scales, in which it is multiplied by them.

    Args:
        checkpoint: The tensors as stored.
        settings: The `quantization_config` of the configuration.

    Raises:
        EmbspaceError: If the format is not read, a weight has no scales, or its parts do not fit each other.
    """
    format_name = name_of(settings)
    version = str(settings.get("version", "gemm")).lower()
    if version != "gemm" or settings.get("bits", N_BITS) != N_BITS:
        raise errors.unread_quantization_setting(format_name, f"{settings.get('bits')} bits in the layout {version}")
    modules = [name.removesuffix(".qweight") for name in checkpoint if name.endswith(".qweight")]
    used = {f"{module}.{part}" for module in modules for part in ("qweight", "qzeros", "scales")}
    tensors = {name: tensor for name, tensor in checkpoint.items() if name not in used}
    for module in modules:
        weight = f"{module}.weight"
        packed = checkpoint[f"{module}.qweight"]
        zeros, scales = (part_of(checkpoint, f"{module}.{part}", weight, format_name) for part in ("qzeros", "scales"))
        n_inputs, n_words = packed.shape
        size = settings.get("group_size", 128)
        size = size if size > 0 else n_inputs
        n_groups = math.ceil(n_inputs / size)
        check_shape(f"{module}.qzeros", zeros, (n_groups, n_words), weight, format_name)
        check_shape(f"{module}.scales", scales, (n_groups, n_words * PER_WORD), weight, format_name)
        decode = partial(weight_of, size=size)
        tensors[weight] = decoded(decode, [packed, zeros, scales], (n_words * PER_WORD, n_inputs), scales.dtype)
    return tensors


def weight_of(
    packed: Int32[Tensor, "n_inputs n_words"],
    zeros: Int32[Tensor, "n_groups n_words"],
    scales: Float[Tensor, "n_groups n_outputs"],
    size: int,
) -> Float[Tensor, "n_outputs n_inputs"]:
    """The weight: W[o, i] = (q[i, o] − z[g, o]) · s[g, o], where g = ⌊i / size⌋ is the group of input i."""
    group = torch.arange(len(packed)) // size
    differences = unpacked(packed).to(torch.int8) - unpacked(zeros).to(torch.int8)[group]
    return (differences.to(scales.dtype) * scales[group]).T.contiguous()


def unpacked(words: Int32[Tensor, "n_rows n_words"]) -> UInt8[Tensor, "n_rows n_values"]:
    """The 4-bit values of each word, in the order of the columns of the weight."""
    values = torch.stack([words >> (N_BITS * position) & 15 for position in ORDER], dim=-1)
    return values.to(torch.uint8).flatten(-2)
