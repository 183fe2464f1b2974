"""Lists of tokens compared as sets, and how sure their means are: what the measurements share."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import errors
from ..space.embedding_space import EmbeddingSpace
from ..weights.effective import Side

RESAMPLES = 1000
TILE = 2**22  # numbers compared or drawn at a time
MIDDLE = (0.025, 0.975)


def strongest_tokens(space: EmbeddingSpace, x: Float[Tensor, "n d_model"], side: Side, k: int) -> Int[Tensor, "n k"]:
    """The k tokens of largest absolute score of every vector, as ascending ids."""
    high, high_ids = space.top(x, side, k, largest=True)
    low, low_ids = space.top(x, side, k, largest=False)
    # The sort is stable: a token that is in both lists, at a score of 0, is taken from the first alone.
    order = torch.cat([high, -low], 1).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.cat([high_ids, low_ids], 1).gather(1, order).sort(dim=1).values.int()


def n_found(ascending: Int[Tensor, "n m"], tokens: Int[Tensor, "n k"]) -> Int[Tensor, " n"]:
    """How many of the tokens of each row, all different, are in that row of the ascending lists."""
    place = torch.searchsorted(ascending, tokens.contiguous()).clamp(max=ascending.shape[1] - 1)
    return (ascending.gather(1, place) == tokens).sum(1)


def jaccard(a: Int[Tensor, "n k"], b: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
    r"""$|A \cap B| / |A \cup B|$ of ascending lists of k different tokens each, row by row."""
    k = a.shape[1]
    step = max(1, TILE // k)
    shared = torch.cat([n_found(*rows) for rows in zip(a.split(step), b.split(step))]).double()
    return shared / (2 * k - shared)


def partners(n: int, seed: int) -> Int[Tensor, " n"]:
    """A random other one for each of n things; never itself, as long as there are others."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def check_seeds(seeds: object) -> int:
    """The number of shuffles; one alone would have no interval.

    Raises:
        EmbspaceError: If it is not a number of two or more.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int | np.integer) or seeds < 2:
        raise errors.EmbspaceError(
            f"seeds={seeds!r} is not a number of shuffles that has an interval. Give 2 or more; 20 is the default."
        )
    return int(seeds)


def bootstrap_interval(totals: Float[Tensor, " n"], counts: Int[Tensor, " n"] | None = None) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over n units (or groups: their totals and counts); NaN for one unit."""
    from scipy.stats import bootstrap

    if len(totals) < 2:
        return float("nan"), float("nan")
    both = totals.double().numpy(), (torch.ones_like(totals) if counts is None else counts).double().numpy()
    found = bootstrap(
        both,
        lambda total, count, axis: total.sum(axis=axis) / count.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, TILE // len(totals)),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def middle(means: list[float]) -> tuple[float, float]:
    """Between which values the middle 95 % of the shuffles' means lie."""
    low, high = np.quantile(means, MIDDLE)
    return float(low), float(high)
