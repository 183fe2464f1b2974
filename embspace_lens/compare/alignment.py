"""Alignment: which layer of one model is which of another."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm

from ..errors import EmbspaceError
from ..lens import EmbeddingLens
from ..tables.frames import tidy
from ..tables.selection import weight_names
from ..weights.effective import ATTENTION, MLP, WeightIndex
from ..weights.indices import weight_indices
from .correlation_space import Meeting, meet, units_at

TILE = 2048  # vectors of either model multiplied at a time
HELD_BYTES = 2**28  # of the first model's vectors kept while the second's pass by


@dataclass(frozen=True, eq=False, repr=False)
class Alignment:
    """How alike the layers of two models are, weight by weight, and which belongs to which.

    Attributes:
        name_a: The first model.
        name_b: The second.
        space: Where they were compared, `"embedding"` or `"residual"`.
        n_tokens: How many tokens they share; None in residual space, where no token counts.
        correlation: One row per (weight, layer_a, layer_b), with `correlation`: the mean |Pearson| of all pairs of vectors, one
            of each layer; NaN where a layer holds no vector that varies.
        matches: One row per (weight, layer_a), with `layer_b` and `correlation`: the assignment of layers to layers, each taken
            once, that has the largest sum. Layers that are left over, or that hold nothing but zeros, have no row.

    Example:
        >>> align(lens, other, weights="W_O")
        Alignment(reviews-small-0 × reviews-small-1: 4 × 4 layers, 7,168 shared tokens; W_O 4 of 4 layers with their own number)
    """

    name_a: str
    name_b: str
    space: str
    n_tokens: int | None
    correlation: pd.DataFrame
    matches: pd.DataFrame

    def __repr__(self) -> str:
        rows = self.on_diagonal().to_dict("records")
        n_a, n_b = (self.correlation[name].nunique() for name in ("layer_a", "layer_b"))
        where = "residual space" if self.n_tokens is None else f"{self.n_tokens:,} shared tokens"
        found = ", ".join(f"{row['weight']} {row['n_matched']} of {row['n_layers']}" for row in rows)
        return f"Alignment({self.name_a} × {self.name_b}: {n_a} × {n_b} layers, {where}; {found} layers with their own number)"

    def on_diagonal(self) -> pd.DataFrame:
        """Count the layers that are matched with the layer of their own number.

        Returns:
            One row per (weight), with `n_layers` (those that both models have), `n_matched`, `chance` (how many of them an
            assignment at random matches on average: 1 where both models are of one depth) and `correlation`, the mean over
            the whole assignment.
        """

        def row(weight: Any) -> dict[str, Any]:
            compared = self.correlation.loc[
                (self.correlation["weight"] == weight) & self.correlation["correlation"].notna()
            ]
            layers_a, layers_b = set(compared["layer_a"]), set(compared["layer_b"])
            matches = self.matches.loc[self.matches["weight"] == weight]
            return {
                "weight": weight,
                "n_layers": len(layers_a & layers_b),
                "n_matched": np.count_nonzero(matches["layer_a"] == matches["layer_b"]),
                "chance": len(layers_a & layers_b) / max(len(layers_a), len(layers_b), 1),
                "correlation": matches["correlation"].mean(),
            }

        columns = ["weight", "n_matched", "n_layers", "chance", "correlation"]
        return tidy(columns, map(row, self.correlation["weight"].unique()))

    def plot(self, **options: Any) -> Any:
        """Draw a map of layers and layers for every weight, with the assignment marked.

        Args:
            **options: As for `show.plot_alignment`.

        Returns:
            A plotly figure.

        Raises:
            EmbspaceError: If plotly is not installed.
        """
        from ..plots.alignment_maps import plot_alignment

        return plot_alignment(self, **options)


def align(a: EmbeddingLens, b: EmbeddingLens, *, weights: Any = None, space: str = "embedding") -> Alignment:
    r"""Compare every layer of one model with every layer of another.

    Two layers are as alike as their vectors correlate, over all pairs (i, j) of one of each:

    .. math:: s(l, m) = \frac{1}{n_l n_m} \sum_{i, j} |r(x_i E_a, y_j E_b)|

    with r the Pearson correlation over the tokens that the two share, through the d×d kernels of `meeting.InVocabulary`:
    nothing of the vocabulary's size is made for a vector. Layers are then assigned to each other, every one once, so that the
    sum is largest (Hungarian algorithm). Each model is read as its lens reads it: space, norms, token mask and score are its
    own (a correlation makes `"dot"` and `"centered"` the same). Vectors whose scores do not vary have no correlation and are
    left out, zeros above all. Experts of a mixture count as one layer; query heads that share a key head count it repeatedly,
    which changes no mean.

    Args:
        a: One model's lens.
        b: The other's. Models may differ in depth, width and tokenizer.
        weights: `"W_in"`, `"W_gate"`, `"W_out"`, `"W_Q"`, `"W_K"`, `"W_V"`, `"W_O"`, or several; by default all that can be
            read in both.
        space: `"embedding"`, or `"residual"` for the baseline: correlations over the d_model coordinates of the vectors
            themselves, which are the same in both models only by chance.

    Returns:
        An `Alignment`, with `correlation`, `matches`, `on_diagonal()` and `plot()`.

    Raises:
        EmbspaceError: If a or b is not a lens, the two share fewer than 100 tokens, a weight is missing in one, or the widths
            differ in residual space.

    Example:
        >>> align(lens, other, weights="W_V").matches[["layer_a", "layer_b"]].values.tolist()
        [[0, 0], [1, 1], [2, 2], [3, 3]]

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §4.2 and Appendix. https://arxiv.org/abs/2209.02535
    """
    meeting = meet(a, b, space)
    where = _places_of_both(a, b, weights)
    correlation, matches = [], []
    total = sum(len(places_a) * len(places_b) for places_a, places_b in where.values())
    with tqdm(total=total, desc="align", unit="pair of layers", disable=None, leave=False) as bar:
        for weight, (places_a, places_b) in where.items():
            layers_a, layers_b = (sorted({layer for layer, _ in some}) for some in (places_a, places_b))
            table = _mean_correlations(meeting, weight, places_a, places_b, bar)
            grid = np.array([[table[one, other] for other in layers_b] for one in layers_a])
            correlation.append(
                {
                    "weight": [weight] * grid.size,
                    "layer_a": np.repeat(layers_a, len(layers_b)),
                    "layer_b": np.tile(layers_b, len(layers_a)),
                    "correlation": grid.flatten(),
                }
            )
            row, column = _assigned(grid)
            matches.append(
                {
                    "weight": [weight] * len(row),
                    "layer_a": np.asarray(layers_a)[row],
                    "layer_b": np.asarray(layers_b)[column],
                    "correlation": grid[row, column],
                }
            )
    columns = ["weight", "layer_a", "layer_b", "correlation"]
    return Alignment(a.name, b.name, space, meeting.n_tokens, tidy(columns, correlation), tidy(columns, matches))


def _places_of_both(
    a: EmbeddingLens, b: EmbeddingLens, names: Any
) -> dict[str, tuple[list[WeightIndex], list[WeightIndex]]]:
    """The weights to compare, each with where either model has it."""
    found, reason = {}, ""
    for weight in weight_names(names, (*MLP, *ATTENTION)):
        try:
            found[weight] = weight_indices(a.weights, weight), weight_indices(b.weights, weight)
            for lens, indices in zip((a, b), found[weight]):
                lens.weights.stored(weight, *indices[0])
        except EmbspaceError as lacking:
            if names is not None:
                raise
            reason = str(lacking)
    if not found:
        said = f" {reason}" if reason else ""
        raise EmbspaceError(f"{a.name} and {b.name} have no weight to compare that can be read in both.{said}")
    return found


def _mean_correlations(
    meeting: Meeting, weight: str, places_a: Sequence[WeightIndex], places_b: Sequence[WeightIndex], bar: tqdm
) -> dict[tuple[int, int], float]:
    """Mean |r| of every pair of layers; NaN where one of them has no vectors."""
    sums: dict[tuple[int, int], Tensor] = {}
    counts: dict[tuple[int, int], int] = {}
    for held in _held(_vectors(meeting, 0, weight, places_a)):
        for layer_b, y in _vectors(meeting, 1, weight, places_b):
            for layer_a, x in held:
                pair = (layer_a, layer_b)
                sums[pair] = sums.get(pair, 0.0) + _sum_of_sizes(x, y)
                counts[pair] = counts.get(pair, 0) + len(x) * len(y)
                bar.update()
    return {pair: float(total) / counts[pair] if counts[pair] else float("nan") for pair, total in sums.items()}


def _vectors(meeting: Meeting, which: int, weight: str, where: Sequence[WeightIndex]) -> Iterator[tuple[int, Tensor]]:
    return ((place[0], units_at(meeting, which, weight, place)[0]) for place in where)


def _held(vectors: Iterable[tuple[int, Tensor]]) -> Iterator[list[tuple[int, Tensor]]]:
    """As many of them at a time as memory is meant to hold, one at least."""
    held, size = [], 0
    for layer, x in vectors:
        more = x.numel() * x.element_size()
        if held and size + more > HELD_BYTES:
            yield held
            held, size = [], 0
        held, size = [*held, (layer, x)], size + more
    if held:
        yield held


def _sum_of_sizes(x: Tensor, y: Tensor) -> Tensor:
    """The sum of |r| over all pairs, by the tile."""
    total = torch.zeros((), dtype=torch.float64)
    for some in x.split(TILE):
        tiles = [(some @ others.T).abs_().sum() for others in y.split(TILE)]
        total = total + (torch.stack(tiles).cpu().double().sum() if tiles else 0.0)
    return total


def _assigned(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the assignment with the largest sum, without those that hold no number."""
    number = np.isfinite(grid)
    rows, columns = np.flatnonzero(number.any(axis=1)), np.flatnonzero(number.any(axis=0))
    row, column = linear_sum_assignment(grid[np.ix_(rows, columns)], maximize=True)
    return rows[row], columns[column]
