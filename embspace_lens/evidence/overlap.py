"""Related pairs: the overlap of the top tokens of the two weights of a neuron or sub-head."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..lens import EmbeddingLens
from ..tables.checks import check_choice, check_integer, check_k
from ..tables.frames import tidy
from ..tables.intervals import bootstrap_interval, central_interval
from ..tables.selection import Select
from ..weights.parameter_names import side_of
from .layer_directions import directions_of, layers_of
from .token_lists import cyclic_permutation, jaccard, strongest_tokens

Pair = Literal["W_Q-W_K", "W_V-W_O", "W_gate-W_out", "W_in-W_out"]
PAIRS: dict[Pair, tuple[str, str]] = {
    "W_Q-W_K": ("W_Q", "W_K"),
    "W_V-W_O": ("W_V", "W_O"),
    "W_gate-W_out": ("W_gate", "W_out"),
    "W_in-W_out": ("W_in", "W_out"),
}
"""Weights whose directions are paired one to one: sub-head i with sub-head i of the same head, neuron i with neuron i."""


def related_pairs(
    lens: EmbeddingLens,
    *,
    k: int = 100,
    layer: Select = None,
    pairs: Pair | Sequence[Pair] | None = None,
    seeds: int = 20,
) -> pd.DataFrame:
    r"""Measure how many top tokens the two weights of a neuron or sub-head share, against shuffled pairs.

    Each weight is read as the k tokens with the largest absolute score. The measure is the mean Jaccard index of the n pairs:

    .. math:: J = \frac{1}{n} \sum_{i=1}^{n} \frac{|A_i \cap B_i|}{|A_i \cup B_i|}, \qquad
              A_i = \operatorname{top}_k |w_i E'|, \quad B_i = \operatorname{top}_k |v_i E|

    The shuffled control pairs every $A_i$ with the $B_j$ of another neuron or sub-head of the same layer, of any head and any
    expert. Embeddings share directions, so any two lists overlap by more than chance. Only overlap above the control is
    evidence.

    Args:
        lens: The model's lens; its space, token mask and score are used.
        k: How many tokens make a list.
        layer: Which blocks; all of them by default.
        pairs: `"W_in-W_out"` (key and value), `"W_gate-W_out"`, `"W_V-W_O"`, `"W_Q-W_K"`, or several; by default all that the
            model has. With grouped queries, the heads of a group share their W_K and W_V. Rotary positions mix the sub-heads
            of W_Q and W_K two by two, so there the pairs are only approximately one to one.
        seeds: The number of permutations in the shuffled control.

    Returns:
        One row per (layer, pair, sample), with `jaccard`, `low`, `high` and `n`, the number of neurons or sub-heads. For
        `sample` `"paired"` the interval is a 95 % bootstrap interval over them; for `"shuffled"` it holds the middle 95 % of
        the shuffles.

    Raises:
        EmbspaceError: If the model has no such layer or pair, or fewer than k tokens are read.

    Example:
        >>> related_pairs(lens, k=5, layer=0, pairs="W_in-W_out")["sample"].tolist()
        ['paired', 'shuffled']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space. https://arxiv.org/abs/2209.02535
    """
    k, seeds = check_k(k, lens.space.n_tokens), check_integer("seeds", seeds, minimum=2)
    pairs_of_layer = select_pairs(lens, layer, pairs)

    def blocks() -> Iterator[dict[str, Any]]:
        weights_of = {
            index: sorted({w for name in names for w in PAIRS[name]}) for index, names in pairs_of_layer.items()
        }
        n_weights = sum(map(len, weights_of.values()))
        with tqdm(total=n_weights, desc="related pairs", unit="weight", disable=None, leave=False) as bar:
            for index, names in pairs_of_layer.items():
                lists = {}
                for weight in weights_of[index]:
                    lists[weight] = token_lists_of(lens, weight, index, k)
                    bar.update()
                for name in names:
                    a, b = (lists[weight] for weight in PAIRS[name])
                    yield _paired_and_shuffled(a, b, seeds) | {"layer": index, "pair": name}

    columns = ["layer", "pair", "sample", "jaccard", "low", "high", "n"]
    return tidy(columns, blocks(), kind="related_pairs")


def select_pairs(lens: EmbeddingLens, layer: Select, pairs: Pair | Sequence[Pair] | None) -> dict[int, list[Pair]]:
    """The pairs to measure, by layer. Pairs that the model lacks are left out, or raise an error if they were named."""
    given = [pairs] if isinstance(pairs, str) else list(PAIRS if pairs is None else pairs)
    named: list[Pair] = [check_choice("pairs", name, PAIRS) for name in given]
    selected: dict[int, list[Pair]] = {}
    for name, (weight, _) in PAIRS.items():
        if name in named:
            for index in layers_of(lens.weights, weight, layer, required=pairs is not None):
                selected.setdefault(index, []).append(name)
    if not selected:
        raise errors.nothing_to_measure(lens.name, named)
    return dict(sorted(selected.items()))


def token_lists_of(lens: EmbeddingLens, weight: str, layer: int, k: int) -> Int[Tensor, "n k"]:
    """The top tokens of each direction of a weight in one layer."""
    side = side_of(weight)
    directions = directions_of(lens.weights, weight, layer)
    return torch.cat([strongest_tokens(lens.space, x, side, k) for x in directions])


def _paired_and_shuffled(a: Int[Tensor, "n k"], b: Int[Tensor, "n k"], seeds: int) -> dict[str, Any]:
    """The two rows of one layer and pair: paired, and shuffled."""
    paired = jaccard(a, b)
    shuffled = [jaccard(a, b[cyclic_permutation(len(b), seed)]).mean().item() for seed in range(seeds)]
    intervals = np.array([bootstrap_interval(paired), central_interval(shuffled)])
    return {
        "sample": ["paired", "shuffled"],
        "jaccard": [paired.mean().item(), np.mean(shuffled)],
        "low": intervals[:, 0],
        "high": intervals[:, 1],
        "n": len(a),
    }
