"""The share of words of one class among the strongest tokens of a fine-tuned model's weight differences."""

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..lens import EmbeddingLens
from ..space.embedding_space import SIDES
from ..tables.checks import check_integer, check_k
from ..tables.frames import tidy
from ..tables.intervals import bootstrap_interval
from ..tables.selection import Select, weight_names
from ..weights.effective import Weights
from ..weights.indices import weight_indices
from ..weights.parameter_names import ATTENTION, MLP, Side, WeightIndex, side_of
from .differences import difference

MIN_WORDS = 10  # of each list that must be tokens of the lens


def displacement(
    after: EmbeddingLens,
    before: EmbeddingLens,
    positive: Iterable[str],
    negative: Iterable[str],
    *,
    layer: Select = None,
    weight: str | Sequence[str] | None = None,
    k: int = 10,
    n_random: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Measure how much fine-tuning moved the weights towards words of one class.

    Every direction of ΔW has two ends: its k highest and its k lowest tokens. The share of an end is the share of its tokens
    that are positive words, or negative words, whichever are more:

    .. math:: \mathrm{share} = \max(|\mathrm{top}_k \cap P|, |\mathrm{top}_k \cap N|) / k

    An end whose words are all positive, or all negative, has a large share. An end with a few words of both lists, which
    happens by chance, has a small share. The controls are Gaussian directions and the base model's own weights.

    Args:
        after: The fine-tuned model's lens.
        before: The base model's lens.
        positive: Words of the first class, such as the positive words of a sentiment lexicon. Words and tokens are compared
            without case and spaces. A word in both lists counts for neither.
        negative: Words of the second class.
        layer: Which blocks; all by default.
        weight: `"W_in"`, `"W_gate"`, `"W_out"`, `"W_Q"`, `"W_K"`, `"W_V"`, `"W_O"`, or several; all by default.
        k: How many tokens of each end.
        n_random: How many Gaussian directions.
        seed: Seed of the Gaussian directions and of the bootstrap.

    Returns:
        One row per (layer, weight, sample), with `share`, its 95 % bootstrap interval over directions `low`, `high`, and `n`,
        the number of directions. `sample` is difference, base or random. Directions that did not change are left out; if none
        changed, `share` is NaN.

    Raises:
        EmbspaceError: As `difference`, or if the lens reads fewer than ten words of one list.

    Example:
        >>> words = sorted({text.strip().lower() for text in lens.vocabulary.strings if text.strip().isalnum()})
        >>> shares = displacement(tuned, lens, words[:30], words[30:60], layer=0, weight="W_V", k=5, n_random=20)
        >>> shares["sample"].tolist()
        ['base', 'difference', 'random']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §4.3, shows such lists of tokens; this measure is the
        package's own. https://arxiv.org/abs/2209.02535
    """
    change = difference(after, before)
    sign = _word_signs(before, positive, negative)
    names = weight_names(weight, (*MLP, *ATTENTION))
    k = check_k(k, before.space.n_tokens)
    n_random = check_integer("n_random", n_random, minimum=1)
    gaussian = torch.randn(n_random, change.weights.d_model, generator=torch.Generator().manual_seed(seed))
    layers = {
        name: groupby(
            weight_indices(change.weights, name, layer, required=weight is not None), lambda index: index.layer
        )
        for name in names
    }
    matrices = [(name, index, list(indices)) for name in names for index, indices in layers[name]]
    sides = {side_of(name) for name, _, _ in matrices}
    random = {side: _shares(before, gaussian, side, sign, k) for side in SIDES if side in sides}
    blocks = []
    for name, layer_index, indices in tqdm(matrices, desc="displacement", unit="weight", disable=None, leave=False):
        side = side_of(name)
        shares = {
            "difference": _shares(before, _nonzero_directions(change.weights, name, indices), side, sign, k),
            "base": _shares(before, _nonzero_directions(before.weights, name, indices), side, sign, k),
            "random": random[side],
        }
        for sample, values in sorted(shares.items()):
            low, high = bootstrap_interval(values, seed=seed)
            mean = values.mean() if len(values) else np.nan
            keys = {"layer": layer_index, "weight": name, "sample": sample}
            blocks.append(keys | {"share": mean, "low": low, "high": high, "n": len(values)})
    columns = ["layer", "weight", "sample", "share", "low", "high", "n"]
    frame = tidy(columns, blocks, kind="displacement")
    return frame.sort_values(["layer", "weight", "sample"], kind="stable", ignore_index=True)


def _nonzero_directions(weights: Weights, name: str, indices: Sequence[WeightIndex]) -> Float[Tensor, "n d_model"]:
    """A weight's directions in one block, of all heads and experts, without those that are zero."""
    x = torch.cat([weights.directions(name, *index).reshape(-1, weights.d_model) for index in indices])
    return x[x.any(dim=1)]


def _word_signs(lens: EmbeddingLens, positive: Iterable[str], negative: Iterable[str]) -> Int[np.ndarray, " d_vocab"]:
    """1 for tokens that are positive words, −1 for negative words, 0 for others."""
    if isinstance(positive, str) or isinstance(negative, str):
        raise errors.words_are_string()
    positive_words, negative_words = ({str(word).strip().lower() for word in words} for words in (positive, negative))
    tokens = [text.strip().lower() for text in lens.vocabulary.array]
    sign = np.array([int(token in positive_words) - int(token in negative_words) for token in tokens])
    sign_of_read = sign[lens.space.token_ids.numpy()]
    for name, value in (("positive", 1), ("negative", -1)):
        n_words = int((sign_of_read == value).sum())
        if n_words < MIN_WORDS:
            raise errors.too_few_words(name, n_words, MIN_WORDS)
    return sign


def _shares(
    lens: EmbeddingLens, x: Float[Tensor, "n d_model"], side: Side, sign: Int[np.ndarray, " d_vocab"], k: int
) -> Float64[np.ndarray, " n"]:
    """The share of each direction's top tokens that are positive or negative words, whichever are more; a mean over its ends."""
    if not len(x):
        return np.empty(0)
    ends = []
    for largest in (True, False):
        _, ids = lens.space.top(x, side, k, largest=largest)
        signs = sign[ids.numpy()]
        ends.append(np.maximum((signs > 0).sum(axis=1), (signs < 0).sum(axis=1)) / k)
    return np.mean(ends, axis=0)
