"""Token embeddings as a lens scores them, made chunk by chunk."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from .. import errors
from ..search.tiles import chunks, float64, working_dtype
from ..weights.architectures import Norm
from ..weights.effective import Weights

Score = Literal["dot", "centered", "cosine"]
NO_NORM = Norm()


def as_tensor(values: Any, name: str) -> Tensor:
    """A float tensor made of a tensor, an array, or a sequence of either.

    Raises:
        EmbspaceError: If it cannot be made one.
    """
    try:
        if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
            values = torch.stack(list(values))
        tensor = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as reason:
        raise errors.not_tensor(name, reason) from reason
    return tensor if tensor.is_floating_point() else tensor.float()


class Embedding:
    """Token embeddings as a lens scores them; `embedding[indices]` makes rows on demand, and no copy of the matrix.

    A row is the stored one times the norm's gain, centred over d_model if that norm is a LayerNorm. Under the score
    `"centered"` the mean row is subtracted; under `"cosine"` the row is then divided by its length.

    Args:
        matrix: The stored embeddings, a token a row.
        norm: The norm folded into them.
        token_ids: The tokens that are read, in ascending order; None for all rows of the matrix.
        score: `"dot"`, `"centered"` or `"cosine"`.
        device: Where rows are made; the matrix's device by default (a model may be spread over several).
    """

    def __init__(
        self,
        matrix: Float[Tensor, "d_vocab d_model"],
        norm: Norm = NO_NORM,
        token_ids: Int[Tensor, " n_tokens"] | None = None,
        score: Score = "dot",
        device: torch.device | None = None,
    ) -> None:
        self._matrix = matrix
        self._norm = norm
        self._score = score
        # All rows in order: slices of the matrix then need no gathering.
        self._token_ids = None if token_ids is None or len(token_ids) == len(matrix) else token_ids
        self.device = matrix.device if device is None else device
        self.dtype = working_dtype(matrix.dtype)
        self.shape = (len(matrix) if self._token_ids is None else len(self._token_ids), matrix.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Float[Tensor, "n d_model"]:
        rows = self._folded(index)
        if self._score == "dot":
            return rows
        rows = rows - self._mean
        return rows if self._score == "centered" else normalize(rows, dim=1)

    def _folded(self, index: slice | Tensor) -> Float[Tensor, "n d_model"]:
        """Rows with the norm folded in, before the score's centring."""
        if self._token_ids is not None:
            index = self._token_ids.to(self.device)[index]
        if isinstance(index, Tensor):  # several times as fast as indexing by a tensor
            rows = self._matrix.index_select(0, index.to(self._matrix.device))
        else:
            rows = self._matrix[index]
        rows = rows.to(device=self.device, dtype=self.dtype)
        if self._norm.gain is not None:
            rows = rows * self._norm.gain.to(rows)
        return rows - rows.mean(dim=1, keepdim=True) if self._norm.centres else rows

    @cached_property
    def _mean(self) -> Float[Tensor, " d_model"]:
        """The mean row."""
        total = torch.stack([float64(self._folded(chunk)).sum(dim=0) for chunk in self._chunks()]).sum(dim=0)
        return (total / len(self)).to(device=self.device, dtype=self.dtype)

    def _chunks(self) -> Iterator[slice]:
        return chunks(len(self), 4 * self.shape[1])

    def tiles(self) -> Iterator[Float[Tensor, "n d_model"]]:
        """All rows, chunk by chunk."""
        return (self[chunk] for chunk in self._chunks())

    def scores(self, vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, "n n_tokens"]:
        """The inner product of every vector with every row."""
        return torch.cat([vectors @ tile.T for tile in self.tiles()], dim=1)

    def combine(self, coefficients: Float[Tensor, "n n_tokens"]) -> Float[Tensor, "n d_model"]:
        """Sums of rows, one for each row of coefficients."""
        total = coefficients.new_zeros(len(coefficients), self.shape[1])
        for chunk in self._chunks():
            total = total + coefficients[:, chunk] @ self[chunk]
        return total

    @cached_property
    def gram(self) -> Float[Tensor, "d_model d_model"]:
        """The second moment EᵀE of the rows, in float64 (on the CPU if the device has no float64)."""
        total = torch.zeros(self.shape[1], self.shape[1], dtype=torch.float64)
        for tile in self.tiles():
            rows = float64(tile)
            total = total.to(rows.device) + rows.T @ rows
        return total

    @cached_property
    def inverse_gram(self) -> Float[Tensor, "d_model d_model"]:
        """The pseudo-inverse of `gram`; directions below 1e-5 of E's largest singular value are rounding and are left out.

        Centring by a LayerNorm leaves one such direction: all ones, which no token reads.
        """
        return torch.linalg.pinv(self.gram, hermitian=True, rtol=1e-10).to(device=self.device, dtype=self.dtype)

    def check(self, name: str) -> None:
        """Refuse NaN and infinite entries.

        Raises:
            EmbspaceError: If there are any.
        """
        for chunk in chunks(len(self._matrix), 4 * self.shape[1]):
            if not torch.isfinite(self._matrix[chunk]).all():
                raise errors.not_finite(name)


def unembedding_rows(weights: Weights) -> Embedding:
    """W_Uᵀ with the final norm folded in, made chunk by chunk."""
    stored, norm = weights.unembedding
    return Embedding(stored.T, norm)
