"""Ablation of vocabulary channels on the input side: how a neuron's activation changes when a channel is removed from its weight."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from .. import errors
from ..circuits.channels import VocabularyChannels
from ..forward.batches import TokenBatch, token_batches
from ..forward.runs import Hook, collect_activations
from ..lens import EmbeddingLens
from ..tables.checks import check_integer
from ..tables.frames import tidy
from ..tables.intervals import bootstrap_interval
from ..weights.experts import NO_EXPERT
from ..weights.hook_points import mlp_input_hook, neuron_hook, preactivation_hook

SAMPLES = ("other", "own", "random")


@torch.no_grad()
def channel_input_effects(
    lens: EmbeddingLens,
    channels: VocabularyChannels,
    texts: Iterable[str],
    *,
    n_positions: int = 100,
    seed: int = 0,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
) -> pd.DataFrame:
    r"""Measure how the removal of each channel from a reading weight changes its neuron's activation at the channel's tokens.

    A neuron with weight w reads :math:`x \cdot w` from the input x of the MLP. Without its channel r it reads

    .. math:: x \cdot \big(w - (w \cdot \hat r)\,\hat r\big), \qquad \hat r = r / |r|

    The effect at a position of a text is the absolute change of the activation, after the activation function. If norms are
    folded into the weights of the lens, x is normalized without gain, as the effective weight is.

    Args:
        lens: The lens with which the channels were computed; its model runs.
        channels: Channels of W_in or W_gate.
        texts: Any texts.
        n_positions: The largest number of positions of a channel and sample; they are drawn at random.
        seed: Seed of the positions and of the bootstrap.
        batch_tokens: The approximate number of tokens in a batch.
        max_tokens: The longest text in tokens; the model's context window by default.

    Returns:
        One row per (layer, neuron, weight, channel, sample), in a mixture of experts with `expert`, with `activation_change`: the
        mean effect at positions of the channel's `"own"` tokens, of tokens of the neuron's `"other"` channels, and at `"random"`
        positions of tokens in no channel of the neuron, as many as of its own. `low` and `high` are the ends of its 95 %
        bootstrap interval over positions, and `n` is the number of positions. Without positions, the values are NaN.

    Raises:
        EmbspaceError: If the channels are those of W_out, of experts, or of a model that lacks a hook point.

    Example:
        >>> channels = vocabulary_channels(lens, layer=0, neuron=3, weight="W_in", n_channels=2, k=4)
        >>> channel_input_effects(lens, channels, ["w2 w3 w4", "w5 w6"])["sample"].tolist()
        ['other', 'own', 'random', 'other', 'own', 'random']

    References:
        Avrahamy, Gur-Arieh & Geva (2026), Disentangling MLP Neuron Weights in Vocabulary Space. https://arxiv.org/abs/2604.06005
    """
    if channels.weight == "W_out":
        raise errors.channels_not_read(channels.weight)
    n_positions = check_integer("n_positions", n_positions, minimum=1)
    table: Any = channels.channels
    if "expert" in table and (table["expert"] != NO_EXPERT).any():
        raise errors.unsupported("The effect of channels of experts", "the router reads the same input")
    batches = list(token_batches(lens.model, texts, batch_tokens=batch_tokens, max_tokens=max_tokens))
    tokens = torch.cat([torch.zeros(0, dtype=torch.long), *(batch.tokens[batch.mask] for batch in batches)])
    generator = torch.Generator().manual_seed(seed)
    keys = [name for name in ("layer", "expert", "neuron") if name in table]

    def blocks() -> Iterator[dict[str, Any]]:
        for layer in sorted(set(table["layer"])):
            rows = np.flatnonzero(table["layer"] == layer)
            changes = _activation_changes(lens, channels, rows, batches)
            for row, change in zip(rows.tolist(), changes, strict=True):
                here = table.iloc[row]
                is_own, is_other = _token_kinds(channels, row, tokens)
                own = _draw(is_own, n_positions, generator)
                chosen = {"own": own, "other": _draw(is_other, n_positions, generator)}
                chosen["random"] = _draw(~is_own & ~is_other, len(own), generator)
                for sample in SAMPLES:
                    values = change[chosen[sample]].double().numpy()
                    low, high = bootstrap_interval(values, seed=seed)
                    yield {
                        **{name: [here[name]] for name in (*keys, "weight", "channel")},
                        "sample": sample,
                        "activation_change": values.mean() if len(values) else np.nan,
                        "low": low,
                        "high": high,
                        "n": len(values),
                    }

    return tidy([*keys, "weight", "channel", "sample", "activation_change", "low", "high", "n"], blocks())


def _token_kinds(
    channels: VocabularyChannels, row: int, tokens: Int[Tensor, " n"]
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Which tokens are those of a channel, and which are those of the neuron's other channels only."""
    here = channels.channels.iloc[row]
    listed: Any = channels.tokens
    listed = listed[(listed["layer"] == here["layer"]) & (listed["neuron"] == here["neuron"])]
    is_own = torch.isin(tokens, torch.tensor(listed["token_index"][listed["channel"] == here["channel"]].to_numpy()))
    return is_own, torch.isin(tokens, torch.tensor(listed["token_index"].to_numpy())) & ~is_own


def _draw(is_candidate: Bool[Tensor, " n"], count: int, generator: torch.Generator) -> Int[Tensor, " n_drawn"]:
    """At most `count` of the candidates, at random."""
    candidates = is_candidate.nonzero()[:, 0]
    return candidates[torch.randperm(len(candidates), generator=generator)[:count]]


def _activation_changes(
    lens: EmbeddingLens, channels: VocabularyChannels, rows: np.ndarray, batches: list[TokenBatch]
) -> Float[Tensor, "n_rows n_tokens"]:
    """The absolute change of the activation without each channel of one block, at each token of the texts.

    Neurons of a block do not depend on each other, so one forward pass removes one channel from each of them.
    """
    table, weight = channels.channels.iloc[rows], channels.weight
    layer = int(table["layer"].iloc[0])
    neurons = torch.tensor(table["neuron"].to_numpy())
    r = normalize(channels.directions[torch.from_numpy(rows)], dim=1)
    w = lens.weights.directions(weight, layer)[neurons.to(lens.weights.W_U.device)].to(r)
    removed = r * (r * w).sum(1, keepdim=True)  # (w · r̂) r̂
    hook_in, mlp_input = mlp_input_hook(lens.weights, layer, weight)
    hook_pre = preactivation_hook(lens.weights, layer, weight)
    hook_post = neuron_hook(lens.weights, layer)

    def hooks_without(chosen: Int[Tensor, " n_chosen"]) -> list[Hook]:
        """Hooks that remove the chosen channels, at most one of each neuron."""
        x: list[Tensor] = []

        def store(value: Tensor, hook: Any) -> None:
            x[:] = [mlp_input(value)]

        def remove(value: Tensor, hook: Any) -> Tensor:
            edited = value.clone()
            edited[..., neurons[chosen]] -= (x[0] @ removed[chosen].to(x[0]).T).to(value)
            return edited

        return [(hook_in, store), (hook_pre, remove)]

    ranks = table["channel"].to_numpy()
    groups = [torch.from_numpy(np.flatnonzero(ranks == rank)) for rank in sorted(set(ranks))]
    changes = torch.zeros(len(rows), sum(int(batch.mask.sum()) for batch in batches))
    start = 0
    for batch in tqdm(batches, desc="channel inputs", unit="batch", disable=None, leave=False):
        end = start + int(batch.mask.sum())
        original = collect_activations(lens.model, batch, [hook_post])[hook_post]
        for chosen in groups:
            ablated = collect_activations(lens.model, batch, [hook_post], hooks=hooks_without(chosen))[hook_post]
            change = (ablated - original)[..., neurons[chosen]].abs().float().cpu()
            changes[chosen, start:end] = change[batch.mask].T
        start = end
    return changes
