"""Related pairs: do the two parameters of one unit share their tokens?"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..lens import EmbeddingLens
from ..tables.checks import check_k
from ..tables.frames import tidy
from ..tables.selection import Select
from ..weights.effective import side_of
from .layer_directions import directions, layers_with
from .token_lists import bootstrap_interval, check_seeds, jaccard, middle, partners, strongest_tokens

PAIRS = {
    "W_Q-W_K": ("W_Q", "W_K"),
    "W_V-W_O": ("W_V", "W_O"),
    "W_gate-W_out": ("W_gate", "W_out"),
    "W_in-W_out": ("W_in", "W_out"),
}
"""Weights whose units meet one to one: sub-head i with sub-head i of its head, neuron with itself."""


def related_pairs(
    lens: EmbeddingLens,
    *,
    k: int = 100,
    layer: Select = None,
    pairs: str | Sequence[str] | None = None,
    seeds: int = 20,
) -> pd.DataFrame:
    r"""Measure how many top tokens the two parameters of one unit share, against partners shuffled within the layer.

    A neuron's key and value, and a sub-head's two sides, are read as their k tokens of largest absolute score:

    .. math:: J = \frac{1}{n} \sum_{i=1}^{n} \frac{|A_i \cap B_i|}{|A_i \cup B_i|}, \qquad
              A_i = \operatorname{top}_k |w_i E'|, \quad B_i = \operatorname{top}_k |v_i E|

    The control gives every $A_i$ the $B_j$ of another unit of the whole layer, of any head and any expert. Embeddings share
    directions, so two lists overlap by more than chance whoever they belong to: only what exceeds the control is evidence.

    Args:
        lens: The model; its space, token mask and score are those that count.
        k: How many tokens make a list.
        layer: Which blocks; all of them by default.
        pairs: `"W_in-W_out"` (key and value), `"W_gate-W_out"`, `"W_V-W_O"`, `"W_Q-W_K"`, or several; all that the model has
            by default. With grouped queries the heads of a group share their W_K and W_V. Rotary positions mix the sub-heads
            of W_Q and W_K two by two, so that there the pairing is only nearly one to one.
        seeds: How many shuffles make the control.

    Returns:
        One row per (layer, pair, sample) with `jaccard`, `low`, `high` and `n`, the number of units. For `sample` `"paired"`
        the interval is a bootstrap over the units; for `"shuffled"` it holds the middle 95 % of the shuffles.

    Raises:
        EmbspaceError: If the model has no such layer or pair, or fewer than k tokens are read.

    Example:
        >>> evidence.related_pairs(lens, k=5, layer=0, pairs="W_in-W_out")["sample"].tolist()
        ['paired', 'shuffled']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §4.1. https://arxiv.org/abs/2209.02535
    """
    k, seeds = check_k(k, lens.space.n_tokens), check_seeds(seeds)
    plan = _plan(lens, layer, pairs)

    def blocks() -> Iterator[dict[str, Any]]:
        needed = {number: sorted({w for name in names for w in PAIRS[name]}) for number, names in plan.items()}
        total = sum(map(len, needed.values()))
        with tqdm(total=total, desc="related pairs", unit="weight", disable=None, leave=False) as progress:
            for number, names in plan.items():
                lists = {}
                for weight in needed[number]:
                    lists[weight] = _lists(lens, weight, number, k)
                    progress.update()
                for name in names:
                    a, b = (lists[weight] for weight in PAIRS[name])
                    yield _paired_and_shuffled(a, b, seeds) | {"layer": number, "pair": name}

    return tidy(["layer", "pair", "sample", "jaccard", "low", "high", "n"], blocks())


def _plan(lens: EmbeddingLens, layer: Select, pairs: str | Sequence[str] | None) -> dict[int, list[str]]:
    """Which pairs to measure in which block; what the model lacks is left out unless it was asked for by name."""
    asked = [pairs] if isinstance(pairs, str) else pairs
    for name in asked or ():
        if name not in PAIRS:
            raise errors.choice("pairs", name, PAIRS)
    plan: dict[int, list[str]] = {}
    for name in [name for name in PAIRS if asked is None or name in asked]:
        for number in layers_with(lens, PAIRS[name][0], layer, asked is not None):
            plan.setdefault(number, []).append(name)
    if not plan:
        layers_with(lens, "W_in", layer, True)  # says what the model, or this layer of it, is without
    return dict(sorted(plan.items()))


def _lists(lens: EmbeddingLens, name: str, layer: int, k: int) -> Int[Tensor, "n k"]:
    side = side_of(name)
    return torch.cat([strongest_tokens(lens.space, x, side, k) for x in directions(lens.weights, name, layer)])


def _paired_and_shuffled(a: Int[Tensor, "n k"], b: Int[Tensor, "n k"], seeds: int) -> dict[str, Any]:
    """Both samples of one pair as two rows."""
    paired = jaccard(a, b)
    shuffled = [jaccard(a, b[partners(len(b), seed)]).mean().item() for seed in range(seeds)]
    intervals = np.array([bootstrap_interval(paired), middle(shuffled)])
    return {
        "sample": ["paired", "shuffled"],
        "jaccard": [paired.mean().item(), np.mean(shuffled)],
        "low": intervals[:, 0],
        "high": intervals[:, 1],
        "n": len(a),
    }
