"""Token embeddings as a lens scores them, made tile by tile."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..search.tiles import float64
from ..weights.architectures import Norm
from ..weights.effective import Weights

NO_NORM = Norm()


TILE = 8192  # rows of an embedding made at a time, so that no copy of it is ever whole


def full(dtype: torch.dtype) -> torch.dtype:
    """The precision in which weights of this dtype are multiplied."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_tensor(values: Any, what: str) -> Tensor:
    """A float tensor out of a tensor, an array, or a sequence of either.

    Raises:
        EmbspaceError: If it does not become one.
    """
    try:
        if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
            values = torch.stack(list(values))
        tensor = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as reason:
        raise errors.EmbspaceError(f"{what} cannot be made a tensor: {reason}") from reason
    return tensor if tensor.is_floating_point() else tensor.float()


class Embedding:
    """Token embeddings as the lens scores them, made by the tile: `rows[ids]`, as a tensor's.

    A row is the stored one times the norm's gain, centred over d_model where that norm is a LayerNorm; then, by the score,
    less the mean row and divided by its length. The stored matrix is never copied.
    """

    def __init__(
        self,
        matrix: Tensor,
        norm: Norm = NO_NORM,
        ids: Tensor | None = None,
        score: str = "dot",
        device: torch.device | None = None,
    ) -> None:
        self._matrix = matrix
        self._norm = norm
        self._score = score
        self.ids = ids
        self.device = matrix.device if device is None else device  # where rows are wanted; models may be spread
        self.dtype = full(matrix.dtype)
        self.shape = (len(matrix) if ids is None else len(ids), matrix.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def _folded(self, index: slice | Tensor) -> Tensor:
        if self.ids is not None:
            index = self.ids.to(self.device)[index]
        if isinstance(index, Tensor):  # several times as fast as indexing by a tensor
            rows = self._matrix.index_select(0, index.to(self._matrix.device))
        else:
            rows = self._matrix[index]
        rows = rows.to(device=self.device, dtype=self.dtype)
        if self._norm.gain is not None:
            rows = rows * self._norm.gain.to(rows)
        return rows - rows.mean(dim=1, keepdim=True) if self._norm.centres else rows

    @cached_property
    def _mean(self) -> Tensor:
        total = torch.stack([float64(self._folded(tile)).sum(dim=0) for tile in self._tiles()]).sum(dim=0)
        return (total / len(self)).to(device=self.device, dtype=self.dtype)

    def __getitem__(self, index: slice | Tensor) -> Float[Tensor, "n d_model"]:
        rows = self._folded(index)
        if self._score == "dot":
            return rows
        rows = rows - self._mean
        return rows if self._score == "centered" else torch.nn.functional.normalize(rows, dim=1)

    def tiles(self) -> Iterator[Tensor]:
        """All rows, a tile at a time."""
        return (self[tile] for tile in self._tiles())

    def _tiles(self) -> Sequence[slice]:
        return [slice(start, start + TILE) for start in range(0, len(self), TILE)]

    def scores(self, vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, "n n_tokens"]:
        """Every row's inner product with every vector."""
        return torch.cat([vectors @ self[tile].T for tile in self._tiles()], dim=1)

    def combine(self, coefficients: Float[Tensor, "n n_tokens"]) -> Float[Tensor, "n d_model"]:
        """Sums of rows, one for each row of coefficients."""
        return sum((coefficients[:, tile] @ self[tile] for tile in self._tiles()), coefficients.new_zeros(()))

    @cached_property
    def gram(self) -> Float[Tensor, "d_model d_model"]:
        """Second moment of the rows, EᵀE, in float64 (on the CPU where the device has none)."""
        total = torch.zeros(self.shape[1], self.shape[1], dtype=torch.float64)
        for tile in self._tiles():
            rows = float64(self[tile])
            total = total.to(rows.device) + rows.T @ rows
        return total

    @cached_property
    def inverse_gram(self) -> Float[Tensor, "d_model d_model"]:
        """Pseudo-inverse of `gram`; directions below 1e-5 of E's largest singular value are rounding, and count as absent.

        A LayerNorm's centring leaves one such direction: all ones, which no token reads.
        """
        return torch.linalg.pinv(self.gram, hermitian=True, rtol=1e-10).to(device=self.device, dtype=self.dtype)

    def check(self, name: str) -> None:
        """Refuse NaN and infinite entries."""
        for start in range(0, len(self._matrix), TILE):
            if not torch.isfinite(self._matrix[start : start + TILE]).all():
                raise errors.not_finite(name)


def unembedding_rows(weights: Weights) -> Embedding:
    """W_Uᵀ behind the final norm, made by the tile."""
    stored, norm = weights.unembedding
    return Embedding(stored.T, norm)
