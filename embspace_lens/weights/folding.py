"""Folding: the linear part of a norm, multiplied into the weight that reads through it or writes through it."""

import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..checkpoints.lazy_tensor import loaded
from ..search.tiles import upcast
from .architectures import Norm


def fold_into_reading(
    weight: Float[Tensor, "*n_heads d_model n"], norm: Norm, label: str
) -> Float[Tensor, "*n_heads d_model n"]:
    """A reading weight in float32 at least, with the norm before it folded in.

    Args:
        weight: The weight as stored; a weight in a checkpoint is read.
        norm: The norm.
        label: What to call the weight in an error message.

    Raises:
        EmbspaceError: If the weight has infinite or missing entries.
    """
    weight = upcast(loaded(weight))
    if norm.gain is not None:
        weight = weight * norm.gain.to(weight)[:, None]
    if norm.centres:
        weight = weight - weight.mean(dim=-2, keepdim=True)
    return _finite(weight, label)


def fold_into_writing(
    weight: Float[Tensor, "*n_heads n d_model"], norm: Norm, label: str
) -> Float[Tensor, "*n_heads n d_model"]:
    """A writing weight in float32 at least, with the norm after it folded in; otherwise as `fold_into_reading`."""
    weight = upcast(loaded(weight))
    if norm.centres:
        weight = weight - weight.mean(dim=-1, keepdim=True)
    if norm.gain is not None:
        weight = weight * norm.gain.to(weight)
    return _finite(weight, label)


def _finite(weight: Tensor, label: str) -> Tensor:
    if not torch.isfinite(weight).all():
        raise errors.not_finite(label)
    return weight
