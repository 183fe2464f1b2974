"""Token embeddings with norm and score folded in, made chunk by chunk."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
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
    """A tensor, an array, or a sequence of either, as one float tensor without gradients.

    Raises:
        EmbspaceError: If the values cannot be converted.
    """
    try:
        if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
            values = torch.stack(list(values))
        tensor = torch.as_tensor(values).detach()
        if not isinstance(values, Tensor | np.ndarray) and tensor.dtype is torch.get_default_dtype():
            tensor = torch.as_tensor(values, dtype=torch.float32)  # numbers in float32, whatever torch's default is
    except (TypeError, ValueError, RuntimeError) as reason:
        raise errors.not_tensor(name, reason) from reason
    return tensor if tensor.is_floating_point() else tensor.float()


class Embedding:
    """Token embeddings as a lens scores them; `embedding[indices]` makes rows on demand, without a copy of the matrix.

    A row is the stored embedding times the norm's gain, and centred over d_model if the norm is a LayerNorm. For the score
    `"centered"`, the mean row is subtracted; for `"cosine"`, the row is then divided by its norm.

    Args:
        matrix: The stored embeddings, one token per row.
        norm: The norm to fold into them.
        token_ids: The tokens to read, in ascending order; None for all.
        score: `"dot"`, `"centered"` or `"cosine"`.
        device: The device on which rows are made; the matrix's by default (a model may be spread over several devices).

    Attributes:
        shape: (number of tokens, d_model).
        dtype: The precision of the rows.
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
        # With all tokens, slices of the matrix need no gathering.
        self._token_ids = None if token_ids is None or len(token_ids) == len(matrix) else token_ids
        self.device = matrix.device if device is None else device
        self.dtype = working_dtype(matrix.dtype)
        self.shape = (len(matrix) if self._token_ids is None else len(self._token_ids), matrix.shape[1])
        self._moments: dict[str, Tensor] = {}
        self._moments_of: tuple = ()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def norm(self) -> Norm:
        """The norm that is folded into the rows."""
        return self._norm

    def update(self, matrix: Float[Tensor, "d_vocab d_model"], norm: Norm) -> None:
        """Read this matrix and norm from now on. The mean and the Gram matrix are kept if the contents are the same as before."""
        self._matrix, self._norm, self.dtype = matrix, norm, working_dtype(matrix.dtype)
        if self._moments and self._moments_of != self._fingerprint():
            self._moments = {}

    def _fingerprint(self) -> tuple:
        """What changes with the contents: versions count edits in place; sums of bits also change after edits of `.data`."""
        tensors = [self._matrix] if self._norm.gain is None else [self._matrix, self._norm.gain]
        versions = [-1 if tensor.is_inference() else tensor._version for tensor in tensors]
        return (*versions, self.dtype, *(tuple(bit_sums(tensor).tolist()) for tensor in tensors))

    def _moment(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """A tensor that is computed from all rows once, and again after `update` with other contents."""
        if name not in self._moments:
            self._moments_of = self._moments_of if self._moments else self._fingerprint()
            self._moments[name] = compute()
        return self._moments[name]

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

    @property
    def _mean(self) -> Float[Tensor, " d_model"]:
        """The mean row."""
        return self._moment("mean", self._compute_mean)

    def _compute_mean(self) -> Float[Tensor, " d_model"]:
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

    @property
    def gram(self) -> Float[Tensor, "d_model d_model"]:
        """The second moment EᵀE of the rows, in float64 (on the CPU if the device has no float64)."""
        return self._moment("gram", self._compute_gram)

    def _compute_gram(self) -> Float[Tensor, "d_model d_model"]:
        total = torch.zeros(self.shape[1], self.shape[1], dtype=torch.float64)
        for tile in self.tiles():
            rows = float64(tile)
            total = total.to(rows.device) + rows.T @ rows
        return total

    @property
    def inverse_gram(self) -> Float[Tensor, "d_model d_model"]:
        """The pseudo-inverse of `gram`. Directions below 1e-5 of E's largest singular value are rounding errors and are dropped.

        The centring of a LayerNorm leaves one such direction, all ones.
        """
        return self._moment("inverse_gram", self._compute_inverse_gram)

    def _compute_inverse_gram(self) -> Float[Tensor, "d_model d_model"]:
        return torch.linalg.pinv(self.gram, hermitian=True, rtol=1e-10).to(device=self.device, dtype=self.dtype)

    def check(self, name: str) -> None:
        """Check that all entries are finite.

        Raises:
            EmbspaceError: If an entry is NaN or infinite.
        """
        for chunk in chunks(len(self._matrix), 4 * self.shape[1]):
            if not torch.isfinite(self._matrix[chunk]).all():
                raise errors.not_finite(name)


def bit_sums(tensor: Float[Tensor, "*shape"]) -> Int[Tensor, " n"]:
    """Sums of a tensor's bits along its first dimension in memory; fast, and different for almost any other contents."""
    stored = tensor if tensor.is_contiguous() or tensor.ndim != 2 else tensor.T
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[stored.element_size()]
    if stored.is_contiguous() and stored.shape[-1] * stored.element_size() % 4 == 0:
        integer = torch.int32  # integers of this size are summed without a conversion
    return stored.view(integer).sum(dim=0, dtype=integer if integer is torch.int64 else torch.int32).flatten().cpu()


def unembedding_rows(weights: Weights) -> Embedding:
    """The rows of W_Uᵀ with the final norm folded in, made chunk by chunk."""
    stored, norm = weights.unembedding
    return Embedding(stored.T, norm)
