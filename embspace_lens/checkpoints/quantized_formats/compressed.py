"""Weights in the formats of compressed-tensors, decoded by the package of the same name."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ... import errors
from ..lazy_tensor import LazyTensor
from .parts import Tensors, check_shape, decoded, part_of, required

PACKAGE = "compressed_tensors"
FORMATS = ("naive-quantized", "int-quantized", "float-quantized", "pack-quantized")
PACKED = "pack-quantized"
SCALE = ".weight_scale"
WORD_BITS = 32
PARTS = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
"""The tensors of a quantised module."""

ACTIVATIONS = re.compile(r"\.((input|output)_(scale|zero_point|global_scale)|self_attn\.[kvq]_(scale|zero_point))$")
"""Names of the scales of activations, which no weight needs."""

UNREAD = {".weight_global_scale": "two levels of scales", ".weight_g_idx": "columns reordered by activations (g_idx)"}
"""Parts of a weight in formats that are not read."""


def name_of(settings: dict[str, Any]) -> str:
    """The format in words, such as `compressed-tensors int4 in groups of 128`."""
    groups = settings.get("config_groups") or {}
    names = [_kind(group.get("weights") or {}) for group in groups.values() if isinstance(group, Mapping)]
    return "compressed-tensors " + (" and ".join(dict.fromkeys(names)) or _format_of({}, settings))


def decoded_tensors(checkpoint: Tensors, settings: dict[str, Any]) -> dict[str, LazyTensor]:
    """The tensors of the unquantised checkpoint. A weight has the dtype of its scales, in which the package computes it.

    Args:
        checkpoint: The tensors as stored.
        settings: The `quantization_config` of the configuration.

    Raises:
        EmbspaceError: If the format is not read, a weight has no scale, or its parts do not fit each other.
    """
    name = name_of(settings)
    _check_settings(checkpoint, settings, name)
    schemes = _schemes(settings, name)
    quantized = [key for key, tensor in checkpoint.items() if _is_quantized(key, tensor)]
    modules = dict.fromkeys(key.rpartition(".")[0] for key in quantized)
    used = {f"{module}.{part}" for module in modules for part in PARTS}
    tensors = {key: x for key, x in checkpoint.items() if key not in used and not ACTIVATIONS.search(key)}
    for module in modules:
        scheme, group = _scheme_of(module, schemes, name)
        stored_format = _format_of(group, settings)
        if stored_format not in FORMATS:
            raise errors.unread_quantization_setting(name, f"the format {stored_format}")
        tensors[f"{module}.weight"] = _weight(checkpoint, module, scheme, stored_format, name)
    return tensors


def _weight(checkpoint: Tensors, module: str, scheme: Any, stored_format: str, format_name: str) -> LazyTensor:
    """The weight of a module, from its parts."""
    weight, settings = f"{module}.weight", scheme.weights
    parts = {part: checkpoint[f"{module}.{part}"] for part in PARTS if f"{module}.{part}" in checkpoint}
    needed = ["weight_packed", "weight_shape"] if stored_format == PACKED else ["weight"]
    for part in [*needed, "weight_scale", *([] if settings.symmetric else ["weight_zero_point"])]:
        parts[part] = part_of(checkpoint, f"{module}.{part}", weight, format_name)
    stored, scale = parts[needed[0]], parts["weight_scale"]
    if stored.ndim != 2:
        raise errors.unread_quantization_setting(format_name, f"several matrices in one tensor ({weight})")
    n_rows, n_columns = stored.shape
    if stored_format == PACKED:
        n_columns = _n_unpacked(n_columns, scale, settings)
    elif stored.dtype.itemsize != 1:
        raise errors.unread_storage(weight, stored.dtype, format_name)
    shapes = _scale_shapes(n_rows, n_columns, settings)
    if tuple(scale.shape) not in shapes:
        check_shape(f"{module}.weight_scale", scale, shapes[0], weight, format_name)
    if stored_format == PACKED:
        check_shape(f"{module}.weight_packed", stored, (n_rows, _n_words(n_columns, settings)), weight, format_name)
    if not settings.symmetric:
        n_zeros = _n_words(n_rows, settings) if stored_format == PACKED else n_rows
        shape = (n_zeros, *scale.shape[1:]) if settings.strategy in ("group", "channel") else tuple(scale.shape)
        check_shape(f"{module}.weight_zero_point", parts["weight_zero_point"], shape, weight, format_name)
    names = list(parts)

    def decode(*values: Tensor) -> Tensor:
        state = dict(zip(names, values))
        if "weight_shape" in state and state["weight_shape"].tolist() != [n_rows, n_columns]:
            stated = tuple(state["weight_shape"].tolist())
            raise errors.part_of_other_shape(weight, (n_rows, n_columns), stated, f"{module}.weight_shape", format_name)
        return _compressor(stored_format).decompress(state, scheme)["weight"]

    return decoded(decode, list(parts.values()), (n_rows, n_columns), scale.dtype)


def _compressor(stored_format: str) -> Any:
    from compressed_tensors.compressors import BaseCompressor

    return BaseCompressor.get_value_from_registry(stored_format)


def _n_unpacked(n_words: int, scale: Tensor, settings: Any) -> int:
    """The number of columns of a packed weight: from its groups, or as many as its words of 32 bits hold."""
    if settings.group_size and settings.group_size > 0 and scale.ndim == 2:
        return scale.shape[-1] * settings.group_size
    return n_words * WORD_BITS // settings.num_bits


def _n_words(n_values: int, settings: Any) -> int:
    """The number of words of 32 bits that hold values without gaps."""
    return math.ceil(n_values * settings.num_bits / WORD_BITS)


def _scale_shapes(n_rows: int, n_columns: int, settings: Any) -> list[tuple[int, ...]]:
    """The shapes that a scale may have."""
    if settings.strategy == "block":
        height, width = settings.block_structure
        return [(math.ceil(n_rows / height), math.ceil(n_columns / width))]
    if settings.strategy == "group":
        return [(n_rows, math.ceil(n_columns / settings.group_size))]
    return [(n_rows, 1)] if settings.strategy == "channel" else [(1,), (), (1, 1)]


def _schemes(settings: dict[str, Any], format_name: str) -> list[tuple[Any, dict[str, Any]]]:
    """The quantisation of each group of modules, as the package describes it, and as config.json does."""
    required(PACKAGE, format_name)
    from compressed_tensors.quantization import QuantizationScheme

    groups = [dict(group) for group in settings["config_groups"].values()]
    try:
        return [(QuantizationScheme.model_validate(group), group) for group in groups if group.get("weights")]
    except ValueError as reason:
        raise errors.unread_quantization_setting(
            format_name, f"these settings: {' '.join(str(reason).split())}"
        ) from reason


def _scheme_of(module: str, schemes: list[tuple[Any, dict[str, Any]]], format_name: str) -> tuple[Any, dict[str, Any]]:
    """The quantisation of a module: of the group that names it, otherwise of the first group that names a class."""
    from compressed_tensors.utils.match import match_name

    for scheme in schemes:
        if any(match_name(module, target) for target in scheme[0].targets):
            return scheme
    for scheme in schemes:
        if any(target.isidentifier() for target in scheme[0].targets):
            return scheme
    raise errors.unread_quantization_setting(format_name, f"no group of settings for {module}")


def _is_quantized(key: str, tensor: Tensor) -> bool:
    if key.endswith(".weight"):
        return tensor.dtype.itemsize == 1
    return key.endswith((SCALE, ".weight_packed"))


def _format_of(group: Mapping[str, Any], settings: dict[str, Any]) -> str:
    return group.get("format") or settings.get("format") or "dense"


def _check_settings(checkpoint: Tensors, settings: dict[str, Any], format_name: str) -> None:
    """Refuse formats and settings under which the weights would be read incorrectly."""
    groups = list((settings.get("config_groups") or {}).values())
    if not groups or not all(isinstance(group, Mapping) for group in groups):
        raise errors.unread_quantization_setting(format_name, "no config_groups")
    for group in groups:
        stored_format = _format_of(group, settings)
        if group.get("weights") and stored_format not in (*FORMATS, "dense", "mixed-precision"):
            raise errors.unread_quantization_setting(format_name, f"the format {stored_format}")
    if (settings.get("transform_config") or {}).get("config_groups"):
        raise errors.unread_quantization_setting(format_name, "rotated weights (transform_config)")
    sparsity = (settings.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise errors.unread_quantization_setting(format_name, f"sparse weights ({sparsity})")
    for suffix, meaning in UNREAD.items():
        if any(key.endswith(suffix) for key in checkpoint):
            raise errors.unread_quantization_setting(format_name, meaning)


def _kind(weights: Mapping[str, Any]) -> str:
    """The precision and the sharing of scales of a group, in words."""
    bits = weights.get("num_bits", 8)
    precision = f"FP{bits}" if weights.get("type") == "float" else f"int{bits}"
    block, size = weights.get("block_structure"), weights.get("group_size")
    strategy = weights.get("strategy") or ("group" if size and size > 0 else "channel" if size == -1 else "tensor")
    scales = {"channel": "per row", "tensor": "per tensor", "group": f"in groups of {size}"}
    if strategy == "block" and block:
        return f"{precision} in blocks of {block[0]} × {block[1]}"
    return f"{precision} {scales.get(strategy, strategy)}"
