"""Spaces shared by two models, in which inner products of unit vectors are Pearson correlations."""

from abc import ABC, abstractmethod
from functools import cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from .. import errors
from ..lens import EmbeddingLens
from ..search.tiles import Subset, chunks, float64
from ..tables.checks import check_choice
from ..weights.parameter_names import Side, WeightIndex, side_of
from .common_tokens import check_lens, shared_rows, shared_tokens

ROUNDING = 1e-10  # smaller variances, relative to the largest at the same norm, are rounding error

SpaceName = Literal["embedding", "residual"]
SPACES: tuple[SpaceName, ...] = ("embedding", "residual")
Which = Literal[0, 1]
"""The first or the second of two models."""


class CorrelationSpace(ABC):
    """A space into which the vectors of two models are mapped as unit vectors; inner products are Pearson correlations.

    Attributes:
        lenses: The two models' lenses.
        n_tokens: How many tokens the correlations are over; None if they are not over tokens.
    """

    lenses: tuple[EmbeddingLens, EmbeddingLens]
    n_tokens: int | None

    @abstractmethod
    def unit_vectors(
        self, which: Which, x: Float[Tensor, "n d_model"], side: Side
    ) -> tuple[Float[Tensor, "n_varying rank"], Bool[Tensor, " n"]]:
        """Map vectors of one model, without those that do not vary; and return which vary."""

    def weight_vectors(
        self, which: Which, weight: str, index: WeightIndex
    ) -> tuple[Float[Tensor, "n_varying rank"], Bool[Tensor, " n"]]:
        """Map a weight's directions in one model, all heads together; and return which vary."""
        x = self.lenses[which].weights.directions(weight, *index)
        return self.unit_vectors(which, x.reshape(-1, x.shape[-1]), side_of(weight))


class Kernel(NamedTuple):
    """The matrices that map both models' vectors, and the largest variance that a vector of length 1 has in each model."""

    root_a: Float[Tensor, "d_model_a rank_a"]
    root_b: Float[Tensor, "d_model_b rank_b"]
    link: Float[Tensor, "rank_a rank_b"]
    max_variance: tuple[float, float]


class VocabularySpace(CorrelationSpace):
    r"""Correlations over the vocabulary: each vector is scored by its own lens on the tokens that both lenses read.

    With $\bar E$ the embeddings minus their mean over the shared tokens, the correlation of two vectors is a bilinear form,
    so no vector's scores over the vocabulary are computed:

    .. math:: r(x, y) = \frac{x K y^\top}{\sqrt{x G_a x^\top}\sqrt{y G_b y^\top}}, \qquad K = \bar E_a \bar E_b^\top,
        \quad G_a = \bar E_a \bar E_a^\top, \quad G_b = \bar E_b \bar E_b^\top

    With roots $R R^\top = G$, a vector becomes $u = xR / |xR|$, and $r = u_a (R_a^+ K R_b^{+\top}) u_b^\top$. The singular
    values of the matrix in the middle are the canonical correlations of the two embeddings, at most 1. So float32 is exact
    enough.

    Raises:
        EmbspaceError: If the two models share too few tokens.
    """

    def __init__(self, a: EmbeddingLens, b: EmbeddingLens) -> None:
        self.lenses = (a, b)
        self.ids = shared_tokens(a, b)
        self.n_tokens = len(self.ids[0])
        self._dtype = _comparison_dtype(a, b)
        self._one_side = all(lens.space.read is lens.space.write for lens in self.lenses)
        self._kernel = cache(self._make_kernel)

    def unit_vectors(
        self, which: Which, x: Float[Tensor, "n d_model"], side: Side
    ) -> tuple[Float[Tensor, "n_varying rank"], Bool[Tensor, " n"]]:
        """Map vectors of one model, without those whose scores are the same for all tokens; and return which vary."""
        kernel = self._kernel("write" if self._one_side else side)
        root = (kernel.root_a, kernel.root_b)[which]
        x = self.lenses[which].space.vectors(x, side).to(root)
        unit, varies = _normalise(x @ root, x, kernel.max_variance[which])
        # The wider model's vectors are multiplied by the link, so that the products that follow are as narrow as possible.
        a_is_wider = kernel.link.shape[0] >= kernel.link.shape[1]
        if which == 0 and a_is_wider:
            unit = unit @ kernel.link
        elif which == 1 and not a_is_wider:
            unit = unit @ kernel.link.T
        return unit, varies

    def _make_kernel(self, side: Side) -> Kernel:
        rows_a, rows_b = (shared_rows(lens, side, ids) for lens, ids in zip(self.lenses, self.ids))
        gram_a, gram_b, cross = _centred_products(rows_a, rows_b)
        root_a, inverse_a, max_a = _root(gram_a)
        root_b, inverse_b, max_b = _root(gram_b)
        link = inverse_a.T @ cross @ inverse_b
        # All products are computed on the device of a's embeddings.
        root_a, root_b, link = (m.to(device=rows_a.device, dtype=self._dtype) for m in (root_a, root_b, link))
        return Kernel(root_a, root_b, link, (max_a, max_b))


class ResidualSpace(CorrelationSpace):
    """Correlations over the coordinates of the residual stream. This is the baseline: two models share no basis.

    Raises:
        EmbspaceError: If the two models differ in width.
    """

    def __init__(self, a: EmbeddingLens, b: EmbeddingLens) -> None:
        if a.weights.d_model != b.weights.d_model:
            raise errors.different_widths(a.name, a.weights.d_model, b.name, b.weights.d_model)
        self.lenses = (a, b)
        self.n_tokens = None
        self._dtype = _comparison_dtype(a, b)

    def unit_vectors(
        self, which: Which, x: Float[Tensor, "n d_model"], side: Side
    ) -> tuple[Float[Tensor, "n_varying d_model"], Bool[Tensor, " n"]]:
        """Centred and normalised vectors of one model, without constant vectors, and a mask of the rows kept."""
        if not torch.isfinite(x).all():
            raise errors.not_finite(f"the weights of {self.lenses[which].name}")
        x = x.to(device=self.lenses[0].space.rows(side).device, dtype=self._dtype)
        return _normalise(x - x.mean(dim=1, keepdim=True), x, 1.0)


def shared_space(a: EmbeddingLens, b: EmbeddingLens, space: SpaceName) -> CorrelationSpace:
    """The space, given by its name, in which two models are compared.

    Raises:
        EmbspaceError: If a or b is not a lens, or the two models cannot be compared in this space.
    """
    a, b = check_lens(a), check_lens(b)
    return VocabularySpace(a, b) if check_choice("space", space, SPACES) == "embedding" else ResidualSpace(a, b)


def _comparison_dtype(a: EmbeddingLens, b: EmbeddingLens) -> torch.dtype:
    """The precision of the more precise model's embeddings, float32 at least."""
    return torch.promote_types(a.space.read.dtype, b.space.read.dtype)


def _normalise(
    centred: Float[Tensor, "n rank"], x: Float[Tensor, "n d_model"], max_variance: float
) -> tuple[Float[Tensor, "n_varying rank"], Bool[Tensor, " n"]]:
    """Centred vectors divided by their lengths, without those that are rounding error, and a mask of the rows kept."""
    length = torch.linalg.vector_norm(centred, dim=1)
    varies = length > (ROUNDING * max_variance) ** 0.5 * torch.linalg.vector_norm(x, dim=1)
    return centred[varies] / length[varies, None], varies.cpu()


def _centred_products(
    rows_a: Subset, rows_b: Subset
) -> tuple[Float64[Tensor, "d_a d_a"], Float64[Tensor, "d_b d_b"], Float64[Tensor, "d_a d_b"]]:
    """Ē_aĒ_aᵀ, Ē_bĒ_bᵀ and Ē_aĒ_bᵀ, computed chunk by chunk over the tokens."""
    n, d_a = rows_a.shape
    products = sums = torch.zeros((), dtype=torch.float64)
    for chunk in chunks(n, 8 * (d_a + rows_b.shape[1])):
        x = float64(rows_a[chunk])
        x = torch.cat([x, float64(rows_b[chunk]).to(x.device)], dim=1)
        products, sums = products.to(x.device) + x.T @ x, sums.to(x.device) + x.sum(dim=0)
    products = products - torch.outer(sums, sums) / n
    return products[:d_a, :d_a], products[d_a:, d_a:], products[:d_a, d_a:]


def _root(
    gram: Float64[Tensor, "d_model d_model"],
) -> tuple[Float64[Tensor, "d_model rank"], Float64[Tensor, "d_model rank"], float]:
    """R with R Rᵀ = gram, its pseudo-inverse transposed, and gram's largest eigenvalue.

    Directions whose eigenvalue is rounding error are left out.
    """
    values, vectors = torch.linalg.eigh(gram)
    largest = max(float(values[-1]), 0.0)
    is_kept = values > ROUNDING * largest
    scale, vectors = values[is_kept].sqrt(), vectors[:, is_kept]
    return vectors * scale, vectors / scale, largest
