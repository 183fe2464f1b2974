"""Linear maps fitted to paired rows, from the rows' second moments."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from ..tables.checks import check_integer
from ..weights.factored_matrix import FactoredMatrix
from .translation import Translation

Inverse = Literal["pinv", "least_squares", "ridge", "procrustes", "transpose"]
INVERSES: tuple[Inverse, ...] = ("pinv", "least_squares", "ridge", "procrustes", "transpose")
RIDGE = 0.01  # of the mean eigenvalue of the source's second moment


@dataclass(frozen=True)
class Moments:
    """Second moments SᵀS, SᵀT and TᵀT of paired rows: S of the source, T of the target."""

    ss: Float64[Tensor, "d_source d_source"]
    st: Float64[Tensor, "d_source d_target"]
    tt: Float64[Tensor, "d_target d_target"]

    @property
    def swapped(self) -> "Moments":
        return Moments(self.tt, self.st.T, self.ss)


def fit_translation(
    moments: Moments,
    inverse: Inverse,
    rank: int | None,
    source: str,
    target: str,
    n_tokens: int,
    means: tuple[Tensor, Tensor] | None = None,
    method: str = "",
) -> Translation:
    """The translation fitted to paired rows.

    Args:
        moments: Their second moments; with means, the second moments of the deviations from them.
        inverse: The method, as for `translate`.
        rank: How many singular directions to keep; all by default.
        source: The source's name.
        target: The target's name.
        n_tokens: How many tokens the rows are from.
        means: The source's and the target's mean row.
        method: The method's name in the translation, if not `inverse`.

    Raises:
        EmbspaceError: If the rank is out of range.
    """
    there, back = _map(moments, inverse), _map(moments.swapped, inverse)
    if rank is not None:
        rank = check_integer(
            "rank", rank, minimum=1, maximum=min(there.shape), count_of="dimensions of the narrower model"
        )
    there, back = _factor(there, rank), _factor(back, rank)
    lost = torch.eye(len(moments.ss), dtype=torch.float64) - there.A @ (there.B @ back.A) @ back.B
    squared_error = (lost * (moments.ss @ lost)).sum().clamp_min(0) / moments.ss.trace()
    if means is None:
        means = moments.ss.new_zeros(len(moments.ss)), moments.tt.new_zeros(len(moments.tt))
    return Translation(
        source=source,
        target=target,
        inverse=method or inverse,
        n_tokens=n_tokens,
        there=FactoredMatrix(there.A.float(), there.B.float()),
        back=FactoredMatrix(back.A.float(), back.B.float()),
        mean_source=means[0].float(),
        mean_target=means[1].float(),
        round_trip_error=float(squared_error.sqrt()),
    )


def _map(m: Moments, inverse: Inverse) -> Float64[Tensor, "d_source d_target"]:
    if inverse == "pinv":
        return m.st @ _pinv(m.tt)
    if inverse == "least_squares":
        return _pinv(m.ss) @ m.st
    if inverse == "ridge":
        eye = torch.eye(len(m.ss), dtype=torch.float64)
        return torch.linalg.solve(m.ss + RIDGE * m.ss.trace() / len(m.ss) * eye, m.st)
    matrix = m.st
    if inverse == "procrustes":
        u, _, v = torch.linalg.svd(m.st, full_matrices=False)
        matrix = u @ v
    # The scale that minimises ‖S K − T‖.
    return matrix * (matrix * m.st).sum() / (matrix * (m.ss @ matrix)).sum()


def _pinv(gram: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    # Singular values of the rows below 1e-5 of the largest are rounding error, as in `Embedding.inverse_gram`.
    return torch.linalg.pinv(gram, hermitian=True, rtol=1e-10)


def _factor(matrix: Float64[Tensor, "d_source d_target"], rank: int | None) -> FactoredMatrix:
    """The matrix (or its best approximation of this rank) as two factors; directions of rounding error are left out."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    n_kept = int((s > s[0] * 1e-10).sum()) if rank is None else rank
    root = s[:n_kept].sqrt()
    return FactoredMatrix(u[:, :n_kept] * root, root[:, None] * v[:n_kept])
