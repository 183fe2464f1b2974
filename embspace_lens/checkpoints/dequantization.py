"""Quantised checkpoints: their weights as those of the unquantised model, decoded one by one when they are read."""

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from .. import errors
from .lazy_tensor import LazyTensor
from .quantized_formats import awq, bits_and_bytes, compressed, fp8, mxfp4

SETTINGS = ("quantization_config", "compression_config")
"""The keys of config.json under which the settings of a quantisation are stored."""

FORMATS: dict[str, ModuleType] = {
    "fp8": fp8,
    "mxfp8": fp8,
    "fbgemm_fp8": fp8,
    "mxfp4": mxfp4,
    "compressed-tensors": compressed,
    "bitsandbytes": bits_and_bytes,
    "awq": awq,
}
"""The module for each `quant_method`."""

FORMAT_NAMES = ("FP8", "MXFP8", "MXFP4", "compressed-tensors", "bitsandbytes", "AWQ", "GGUF")


class DequantizedCheckpoint(Mapping[str, LazyTensor]):
    """The parameters of the unquantised model.

    Attributes:
        stored: The quantised checkpoint, with its `files` and its size.
        format_name: The format in words.
        n_bytes: The size of all parameters as stored.
    """

    def __init__(self, stored: Mapping[str, LazyTensor], tensors: dict[str, LazyTensor], format_name: str) -> None:
        self.stored, self.format_name = stored, format_name
        self._tensors = tensors

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"DequantizedCheckpoint({self.stored}, {self.format_name})"

    @property
    def files(self) -> Any:
        stored: Any = self.stored
        return stored.files

    @property
    def n_bytes(self) -> int:
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in self.stored.values())

    @property
    def n_parameters(self) -> int:
        """How many numbers all parameters of the unquantised model hold."""
        return sum(tensor.numel() for tensor in self._tensors.values())


def dequantized(checkpoint: Mapping[str, LazyTensor], config: dict[str, Any]) -> Mapping[str, LazyTensor]:
    """The parameters of the unquantised model, by the names and in the shapes of an unquantised checkpoint.

    Nothing is decoded before it is read. A tensor has the dtype of its values: float32 for FP8, bfloat16 for MXFP4, that of the
    scales for compressed-tensors and AWQ, and for bitsandbytes the one that the checkpoint states (float32 for int8).

    Args:
        checkpoint: The parameters as stored.
        config: The content of config.json. Give transformers the result of `unquantized_config` instead of it.

    Returns:
        The parameters, as a `DequantizedCheckpoint`; the same mapping if the model is not quantised.

    Raises:
        EmbspaceError: If the format is not read, its package is missing, or the tensors of a weight are incomplete or
            of a wrong shape.
    """
    settings = quantization_settings(config)
    if settings is None:
        return checkpoint
    name = format_name(config)
    module = FORMATS.get(settings["quant_method"])
    if module is None:
        raise errors.quantization_not_read(name, FORMAT_NAMES)
    tensors = module.decoded_tensors(checkpoint, settings)
    for key, tensor in tensors.items():
        if key.endswith(".weight") and (tensor.dtype.itemsize == 1 or not tensor.is_floating_point()):
            raise errors.unread_storage(key, tensor.dtype, name)
    return DequantizedCheckpoint(checkpoint, tensors, name)


def format_name(config: dict[str, Any]) -> str:
    """The format of a quantised checkpoint in words; empty without quantisation.

    Args:
        config: The content of config.json.

    Returns:
        The format.

    Example:
        >>> from embspace_lens.checkpoints.dequantization import format_name
        >>> format_name({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})
        'FP8 in blocks of 128 × 128'
    """
    settings = quantization_settings(config)
    if settings is None:
        return ""
    module = FORMATS.get(settings["quant_method"])
    return settings["quant_method"].upper() if module is None else module.name_of(settings)


def quantization_settings(config: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of a quantisation, with their key `quant_method`; None if a configuration has none."""
    for part in (config, config.get("text_config") or {}):
        for key in SETTINGS:
            if part.get(key):
                return {"quant_method": _default_method(part[key])} | part[key]
    return None


def unquantized_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the unquantised model: a copy without the settings of the quantisation."""
    plain = {key: value for key, value in config.items() if key not in SETTINGS}
    if isinstance(plain.get("text_config"), dict):
        plain["text_config"] = unquantized_config(plain["text_config"])
    return plain


def _default_method(settings: dict[str, Any]) -> str:
    """The format of settings without `quant_method`, as older checkpoints have them."""
    if "config_groups" in settings:
        return "compressed-tensors"
    return "bitsandbytes" if "load_in_8bit" in settings or "load_in_4bit" in settings else "an unknown format"
