"""The factors of the circuits of a block's heads, made head by head."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .direction_rows import Directions, RowIndex

if TYPE_CHECKING:
    import transformer_lens

Factors = tuple[Float[Tensor, "*n_heads d_model rank"], Float[Tensor, "*n_heads d_model rank"]]
"""Left and right factor: the circuit is `left @ right.mT`."""


@runtime_checkable
class Circuits(Protocol):
    """The circuits of a block's heads: `circuits[head]` are the factors of one, `circuits[:]` those of all."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: RowIndex, /) -> Factors: ...


class HeadCircuits:
    """W_OV or W_QK of a block's heads.

    Args:
        left: The directions of the first weight.
        right: Those of the second.
        rotation: Rotary positions at a distance, between the two; None for none.
    """

    def __init__(
        self, left: Directions, right: Directions, rotation: Float[Tensor, "d_head d_head"] | None = None
    ) -> None:
        self._left, self._right, self._rotation = left, right, rotation

    def __len__(self) -> int:
        return len(self._left)

    def __getitem__(self, index: RowIndex) -> Factors:
        left, right = self._left[index].mT, self._right[index].mT
        return (left if self._rotation is None else left @ self._rotation.to(left)), right


class CircuitDifference:
    """The circuits of one model minus those of another: `[A_left − B_left, B_left]` and `[A_right, A_right − B_right]`.

    Both factors are zero for heads whose factors are equal, so that their difference is exactly zero.
    """

    def __init__(self, after: Circuits, before: Circuits) -> None:
        self._after, self._before = after, before

    def __len__(self) -> int:
        return len(self._before)

    def __getitem__(self, index: RowIndex) -> Factors:
        (a_left, a_right), (b_left, b_right) = self._after[index], self._before[index]
        left, right = a_left - b_left, a_right - b_right
        is_changed = left.any(dim=-1).any(dim=-1) | right.any(dim=-1).any(dim=-1)
        mask = is_changed[..., None, None]
        return torch.cat([left, b_left], dim=-1) * mask, torch.cat([a_right, right], dim=-1) * mask


def factored(circuits: Circuits) -> "transformer_lens.FactoredMatrix":
    """The circuits of all heads as TransformerLens's matrix of two factors, for users."""
    from .factored_matrix import FactoredMatrix

    left, right = circuits[:]
    return FactoredMatrix(left, right.mT)
