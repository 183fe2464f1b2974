"""Weights in the formats of bitsandbytes: NF4 and FP4 (QLoRA, arXiv 2305.14314), and int8 (LLM.int8(), arXiv 2208.07339).

The package is not used: its decoder for the CPU (0.50) gives wrong values if a row is not a whole number of blocks.
"""

import json
import math
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from ... import errors
from ..lazy_tensor import LazyTensor
from .parts import Tensors, check_shape, decoded, part_of

STATE = ".quant_state.bitsandbytes__"
PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format")
"""Endings of the names of the tensors that belong to a weight."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The precisions that the state of a 4-bit weight may name."""

ROW_FORMAT = 0
"""The value of `weight_format` for a matrix that is stored row by row."""


def name_of(settings: dict[str, Any]) -> str:
    """The format in words."""
    if settings.get("load_in_8bit"):
        return "bitsandbytes int8"
    nested = ", scales quantised too" if settings.get("bnb_4bit_use_double_quant") else ""
    return f"bitsandbytes {settings.get('bnb_4bit_quant_type', 'fp4').upper()}{nested}"


def decoded_tensors(checkpoint: Tensors, settings: dict[str, Any]) -> dict[str, LazyTensor]:
    """The tensors of the unquantised checkpoint. A 4-bit weight has the dtype that its state names; an int8 weight, float32.

    The shape of each 4-bit weight is read from its state, of about a hundred bytes.

    Args:
        checkpoint: The tensors as stored.
        settings: The `quantization_config` of the configuration.

    Raises:
        EmbspaceError: If a weight has no scales, or its parts do not fit each other.
    """
    format_name = name_of(settings)
    tensors = {name: tensor for name, tensor in checkpoint.items() if not _is_part(name)}
    if settings.get("load_in_8bit"):
        int8 = [name for name, tensor in tensors.items() if name.endswith(".weight") and tensor.dtype == torch.int8]
        return tensors | {name: _int8_weight(checkpoint, name, format_name) for name in int8}
    states = {name.split(STATE)[0]: name for name in checkpoint if STATE in name}
    packed = [
        name for name, x in tensors.items() if name in states or (name.endswith(".weight") and x.dtype == torch.uint8)
    ]
    return tensors | {name: _four_bit_weight(checkpoint, name, states.get(name), format_name) for name in packed}


def _four_bit_weight(checkpoint: Tensors, weight: str, state_name: str | None, format_name: str) -> LazyTensor:
    """A weight of 4 bits a value."""
    if state_name is None:
        raise errors.missing_part_of_weight(weight, f"{weight}{STATE}nf4", format_name)
    stored = checkpoint[weight]
    try:
        state = json.loads(bytes(checkpoint[state_name].read().tolist()))
        shape, dtype, size = tuple(map(int, state["shape"])), DTYPES[state["dtype"]], int(state["blocksize"])
        nested = (
            (int(state["nested_blocksize"]), float(state["nested_offset"])) if "nested_blocksize" in state else None
        )
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        raise errors.damaged_shard(state_name, f"it is not a quantization state ({type(reason).__name__})") from reason
    sizes = {"absmax": math.ceil(math.prod(shape) / size), "quant_map": 16}
    if nested is not None:
        sizes |= {"nested_absmax": math.ceil(sizes["absmax"] / nested[0]), "nested_quant_map": 256}
    parts = [part_of(checkpoint, f"{weight}.{part}", weight, format_name) for part in sizes]
    for part, tensor in zip(sizes, parts):
        check_shape(f"{weight}.{part}", tensor, (sizes[part],), weight, format_name)
    n_stored = math.ceil(math.prod(shape) / (2 * stored.dtype.itemsize))
    check_shape(weight, stored, (n_stored, *stored.shape[1:]), weight, format_name)

    def decode(packed: Tensor, absmax: Tensor, code_book: Tensor, *nested_parts: Tensor) -> Tensor:
        if nested is not None:
            block_absmax, absmax_codes = nested_parts
            absmax = relative_values(absmax, absmax_codes, block_absmax, nested[0]) + nested[1]
        packed = packed.flatten().view(torch.uint8)
        codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()[: math.prod(shape)]
        return relative_values(codes, code_book, absmax, size).to(dtype).reshape(shape)

    return decoded(decode, [stored, *parts], shape, dtype)


def relative_values(
    codes: UInt8[Tensor, " n_values"],
    code_book: Float32[Tensor, " n_codes"],
    absmax: Float32[Tensor, " n_blocks"],
    size: int,
) -> Float32[Tensor, " n_values"]:
    """The value of each code relative to the largest absolute value of its block: x[i] = c[q[i]] · a[⌊i / size⌋].

    Args:
        codes: The code q of each value.
        code_book: The value c of each code.
        absmax: The largest absolute value a of each block.
        size: The number of values of a block; the last block may be cut.
    """
    values = code_book[codes.int()]
    n_whole = len(values) // size
    values[: n_whole * size].view(n_whole, size).mul_(absmax[:n_whole, None])
    values[n_whole * size :] *= absmax[n_whole:]
    return values


def _int8_weight(checkpoint: Tensors, weight: str, format_name: str) -> LazyTensor:
    """A weight of 8 bits a value, relative to the largest absolute value of its row: W[i, j] = q[i, j] · a[i] / 127."""
    module = weight.removesuffix(".weight")
    stored, absmax = checkpoint[weight], part_of(checkpoint, f"{module}.SCB", weight, format_name)
    check_shape(f"{module}.SCB", absmax, (len(stored),), weight, format_name)
    layout = [checkpoint[name] for name in (f"{module}.weight_format",) if name in checkpoint]

    def decode(codes: Tensor, absmax: Tensor, *layout: Tensor) -> Tensor:
        if any(int(code) != ROW_FORMAT for code in layout):
            raise errors.unread_quantization_setting(format_name, "weights that are not stored row by row")
        return codes.to(torch.float32).mul_(absmax[:, None]).mul_(1 / 127)

    return decoded(decode, [stored, absmax, *layout], stored.shape, torch.float32)


def _is_part(name: str) -> bool:
    return STATE in name or name.endswith(PARTS)
