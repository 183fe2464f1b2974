"""Where two models meet: their vectors as unit vectors of one space, whose inner products are Pearson correlations."""

from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import EmbspaceError, choice, not_finite
from ..lens import EmbeddingLens
from ..search.tiles import Subset, chunks, float64
from ..weights.effective import Side, WeightIndex, side_of
from .common_tokens import require_lenses, shared_rows, shared_tokens

ROUNDING = 1e-10  # a variance under this share of the largest that a vector of its length can have is rounding


class Kernel(NamedTuple):
    """What both sides' vectors are multiplied with, and the largest variance of a vector of length 1 on each."""

    root_a: Float[Tensor, "d_model_a rank_a"]
    root_b: Float[Tensor, "d_model_b rank_b"]
    link: Float[Tensor, "rank_a rank_b"]
    largest: tuple[float, float]


class InVocabulary:
    r"""Correlations over the vocabulary: two residual vectors, each scored by its own lens on the tokens that both share.

    With $\bar E$ the embeddings less their mean over those tokens, nothing of the vocabulary's size is made for a vector:

    .. math:: r(x, y) = \frac{x K y^\top}{\sqrt{x G_a x^\top}\sqrt{y G_b y^\top}}, \qquad K = \bar E_a \bar E_b^\top,
        \quad G_a = \bar E_a \bar E_a^\top, \quad G_b = \bar E_b \bar E_b^\top

    With roots $R R^\top = G$, a vector becomes $u = xR / |xR|$, and $r = u_a (R_a^+ K R_b^{+\top}) u_b^\top$. The matrix between
    has singular values of at most 1 (the canonical correlations of the two embeddings), so float32 is exact enough.

    Raises:
        EmbspaceError: If the two share too few tokens.
    """

    def __init__(self, a: EmbeddingLens, b: EmbeddingLens) -> None:
        self.lenses = (a, b)
        self.ids = shared_tokens(a, b)
        self.n_tokens: int | None = len(self.ids[0])
        self._dtype = _dtype(a, b)
        self._one_side = all(lens.space.read is lens.space.write for lens in self.lenses)
        self._kernel = cache(self._make_kernel)

    def units(self, which: int, x: Float[Tensor, "n d_model"], side: Side) -> tuple[Tensor, Bool[Tensor, " n"]]:
        """Vectors of lens 0 or 1 as unit vectors `[n_kept, rank]`, and which were kept: those whose scores vary over tokens."""
        kernel = self._kernel("write" if self._one_side else side)
        root = (kernel.root_a, kernel.root_b)[which]
        x = self.lenses[which].space.vectors(x, side)
        units, kept = _normalised(x.to(root) @ root, x.to(root), kernel.largest[which])
        # The link is taken by the wider model's vectors: what is left to multiply is as narrow as can be.
        from_a = kernel.link.shape[0] >= kernel.link.shape[1]
        if which == 0 and from_a:
            units = units @ kernel.link
        elif which == 1 and not from_a:
            units = units @ kernel.link.T
        return units, kept

    def _make_kernel(self, side: Side) -> Kernel:
        rows_a, rows_b = (shared_rows(lens, side, ids) for lens, ids in zip(self.lenses, self.ids))
        gram_a, gram_b, between = _moments(rows_a, rows_b)
        root_a, inverse_a, largest_a = _root(gram_a)
        root_b, inverse_b, largest_b = _root(gram_b)
        link = inverse_a.T @ between @ inverse_b
        # All products happen where a's embeddings are.
        root_a, root_b, link = (m.to(device=rows_a.device, dtype=self._dtype) for m in (root_a, root_b, link))
        return Kernel(root_a, root_b, link, (largest_a, largest_b))


class InResidual:
    """Correlations over the coordinates of the residual stream: the baseline, which says nothing but for one basis.

    Raises:
        EmbspaceError: If the two models differ in width.
    """

    def __init__(self, a: EmbeddingLens, b: EmbeddingLens) -> None:
        require_lenses(a, b)
        if a.weights.d_model != b.weights.d_model:
            raise EmbspaceError(
                f"space='residual' compares coordinates, but {a.name} has d_model={a.weights.d_model} and {b.name} "
                f"d_model={b.weights.d_model}. Models of any widths meet in space='embedding'."
            )
        self.lenses = (a, b)
        self.n_tokens: int | None = None
        self._dtype = _dtype(a, b)

    def units(self, which: int, x: Float[Tensor, "n d_model"], side: Side) -> tuple[Tensor, Bool[Tensor, " n"]]:
        """Vectors of either lens, centred and of length 1, and which were kept: those whose coordinates differ."""
        if not torch.isfinite(x).all():
            raise not_finite(f"the weights of {self.lenses[which].name}")
        x = x.to(device=self.lenses[0].space.rows(side).device, dtype=self._dtype)
        return _normalised(x - x.mean(dim=1, keepdim=True), x, 1.0)


Meeting = InVocabulary | InResidual
SPACES = {"embedding": InVocabulary, "residual": InResidual}


def meet(a: Any, b: Any, space: Any) -> Meeting:
    """The space, by its name, that two lenses are compared in."""
    require_lenses(a, b)
    if space not in SPACES:
        raise choice("space", space, SPACES)
    return SPACES[space](a, b)


def units_at(meeting: Meeting, which: int, weight: str, place: WeightIndex) -> tuple[Tensor, Bool[Tensor, " n"]]:
    """A weight's directions in lens 0 or 1 as unit vectors, all heads together, and which were kept."""
    x = meeting.lenses[which].weights.directions(weight, *place)
    return meeting.units(which, x.reshape(-1, x.shape[-1]), side_of(weight))


def _dtype(a: EmbeddingLens, b: EmbeddingLens) -> torch.dtype:
    """The precision in which the two are compared: that of the finer one's embeddings, float32 at least."""
    return torch.promote_types(a.space.read.dtype, b.space.read.dtype)


def _normalised(projected: Tensor, x: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Rows of length 1, without those that are nothing but rounding; which are left."""
    length = torch.linalg.vector_norm(projected, dim=1)
    kept = length > (ROUNDING * largest) ** 0.5 * torch.linalg.vector_norm(x, dim=1).to(length.device)
    return projected[kept] / length[kept, None], kept.cpu()


def _moments(rows_a: Subset, rows_b: Subset) -> tuple[Tensor, Tensor, Tensor]:
    """Ē_aĒ_aᵀ, Ē_bĒ_bᵀ and Ē_aĒ_bᵀ in float64, a tile of tokens at a time."""
    n, d_a = rows_a.shape
    total = mean = torch.zeros((), dtype=torch.float64)
    for tile in chunks(n, 8 * (d_a + rows_b.shape[1])):
        a = float64(rows_a[tile])
        both = torch.cat([a, float64(rows_b[tile]).to(a.device)], dim=1)
        total, mean = total.to(a.device) + both.T @ both, mean.to(a.device) + both.sum(dim=0) / n
    total = total - n * torch.outer(mean, mean)
    return total[:d_a, :d_a], total[d_a:, d_a:], total[:d_a, d_a:]


def _root(gram: Tensor) -> tuple[Tensor, Tensor, float]:
    """R with R Rᵀ = gram, its pseudo-inverse transposed, and gram's largest eigenvalue; without directions of rounding."""
    values, vectors = torch.linalg.eigh(gram)
    largest = max(float(values[-1]), 0.0)
    real = values > ROUNDING * largest
    values, vectors = values[real].sqrt(), vectors[:, real]
    return vectors * values, vectors / values, largest
