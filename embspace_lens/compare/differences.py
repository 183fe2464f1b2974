"""A tuned model as its difference from its base, and how far that difference points somewhere."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..errors import EmbspaceError
from ..lens import EmbeddingLens
from ..tables.checks import check_k
from ..tables.frames import tidy
from ..tables.selection import Select, weight_names
from ..weights.difference import WeightDifference
from ..weights.effective import ATTENTION, MLP, Side, Weights, side_of
from ..weights.indices import weight_indices
from .common_tokens import require_lenses

MOST_CHANGED = 0.5  # of the embeddings' norm: tuned models stay far below it, other seeds are far above
N_BOOTSTRAP = 1000


def difference(after: EmbeddingLens, before: EmbeddingLens) -> EmbeddingLens:
    r"""Read what tuning changed: every reading method, on after − before.

    .. math:: \Delta W = W_\mathrm{after} - W_\mathrm{before}, \qquad \Delta W_{OV} = [V_a, V_b] \begin{bmatrix} O_a \\ -O_b \end{bmatrix}

    Weights are subtracted as they take effect, norms folded; a circuit's change has twice the rank of d_head. Both signs
    mean something: read the change's strongest tokens with `largest=True` and `largest=False`.

    Args:
        after: The tuned model's lens.
        before: Its base's lens; the change is read in its embedding space, with its tokens and its score.

    Returns:
        An `EmbeddingLens` that reads the change; its `components()` say how large it is, weight by weight.

    Raises:
        EmbspaceError: If the two differ in shape or vocabulary, or are no model and its base: their embeddings lie further
            apart than tuning takes them.

    Example:
        >>> change = difference(tuned, lens)
        >>> change.subheads(layer=0, weight="W_V", k=1).columns.tolist()
        ['layer', 'head', 'subhead', 'weight', 'rank', 'token_index', 'token_string', 'score']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §4.3 and Appendix. https://arxiv.org/abs/2209.02535
    """
    require_lenses(after, before)
    _refuse_strangers(after, before)
    return EmbeddingLens(
        WeightDifference(after.weights, before.weights), tokenizer=before.vocabulary.tokenizer, space=before.space
    )


def _refuse_strangers(after: EmbeddingLens, before: EmbeddingLens) -> None:
    a, b = after.weights, before.weights
    both = f"{a.name} and {b.name}"
    for name in ("n_layers", "n_heads", "d_model", "d_vocab", "fold_ln"):
        if getattr(a, name) != getattr(b, name):
            raise EmbspaceError(
                f"{both} differ in {name} ({getattr(a, name)} and {getattr(b, name)}): a difference needs a model and its own base."
            )
    for layer in range(b.n_layers):
        for kind in ("attn", "mlp"):
            if (layer in a.layers_with(kind)) != (layer in b.layers_with(kind)):
                raise EmbspaceError(f"{both} differ in block {layer}: a difference needs a model and its own base.")
    if list(after.vocabulary.array) != list(before.vocabulary.array):
        raise EmbspaceError(f"{both} name their tokens differently: a difference needs a model and its own base.")
    far = _distance(a.W_E, b.W_E)
    if far > MOST_CHANGED:
        raise EmbspaceError(
            f"{a.name} is not a tuned {b.name}: their embeddings differ by {far:.0%} of their norm. Give the model that it was tuned from."
        )


def _distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖, by the tile."""
    parts = [
        ((x.double() - y.double()).square().sum(), y.double().square().sum())
        for x, y in zip(a.split(8192), b.split(8192))
    ]
    apart, norm = (torch.stack(values).sum().item() for values in zip(*parts))
    return float((apart / norm) ** 0.5) if norm else float(apart > 0)


def displacement(
    after: EmbeddingLens,
    before: EmbeddingLens,
    positive: Iterable[str],
    negative: Iterable[str],
    *,
    layer: Select = None,
    weight: Any = None,
    k: int = 10,
    n_random: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Score how far tuning moved the weights towards words of one sign.

    Both ends of every direction of ΔW are read: its k highest and its k lowest tokens. Of these, the share that are words of
    the list of which there are more:

    .. math:: \mathrm{share} = \max(|\mathrm{top}_k \cap P|, |\mathrm{top}_k \cap N|) / k

    A list of one sign (all praise, or all blame) has a large share; one with a few words of both, as chance has it, a small
    one. The same is done for Gaussian directions, and for the base's own weights.

    Args:
        after: The tuned model's lens.
        before: Its base's lens.
        positive: Words of one sign, such as those of a sentiment lexicon; compared with tokens without case or space.
            A word of both lists counts for neither.
        negative: Words of the other.
        layer: Which blocks; all by default.
        weight: `"W_in"`, `"W_gate"`, `"W_out"`, `"W_Q"`, `"W_K"`, `"W_V"`, `"W_O"`, or several; all by default.
        k: How many tokens of each end are read.
        n_random: How many Gaussian directions.
        seed: Of the Gaussian directions and of the bootstrap.

    Returns:
        One row per (layer, weight, sample), with `share`, its 95 % interval `low`, `high` (bootstrap over directions), and `n`,
        the directions. `sample` is difference, base or random. Directions that did not change at all are left out; where
        none is left, `share` is missing.

    Raises:
        EmbspaceError: As `difference`, or if the lens reads fewer than ten words of either.

    Example:
        >>> displacement(tuned, lens, positive, negative, layer=1, weight="W_V", k=5)["sample"].tolist()
        ['base', 'difference', 'random']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §4.3 shows such lists; the figure is this package's own.
    """
    change = difference(after, before)
    sign = _signs(before, positive, negative)
    names = weight_names(weight, (*MLP, *ATTENTION))
    k = check_k(k, before.space.n_tokens)
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_random, change.weights.d_model, generator=rng)
    wanted = [
        (name, number)
        for name in names
        for number in dict.fromkeys(
            index.layer for index in weight_indices(change.weights, name, layer, required=weight is not None)
        )
    ]
    random = {side: _shares(before, noise, side, sign, k) for side in sorted({side_of(name) for name, _ in wanted})}
    blocks = []
    for name, number in tqdm(wanted, desc="displacement", unit="weight", disable=None, leave=False):
        found = {
            "difference": _shares(before, _units(change.weights, name, number), side_of(name), sign, k),
            "base": _shares(before, _units(before.weights, name, number), side_of(name), sign, k),
            "random": random[side_of(name)],
        }
        for sample, shares in sorted(found.items()):
            low, high = _interval(shares, seed)
            mean = shares.mean() if len(shares) else np.nan
            blocks.append(
                {
                    "layer": number,
                    "weight": name,
                    "sample": sample,
                    "share": mean,
                    "low": low,
                    "high": high,
                    "n": len(shares),
                }
            )
    frame = tidy(["layer", "weight", "sample", "share", "low", "high", "n"], blocks)
    return frame.sort_values(["layer", "weight", "sample"], kind="stable", ignore_index=True)


def _units(weights: Weights, name: str, layer: int) -> Float[Tensor, "n d_model"]:
    """The directions of a weight, of all heads and experts, less those that are zero."""
    parts = [
        weights.directions(name, *index).reshape(-1, weights.d_model)
        for index in weight_indices(weights, name, [layer])
    ]
    units = torch.cat(parts)
    return units[units.any(dim=1)]


def _signs(lens: EmbeddingLens, positive: Iterable[str], negative: Iterable[str]) -> np.ndarray:
    """+1, −1 or 0 for every token id."""
    if isinstance(positive, str) or isinstance(negative, str):
        raise EmbspaceError("positive and negative are lists of words; one of them is a string.")
    lists = [{str(word).strip().lower() for word in words} for words in (positive, negative)]
    words = [text.strip().lower() for text in lens.vocabulary.array]
    sign = np.array([int(word in lists[0]) - int(word in lists[1]) for word in words])
    read = sign[lens.space.token_ids.numpy()]
    for name, value in (("positive", 1), ("negative", -1)):
        count = int((read == value).sum())
        if count < 10:
            raise EmbspaceError(
                f"Only {count} of the {name} words are tokens that this lens reads; ten are needed to measure anything."
            )
    return sign


def _shares(lens: EmbeddingLens, units: Tensor, side: Side, sign: np.ndarray, k: int) -> np.ndarray:
    """For every direction, the mean over its two ends of the share of words of the commoner sign."""
    if not len(units):
        return np.empty(0)
    ends = []
    for largest in (True, False):
        _, ids = lens.space.top(units, side, k, largest=largest)
        found = sign[ids.numpy()]
        ends.append(np.maximum((found > 0).sum(axis=1), (found < 0).sum(axis=1)) / k)
    return np.mean(ends, axis=0)


def _interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % of the means of samples drawn again from the values."""
    if not len(values):
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(N_BOOTSTRAP)])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
