"""Alignment: which layers of two models correspond to each other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..errors import EmbspaceError
from ..lens import EmbeddingLens
from ..search.tiles import chunk_rows, chunks
from ..tables.frames import tidy
from ..tables.selection import weight_names
from ..weights.indices import weight_indices
from ..weights.parameter_names import ATTENTION, MLP, WeightIndex
from .correlation_space import CorrelationSpace, SpaceName, Which, shared_space

LayerVectors = tuple[int, Float[Tensor, "n rank"]]
"""A layer's number and its unit vectors in the shared space."""


@dataclass(frozen=True, eq=False, repr=False)
class Alignment:
    """The similarity of every pair of layers of two models, weight by weight, and the assignment of layers to layers.

    Attributes:
        name_a: The first model's name.
        name_b: The second model's name.
        space: The space in which they were compared, `"embedding"` or `"residual"`.
        n_tokens: How many tokens they share; None in residual space, which has no tokens.
        correlation: One row per (weight, layer_a, layer_b), with `correlation`: the mean |Pearson correlation| over all pairs of
            a vector of one layer and a vector of the other. NaN if a layer has no vector that varies.
        matches: One row per (weight, layer_a), with `layer_b` and `correlation`: the assignment with the largest sum in which
            every layer is used at most once. Layers without a partner, and layers of zeros, have no row.

    Example:
        >>> alignment = align(lens, other, weights="W_O")
        >>> alignment.space
        'embedding'
    """

    name_a: str
    name_b: str
    space: SpaceName
    n_tokens: int | None
    correlation: pd.DataFrame
    matches: pd.DataFrame

    def __repr__(self) -> str:
        rows = self.on_diagonal().to_dict("records")
        n_a, n_b = (self.correlation[name].nunique() for name in ("layer_a", "layer_b"))
        space = "residual space" if self.n_tokens is None else f"{self.n_tokens:,} shared tokens"
        counts = ", ".join(
            f"{row['weight']} {row['n_nearest']} / {row['n_matched']} of {row['n_layers']}" for row in rows
        )
        return (
            f"Alignment({self.name_a} × {self.name_b}: {n_a} × {n_b} layers, {space}; "
            f"layers with the same number, nearest / matched: {counts})"
        )

    def on_diagonal(self) -> pd.DataFrame:
        """Count the layers whose nearest layer, and whose match, is the layer of the same number.

        A layer's nearest layer is the one with the largest correlation, and several layers can have the same nearest layer. The
        assignment uses each layer once, so `n_matched` can be larger than `n_nearest`.

        Returns:
            One row per (weight), with `n_nearest`, `n_matched`, `n_layers` (the layers that both models have), `chance` (how
            many of them a random assignment matches on average: 1 for models of the same depth) and `correlation`, the mean
            over the whole assignment.

        Example:
            >>> counts = align(lens, other, weights="W_V").on_diagonal()
            >>> counts[["n_nearest", "n_matched", "n_layers"]].values.tolist()
            [[1, 4, 4]]
        """

        def row(weight: Any) -> dict[str, Any]:
            compared = self.correlation.loc[
                (self.correlation["weight"] == weight) & self.correlation["correlation"].notna()
            ]
            layers_a, layers_b = set(compared["layer_a"]), set(compared["layer_b"])
            nearest = compared.loc[compared.groupby("layer_a")["correlation"].idxmax()]
            matches = self.matches.loc[self.matches["weight"] == weight]
            return {
                "weight": weight,
                "n_layers": len(layers_a & layers_b),
                "n_nearest": np.count_nonzero(nearest["layer_a"] == nearest["layer_b"]),
                "n_matched": np.count_nonzero(matches["layer_a"] == matches["layer_b"]),
                "chance": len(layers_a & layers_b) / max(len(layers_a), len(layers_b), 1),
                "correlation": matches["correlation"].mean(),
            }

        columns = ["weight", "n_nearest", "n_matched", "n_layers", "chance", "correlation"]
        return tidy(columns, map(row, self.correlation["weight"].unique()))

    def plot(self, **options: Any) -> Any:
        """Draw a map of layer × layer for every weight, with the assignment marked.

        Args:
            **options: As for `plots.plot_alignment`.

        Returns:
            A plotly figure.

        Raises:
            EmbspaceError: If plotly is not installed.
        """
        return self.correlation.embspace.plot(alignment=self, **options)


def align(
    a: EmbeddingLens,
    b: EmbeddingLens,
    *,
    weights: str | Sequence[str] | None = None,
    space: SpaceName = "embedding",
) -> Alignment:
    r"""Compare every layer of one model with every layer of another, and assign layers to layers.

    The similarity of two layers is the mean absolute correlation of their vectors, over all pairs (i, j):

    .. math:: s(l, m) = \frac{1}{n_l n_m} \sum_{i, j} |r(x_i E_a, y_j E_b)|

    Here r is the Pearson correlation over the shared tokens. It is computed through d × d kernels (see
    `correlation_space.VocabularySpace`), so no vector is projected to the vocabulary. The assignment uses every layer at most
    once and has the largest sum (Hungarian algorithm).

    Each model is read with its lens's space, norms, token mask and score; `"dot"` and `"centered"` give the same correlation.
    Vectors whose scores do not vary, such as zeros, have no correlation and are left out. The experts of a mixture count as
    one layer. A key-value head is counted once for each query head that shares it; this does not change the means.

    Args:
        a: The first model's lens.
        b: The second model's lens. The models may differ in depth, width and tokenizer.
        weights: `"W_in"`, `"W_gate"`, `"W_out"`, `"W_Q"`, `"W_K"`, `"W_V"`, `"W_O"`, or several; by default all that can be
            read in both models.
        space: `"embedding"`, or `"residual"` for the baseline: correlations over the d_model coordinates of the vectors
            themselves, which have no common meaning in two models.

    Returns:
        An `Alignment`, with `correlation`, `matches`, `on_diagonal()` and `plot()`.

    Raises:
        EmbspaceError: If a or b is not a lens, the models share fewer than 100 tokens, one model lacks a weight that was named,
            or their widths differ in residual space.

    Example:
        >>> matches = align(lens, lens, weights="W_V").matches
        >>> bool((matches["layer_a"] == matches["layer_b"]).all())
        True

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §5. https://arxiv.org/abs/2209.02535
    """
    common = shared_space(a, b, space)
    indices = _comparable_indices(a, b, weights)
    correlation, matches = [], []
    n_pairs = sum(len(indices_a) * len(indices_b) for indices_a, indices_b in indices.values())
    with tqdm(total=n_pairs, desc="align", unit="pair of layers", disable=None, leave=False) as bar:
        for weight, (indices_a, indices_b) in indices.items():
            means = _mean_correlations(common, weight, indices_a, indices_b, bar)
            layers_a, layers_b = (np.unique([index.layer for index in some]) for some in (indices_a, indices_b))
            grid = np.array([[means[layer_a, layer_b] for layer_b in layers_b] for layer_a in layers_a])
            correlation.append(
                {
                    "weight": [weight] * grid.size,
                    "layer_a": np.repeat(layers_a, len(layers_b)),
                    "layer_b": np.tile(layers_b, len(layers_a)),
                    "correlation": grid.flatten(),
                }
            )
            row, column = _assignment(grid)
            matches.append(
                {
                    "weight": [weight] * len(row),
                    "layer_a": layers_a[row],
                    "layer_b": layers_b[column],
                    "correlation": grid[row, column],
                }
            )
    columns = ["weight", "layer_a", "layer_b", "correlation"]
    table = tidy(columns, correlation, kind="alignment")
    return Alignment(a.name, b.name, space, common.n_tokens, table, tidy(columns, matches))


def _comparable_indices(
    a: EmbeddingLens, b: EmbeddingLens, names: str | Sequence[str] | None
) -> dict[str, tuple[list[WeightIndex], list[WeightIndex]]]:
    """The weights to compare, each with its indices in both models; by default those that can be read in both.

    Raises:
        EmbspaceError: If a weight that was named cannot be read in one model, or no weight can be read in both.
    """
    indices, reason = {}, ""
    for weight in weight_names(names, (*MLP, *ATTENTION)):
        try:
            both = weight_indices(a.weights, weight), weight_indices(b.weights, weight)
            for lens, one in zip((a, b), both):
                lens.weights.stored(weight, *one[0])  # raises for weights that cannot be read, such as latent attention
        except EmbspaceError as error:
            if names is not None:
                raise
            reason = str(error)
        else:
            indices[weight] = both
    if not indices:
        raise errors.no_common_weight(a.name, b.name, reason)
    return indices


def _mean_correlations(
    common: CorrelationSpace,
    weight: str,
    indices_a: Sequence[WeightIndex],
    indices_b: Sequence[WeightIndex],
    bar: tqdm,
) -> dict[tuple[int, int], float]:
    """Mean |r| of every pair of layers; NaN if one of them has no vectors."""
    sums: dict[tuple[int, int], float] = {}
    counts: dict[tuple[int, int], int] = {}
    # For each batch of a's layers, all layers of b are read again.
    for batch in _batches(_layer_vectors(common, 0, weight, indices_a)):
        for layer_b, y in _layer_vectors(common, 1, weight, indices_b):
            for layer_a, x in batch:
                pair = (layer_a, layer_b)
                sums[pair] = sums.get(pair, 0.0) + float(_sum_of_absolute_products(x, y))
                counts[pair] = counts.get(pair, 0) + len(x) * len(y)
                bar.update()
    return {pair: total / counts[pair] if counts[pair] else float("nan") for pair, total in sums.items()}


def _layer_vectors(
    common: CorrelationSpace, which: Which, weight: str, indices: Sequence[WeightIndex]
) -> Iterator[LayerVectors]:
    return ((index.layer, common.weight_vectors(which, weight, index)[0]) for index in indices)


def _batches(vectors: Iterable[LayerVectors]) -> Iterator[list[LayerVectors]]:
    """Layers whose vectors are held in memory together; at least one."""
    # 256 MiB by default: one weight of all layers of a small model, so that the other model is read once.
    max_bytes = chunk_rows(1, scale=16)
    batch, n_bytes = [], 0
    for layer, x in vectors:
        if batch and n_bytes + x.nbytes > max_bytes:
            yield batch
            batch, n_bytes = [], 0
        batch, n_bytes = [*batch, (layer, x)], n_bytes + x.nbytes
    if batch:
        yield batch


def _sum_of_absolute_products(x: Float[Tensor, "n_a rank"], y: Float[Tensor, "n_b rank"]) -> Float64[Tensor, ""]:
    """Σ |x_i · y_j| over all pairs, chunk by chunk."""
    total = torch.zeros((), dtype=torch.float64)
    for rows in chunks(len(x), x.element_size() * max(len(y), 1)):
        total += (x[rows] @ y.T).abs_().sum().cpu().double()
    return total


def _assignment(grid: Float64[np.ndarray, "n_a n_b"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Rows and columns of the assignment with the largest sum; rows and columns of NaN are left out."""
    is_number = np.isfinite(grid)
    rows, columns = np.flatnonzero(is_number.any(axis=1)), np.flatnonzero(is_number.any(axis=0))
    row, column = linear_sum_assignment(grid[np.ix_(rows, columns)], maximize=True)
    return rows[row], columns[column]
