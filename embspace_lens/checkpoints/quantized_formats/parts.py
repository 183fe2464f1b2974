"""The tensors that hold one quantised weight: found by name, checked by shape, and decoded when the weight is read."""

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import errors
from ..lazy_tensor import LazyTensor, Operation

Tensors = Mapping[str, LazyTensor]
"""The tensors of a checkpoint by name."""


class Decoder(NamedTuple):
    """A function that computes a weight, with the result's shape and dtype.

    Attributes:
        decode: Computes the weight from its parts.
        like: A tensor on the meta device with the shape and the dtype of the result.
    """

    decode: Callable[..., Tensor]
    like: Tensor

    def __call__(self, *parts: Tensor) -> Tensor:
        """The weight; on the meta device, only its shape and dtype."""
        if any(part.is_meta for part in parts):
            return self.like
        return self.decode(*parts)


def decoded(decode: Callable[..., Tensor], parts: list[LazyTensor], shape: Any, dtype: torch.dtype) -> LazyTensor:
    """A weight that is computed from its parts when it is read.

    Args:
        decode: Computes the weight from the values of its parts.
        parts: Its parts.
        shape: The shape of the weight.
        dtype: The dtype of the weight.

    Returns:
        The weight.
    """
    like = torch.empty(tuple(shape), dtype=dtype, device="meta")
    return LazyTensor(Operation(Decoder(decode, like), tuple(parts)), like)


def part_of(checkpoint: Tensors, name: str, weight: str, format_name: str) -> LazyTensor:
    """A tensor that a weight needs.

    Raises:
        EmbspaceError: If the checkpoint lacks it.
    """
    if name not in checkpoint:
        raise errors.missing_part_of_weight(weight, name, format_name)
    return checkpoint[name]


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], weight: str, format_name: str) -> None:
    """Check that a part has the shape that its weight needs.

    Raises:
        EmbspaceError: If it has not.
    """
    if tuple(tensor.shape) != tuple(shape):
        raise errors.part_of_other_shape(name, tuple(tensor.shape), tuple(shape), weight, format_name)


def required(package: str, format_name: str) -> ModuleType:
    """The package that decodes a format.

    Raises:
        EmbspaceError: If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as reason:
        raise errors.needs_package_to_read(format_name, package, reason) from reason
