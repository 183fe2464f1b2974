"""Ablation of vocabulary channels: how the logits change when a channel is removed from a neuron's output."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from .. import errors
from ..circuits.channels import VocabularyChannels
from ..forward.batches import TokenBatch, token_batches
from ..forward.runs import collect_activations, logits
from ..lens import EmbeddingLens
from ..search.tiles import chunks
from ..tables.checks import check_integer
from ..tables.frames import tidy
from ..tables.intervals import bootstrap_interval
from ..weights.experts import NO_EXPERT
from ..weights.hook_points import stream_hook
from .components import Component
from .targets import hook_targets

SAMPLES = ("other", "own", "random")


@torch.no_grad()
def channel_effects(
    lens: EmbeddingLens,
    channels: VocabularyChannels,
    texts: Iterable[str],
    *,
    n_active: int = 20,
    seed: int = 0,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
) -> pd.DataFrame:
    r"""Measure how the removal of each channel from its neuron changes the logits of the channel's tokens and of other tokens.

    A neuron with activation a adds a·w to the residual stream (times a factor, in models that scale the MLP's output). Without
    its channel r it adds

    .. math:: a\,\big(w - (w \cdot \hat r)\,\hat r\big), \qquad \hat r = r / |r|

    at every token of a text. The effect on a token is the absolute change of its logit, after the mean change over the lens's
    tokens is subtracted. It is measured at the position of a text where the neuron is most active, in the `n_active` texts with
    the largest absolute activations.

    Args:
        lens: The lens with which the channels were computed; its model runs.
        channels: Channels of W_out.
        texts: Any texts.
        n_active: The number of texts for each neuron.
        seed: Seed of the random tokens and of the bootstrap.
        batch_tokens: The approximate number of tokens in a batch.
        max_tokens: The longest text in tokens; the model's context window by default.

    Returns:
        One row per (layer, neuron, weight, channel, sample), in a mixture of experts with `expert`, with `logit_change`: the mean
        effect on the channel's `"own"` tokens, on the tokens of the neuron's `"other"` channels, and on `"random"` tokens, as many
        as its own. `low` and `high` are the ends of its 95 % bootstrap interval over texts, and `n` is the number of texts.
        Without other channels, the values of `"other"` are NaN.

    Raises:
        EmbspaceError: If the channels are not those of W_out, a norm follows the MLP, or fewer than two texts have tokens.

    Example:
        >>> channels = vocabulary_channels(lens, layer=0, neuron=3, n_channels=2, k=4)
        >>> channel_effects(lens, channels, ["w2 w3 w4", "w5 w6"])["sample"].tolist()
        ['other', 'own', 'random', 'other', 'own', 'random']

    References:
        Avrahamy, Gur-Arieh & Geva (2026), Disentangling MLP Neuron Weights in Vocabulary Space. https://arxiv.org/abs/2604.06005
    """
    if channels.weight != "W_out":
        raise errors.channels_not_written(channels.weight)
    n_active = check_integer("n_active", n_active, minimum=2)
    keys = [name for name in ("layer", "expert", "neuron") if name in channels.channels]
    distinct: Any = channels.channels[keys].drop_duplicates()
    neurons = [_parse_neuron(row) for row in distinct.to_dict("records")]
    for layer in {neuron.layer for neuron in neurons}:
        if norm := lens.weights.norm("W_out", layer).name:
            raise errors.unsupported(
                f"The effect of channels in block {layer} of {lens.name}",
                f"{norm} follows the MLP, so the output of a neuron depends on all other neurons",
            )
    prefixes = _most_active(lens, neurons, texts, n_active, batch_tokens, max_tokens)
    generator = torch.Generator().manual_seed(seed)

    def blocks() -> Iterator[dict[str, Any]]:
        bar = tqdm(neurons, desc="channel effects", unit="neuron", disable=None, leave=False)
        for neuron, texts_of_neuron in zip(bar, prefixes, strict=True):
            rows = _rows_of(channels.channels, neuron)
            channel_indices = channels.channels["channel"].to_numpy()[rows]
            tokens = channels.tokens["token_index"].to_numpy()[_rows_of(channels.tokens, neuron)]
            own_tokens = tokens.reshape(len(channel_indices), -1)
            changes = _logit_changes(lens, neuron, texts_of_neuron, channels.directions[torch.tensor(rows)])
            for i, channel in enumerate(channel_indices):
                own = own_tokens[i]
                other = np.setdiff1d(np.delete(own_tokens, i, axis=0), own)
                for sample, chosen in zip(SAMPLES, (other, own, _random_tokens(lens, own, generator)), strict=True):
                    change = changes[i][:, torch.tensor(chosen)].mean(dim=1).double()
                    low, high = bootstrap_interval(change, seed=seed)
                    yield {
                        "layer": neuron.layer,
                        "expert": neuron.expert,
                        "neuron": neuron.neuron,
                        "weight": "W_out",
                        "channel": [channel],
                        "sample": sample,
                        "logit_change": change.mean().item(),
                        "low": low,
                        "high": high,
                        "n": len(change),
                    }

    columns = [*keys, "weight", "channel", "sample", "logit_change", "low", "high", "n"]
    return tidy(columns, blocks())


def _parse_neuron(row: dict[Any, Any]) -> Component:
    return Component("neuron", row["layer"], expert=row.get("expert", NO_EXPERT), neuron=row["neuron"])


def _rows_of(table: pd.DataFrame, neuron: Component) -> Int[np.ndarray, " n"]:
    """The numbers of the rows of a table that belong to a neuron."""
    keys = [name for name in ("layer", "expert", "neuron") if name in table]
    return np.flatnonzero(np.logical_and.reduce([table[name] == getattr(neuron, name) for name in keys]))


def _random_tokens(lens: EmbeddingLens, own: Int[np.ndarray, " k"], generator: torch.Generator) -> np.ndarray:
    """As many random tokens of the lens as a channel has, and none of its own."""
    ids = lens.space.token_ids
    ids = ids[~torch.isin(ids, torch.tensor(own))]
    return ids[torch.randperm(len(ids), generator=generator)[: len(own)]].numpy()


class _Prefix(NamedTuple):
    """The tokens of a text up to the position where a neuron is most active."""

    activation: float
    tokens: Int[Tensor, " pos"]


def _most_active(
    lens: EmbeddingLens,
    neurons: list[Component],
    texts: Iterable[str],
    n_active: int,
    batch_tokens: int,
    max_tokens: int | None,
) -> list[list[Int[Tensor, " _"]]]:
    """For each neuron, the prefixes of the texts with its largest absolute activations, strongest first.

    Raises:
        EmbspaceError: If fewer than two texts have tokens, or activations have no positions.
    """
    model = lens.model
    targets = hook_targets(model, neurons)
    best: list[list[_Prefix]] = [[] for _ in neurons]
    for batch in token_batches(model, texts, batch_tokens=batch_tokens, max_tokens=max_tokens):
        values = collect_activations(model, batch, [target.hook for target in targets])
        for target in targets:
            if values[target.hook].ndim != 3:
                raise errors.no_positions_in_expert(target.hook)
            sizes = target.read(values[target.hook]).abs().cpu().masked_fill(~batch.mask[:, :, None], -1)
            largest, pos = sizes.max(dim=1)
            for index, activation, end in zip(target.component_indices, largest.T, pos.T, strict=True):
                top = activation.topk(min(n_active, len(activation))).indices.tolist()
                best[index] += [_Prefix(activation[i].item(), batch.tokens[i, : end[i] + 1].cpu()) for i in top]
                best[index] = sorted(best[index], key=lambda prefix: -prefix.activation)[:n_active]
    if any(len(prefixes) < 2 for prefixes in best):
        raise errors.too_few_texts()
    return [[prefix.tokens for prefix in prefixes] for prefixes in best]


def _logit_changes(
    lens: EmbeddingLens,
    neuron: Component,
    texts: list[Int[Tensor, " _"]],
    directions: Float[Tensor, "n_channels d_model"],
) -> Float[Tensor, "n_channels n_texts d_vocab"]:
    """The absolute change of each token's logit without each channel, after subtraction of the mean change.

    Logits are those of the last token of each text.
    """
    model, weights = lens.model, lens.weights
    (target,) = hook_targets(model, [neuron])
    w = weights.directions("W_out", neuron.layer, neuron.expert)[neuron.neuron]
    units = normalize(directions.to(w), dim=1)
    removed = units * (units @ w)[:, None] * weights.residual_multiplier
    length = torch.tensor([len(tokens) for tokens in texts])
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    example = torch.arange(len(texts))
    batch = TokenBatch(example, torch.zeros_like(example), tokens, tokens >= 0, length)

    def last_logits(chunk: Float[Tensor, "n_chunk d_model"]) -> Float[Tensor, "n_chunk n_texts d_vocab"]:
        """Logits without each channel of the chunk, in one forward pass over copies of the texts."""
        activations: list[Tensor] = []
        copies = example.repeat(len(chunk))
        repeated = TokenBatch(*(getattr(batch, name)[copies] for name in batch.__dataclass_fields__))

        def store(value: Tensor, hook: Any) -> None:
            activations[:] = [target.read(value)]

        def remove(value: Tensor, hook: Any) -> Tensor:
            vectors = repeat(chunk.to(value), "n_chunk d_model -> (n_chunk n_texts) 1 d_model", n_texts=len(texts))
            return value - activations[0] * vectors

        hooks = [(target.hook, store), (stream_hook(weights, neuron.layer, "hook_mlp_out"), remove)]
        predicted = logits(model, repeated, hooks=hooks)
        last = predicted[torch.arange(len(predicted)), repeated.length - 1]
        return last.float().unflatten(0, (len(chunk), len(texts))).cpu()

    original = last_logits(torch.zeros_like(removed[:1]))
    # Eight times the usual memory: few forward passes over many texts are faster than many over few.
    bytes_per_channel = 4 * tokens.numel() * lens.space.d_vocab
    parts = [last_logits(removed[chunk]) for chunk in chunks(len(removed), bytes_per_channel, scale=8.0)]
    changes = original - torch.cat(parts)
    return (changes - changes[..., lens.space.token_ids].mean(dim=-1, keepdim=True)).abs()
