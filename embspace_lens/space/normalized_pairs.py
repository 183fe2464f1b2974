"""Pairs of tokens of heads that normalise queries and keys: products of rows that each have their own scale."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..search.tiles import Rows, chunks, float64
from ..search.tokens import top_tokens
from ..weights.query_key_norms import NormalizedCircuit, NormalizedProjection
from .embedding_space import EmbeddingSpace

Scales = tuple[Float[Tensor, " n"], Float[Tensor, " n"]]


class NormalizedRows:
    """Rows of a matrix next to each other, once for each term of a sum, and a constant column for each term.

    Row i is `[x_i s_i1, …, x_i s_it, c_i1, …, c_it]` for t terms with scales s and constants c.

    Args:
        rows: The matrix.
        scales: s.
        constants: c; None if no term has a bias.
    """

    def __init__(
        self, rows: Rows, scales: Float[Tensor, "n terms"], constants: Float[Tensor, "n terms"] | None = None
    ) -> None:
        self._rows, self._scales, self._constants = rows, scales, constants
        self.device = rows.device
        n_columns = rows.shape[1] + (constants is not None)
        self.shape = (rows.shape[0], n_columns * scales.shape[1])

    def __getitem__(self, index: slice | Tensor) -> Float[Tensor, "n d"]:
        rows, scales = self._rows[index], self._scales[index]
        parts = [rows * scales[:, term, None] for term in range(scales.shape[1])]
        if self._constants is not None:
            parts.append(self._constants[index])
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class NormalizedPairs:
    r"""The best pairs of tokens of a block's heads whose queries and keys are normalised.

    A norm is a linear map and a scale for each token, so that scores are a product of rows with scales:

    .. math:: s(i, j) = \frac{(e_i W_Q + b_Q)\, M_Q M_K^\top (e_j W_K + b_K)^\top}{\sigma_Q(e_i)\, \sigma_K(e_j)}

    For the score `"cosine"`, :math:`\sigma` is the norm of the normalised query or key; the score of a difference of two models
    is then half the difference of their cosines.

    Args:
        space: The embedding space; its reading side is read.
        circuits: The circuits whose scores are added; their block is the same.
    """

    def __init__(self, space: EmbeddingSpace, circuits: Sequence[NormalizedCircuit]) -> None:
        self._space, self._circuits = space, circuits
        # Scales of the last group of each term and side: the heads of a query group share the scales of their keys.
        self._last: dict[tuple[int, str], tuple[int, Scales]] = {}

    def top(
        self, head: int, k: int, *, largest: bool = True, excluded: Int[Tensor, " p"] | None = None
    ) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"], Int[Tensor, " k"]]:
        """The best k pairs of a head: scores, query token ids, key token ids; `excluded` as in `EmbeddingSpace.top_pairs`."""
        queries, left = self._side("query", head)
        keys, right = self._side("key", head)
        sides = ("read", "read")
        return self._space.best_pairs(queries, left, right, keys, sides, k, largest=largest, excluded=excluded)

    def top_partners(
        self, row: Float[Tensor, " d_model"], *, largest: bool = True
    ) -> tuple[Float[Tensor, " n_heads"], Int[Tensor, " n_heads"]]:
        """For each head, the best query token if the key is a given row, such as a token's embedding: scores and token ids."""
        best = []
        for head in range(self._circuits[0].weights.n_heads):
            queries, left = self._side("query", head)
            keys, right = self._side("key", head, row[None])
            x = (keys[:1] @ right) @ left.T
            best.append(top_tokens(x, queries, 1, largest=largest))
        scores, index = (torch.cat(parts)[:, 0].cpu() for parts in zip(*best, strict=True))
        scores = scores.clamp(-1, 1) if self._space.score == "cosine" else scores
        return scores, self._space.ids("read")[index]

    def _side(
        self, side: Literal["query", "key"], head: int, x: Float[Tensor, "n d_model"] | None = None
    ) -> tuple[NormalizedRows, Float[Tensor, "d rank"]]:
        """The rows of one side, and the factor that maps them to normalised queries or keys; for other rows x if given."""
        rows = self._space.rows("read")
        projections = [getattr(circuit, side)(head) for circuit in self._circuits]
        if x is None:
            scales = [self._scales(term, side, projection) for term, projection in enumerate(projections)]
        else:
            scales = [self._scales_of(x, projection) for projection in projections]
        factors, biases = [], []
        for projection in projections:
            weight, bias, output = (x if x is None else x.to(rows.device, rows.dtype) for x in projection[:3])
            assert weight is not None and output is not None
            if side == "query" and self._space.score == "cosine":
                output = output / len(projections)  # the mean of several cosines is between −1 and 1
            factors.append(self._space.inverted(weight.T, "read").T @ output)
            biases.append(weight.new_zeros(1, output.shape[1]) if bias is None else bias[None] @ output)
        row_scales, constants = (torch.stack(part, dim=1) for part in zip(*scales, strict=True))
        if not any(projection.bias is not None for projection in projections):
            return NormalizedRows(rows if x is None else x, row_scales), torch.block_diag(*factors)
        factor = torch.cat([torch.block_diag(*factors), torch.block_diag(*biases)])
        return NormalizedRows(rows if x is None else x, row_scales, constants), factor

    def _scales(self, term: int, side: str, projection: NormalizedProjection) -> Scales:
        """For each token, the factor of its embedding and the factor of the bias."""
        is_cosine = self._space.score == "cosine"
        group = projection.output_group if is_cosine else projection.scale_group
        last = self._last.get((term, side))
        if last is None or last[0] != group:
            rows = self._space.rows("read")
            parts = [self._scales_of(rows[chunk], projection) for chunk in chunks(len(rows), 32 * self._space.d_model)]
            scale, constant = (torch.cat(part) for part in zip(*parts, strict=True))
            self._last[term, side] = last = (group, (scale, constant))
        return last[1]

    def _scales_of(self, rows: Float[Tensor, "n d_model"], projection: NormalizedProjection) -> Scales:
        squared_scale = _squared_norm if self._space.score == "cosine" else _mean_square
        # In float64, equal embeddings have equal scales wherever they are in a chunk.
        x = float64(self._space.inverted(rows, "read"))
        length = _length(x, projection)
        scale = _inverse(squared_scale(x * _inverse(length.square())[:, None], projection))
        return (scale * _inverse(length.square())).to(rows), scale.to(rows)


def _inverse(squared_scale: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1/σ from σ²; 0 for 0, so that a vector of zeros remains zero."""
    return torch.where(squared_scale > 0, squared_scale.rsqrt(), 0)


def _length(x: Float[Tensor, "n d_model"], projection: NormalizedProjection) -> Float[Tensor, " n"]:
    """The root mean square of the vectors, as the norm before attention computes it; 1 without such a norm."""
    if projection.length == "one":
        return torch.ones_like(x[:, 0])
    centred = x - x.mean(dim=1, keepdim=True) if projection.length == "centred rms" else x
    return centred.square().mean(dim=1).sqrt()


def _mean_square(x: Float[Tensor, "n d_model"], projection: NormalizedProjection) -> Float[Tensor, " n"]:
    """σ² of normalised vectors: the mean square over d_head, or over all heads, plus ε."""
    total = torch.zeros_like(x[:, 0])
    for head, weight in enumerate(projection.scale_weights):
        y = x @ weight.to(x)
        if projection.scale_biases is not None:
            y = y + projection.scale_biases[head].to(x)
        total = total + y.square().mean(dim=1)
    return total / len(projection.scale_weights) + projection.eps


def _squared_norm(x: Float[Tensor, "n d_model"], projection: NormalizedProjection) -> Float[Tensor, " n"]:
    """The squared norm of the head's query or key, up to its scale."""
    y = x @ projection.weight.to(x)
    y = y if projection.bias is None else y + projection.bias.to(x)
    return (y @ projection.output.to(x)).square().sum(dim=1)
