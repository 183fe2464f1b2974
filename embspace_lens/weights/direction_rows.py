"""The directions of a weight as rows that are made on demand, with the linear part of a norm folded in.

A weight keeps its stored precision. Only the rows that are asked for become float32, so that a large weight is never copied whole.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import errors
from ..search.tiles import float64, upcast
from .architectures import Norm
from .parameter_names import Side

RowIndex = int | slice | list[int] | Int[Tensor, " n"]
"""Which rows: neurons of an MLP, or heads of attention."""


@runtime_checkable
class Directions(Protocol):
    """Directions of the residual stream, made on demand: `[d_mlp, d_model]`, or `[n_heads, d_head, d_model]`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: RowIndex, /) -> Float[Tensor, "*n d_model"]: ...


class FoldedDirections:
    """The directions of one weight with its norm folded in.

    Args:
        stored: The directions as stored, one per row.
        norm: The norm.
        side: Whether they read through the norm or write through it.
        label: What to call the weight in an error message.
        group: How many heads share one matrix.
    """

    def __init__(
        self, stored: Float[Tensor, "*n d_model"], norm: Norm, side: Side, label: str, *, group: int = 1
    ) -> None:
        self._stored, self._norm, self._label, self._group = stored, norm, label, group
        self._side: Side = side
        self.device = stored.device
        self.shape = (len(stored) * group, *stored.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: RowIndex) -> Float[Tensor, "*n d_model"]:
        """The rows at these indices, in float32 at least.

        Raises:
            EmbspaceError: If they have infinite or missing entries.
        """
        if self._group == 1:
            return fold(self._stored[index], self._norm, self._side, self._label)
        if isinstance(index, int):
            return fold(self._stored[index // self._group], self._norm, self._side, self._label)
        heads = torch.arange(len(self))[index] // self._group
        used, position = heads.unique(return_inverse=True)  # each shared matrix is folded once
        return fold(self._stored[used], self._norm, self._side, self._label)[position.to(self.device)]


class DirectionDifference:
    """The directions of one weight minus those of another."""

    def __init__(self, after: Directions, before: Directions) -> None:
        self._after, self._before = after, before
        self.device, self.shape = before.device, before.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: RowIndex) -> Float[Tensor, "*n d_model"]:
        return self._after[index] - self._before[index]


def fold(x: Float[Tensor, "*n d_model"], norm: Norm, side: Side, label: str) -> Float[Tensor, "*n d_model"]:
    """Directions in float32 at least, with the norm before them (`side="read"`) or after them folded in.

    Raises:
        EmbspaceError: If they have infinite or missing entries.
    """
    x = upcast(x)
    if norm.gain is not None and side == "read":
        x = x * norm.gain.to(x)
    if norm.centres:  # in float64, so that a row's mean does not depend on the rows beside it
        x = x - float64(x).mean(dim=-1, keepdim=True).to(x)
    if norm.gain is not None and side == "write":
        x = x * norm.gain.to(x)
    if not torch.isfinite(x).all():
        raise errors.not_finite(label)
    return x
