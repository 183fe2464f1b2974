"""Translations fitted to hidden states of text that the source samples: forward passes, but no data."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tqdm import tqdm

from ..forward.batches import TokenBatch
from ..forward.runs import collect_activations
from ..forward.sampling import sample_tokens
from ..lens import EmbeddingLens
from ..search.tiles import float64
from ..tables.checks import check_choice, check_integer
from ..weights.configuration import context_length, device_of
from ..weights.hook_points import state_hook
from .common_tokens import check_lens, shared_tokens
from .map_fitting import Moments, fit_translation
from .translation import Translation

StateInverse = Literal["ridge", "least_squares", "procrustes"]
STATE_INVERSES: tuple[StateInverse, ...] = ("ridge", "least_squares", "procrustes")


def translate_states(
    source: EmbeddingLens,
    target: EmbeddingLens,
    layer_source: int,
    layer_target: int,
    *,
    inverse: StateInverse = "ridge",
    rank: int | None = None,
    n_rows: int = 64,
    n_tokens: int = 128,
    seed: int = 0,
) -> Translation:
    r"""Map hidden states of one model's block to another model's block, fitted to both models' states of the same tokens.

    Embeddings do not contain what blocks add to a state: means, phrases, positions, and what attention moved. So the source
    samples text, the target reads the same tokens, and the map is fitted to the pairs of states:

    .. math:: \min_K \sum_t \|(x_t - \bar x) K - (y_t - \bar y)\|^2

    Both models run, but neither is trained and no data is used.

    Args:
        source: The lens of the model that states come from; it must be causal.
        target: The lens of the model that they go to.
        layer_source: The block of the source after which states are taken; −1 is the embedding.
        layer_target: The block of the target.
        inverse: `"ridge"`, `"least_squares"` or `"procrustes"`, as for `translate`.
        rank: As for `translate`.
        n_rows: How many texts the source samples.
        n_tokens: How many tokens each text has; at most the shorter context window.
        seed: Seed of the sampled text.

    Returns:
        A `Translation`. Its `state` method maps the source's mean to the target's mean.

    Raises:
        EmbspaceError: If a model has no such layer, the two models share fewer than 100 tokens, or an option is unknown.

    Example:
        >>> translate_states(lens, lens, 0, 0, n_rows=4, n_tokens=8).d_target == lens.weights.d_model
        True
    """
    translations = translate_layers(
        source,
        target,
        [layer_source],
        layer_target,
        inverse=inverse,
        rank=rank,
        n_rows=n_rows,
        n_tokens=n_tokens,
        seed=seed,
    )
    return translations[layer_source]


def translate_layers(
    source: EmbeddingLens,
    target: EmbeddingLens,
    layers_source: Sequence[int],
    layer_target: int,
    *,
    inverse: StateInverse = "ridge",
    rank: int | None = None,
    n_rows: int = 64,
    n_tokens: int = 128,
    seed: int = 0,
) -> dict[int, Translation]:
    """`translate_states` from several blocks of the source at once, fitted to the same text."""
    source, target = check_lens(source), check_lens(target)
    check_choice("inverse", inverse, STATE_INVERSES)
    layers_source = [_state_layer("layer_source", layer, source) for layer in layers_source]
    layer_target = _state_layer("layer_target", layer_target, target)
    n_rows, n_tokens = check_integer("n_rows", n_rows, minimum=1), check_integer("n_tokens", n_tokens, minimum=1)
    ids_source, ids_target = shared_tokens(source, target)
    batches = _sampled_batches(source, target, ids_source, ids_target, n_rows, n_tokens, seed)
    n_states = 0
    moments: dict[int, Moments] = {}
    for xs, y in _state_pairs(source, target, layers_source, layer_target, batches, n_rows):
        y = _with_ones(y)
        for layer, x in xs.items():
            x = _with_ones(x)
            batch_moments = Moments(x.T @ x, x.T @ y, y.T @ y)
            moments[layer] = _sum(moments[layer], batch_moments) if layer in moments else batch_moments
        n_states += len(y)
    translations = {}
    for layer, total in moments.items():
        means, centred = _centre(total, n_states)
        method = f"{inverse} on states, block {layer} → {layer_target}"
        names = source.name, target.name
        translations[layer] = fit_translation(centred, inverse, rank, *names, len(ids_source), means, method)
    return translations


def _state_layer(name: str, layer: int, lens: EmbeddingLens) -> int:
    """A layer after which a model has states; −1 is the embedding."""
    return check_integer(name, layer, minimum=-1, maximum=lens.weights.n_layers - 1)


def _with_ones(states: Float[Tensor, "n d"]) -> Float64[Tensor, "n d_plus_1"]:
    """States with a column of ones. Their second moments then contain the sums of the states."""
    states = float64(states).cpu()
    return torch.cat([states, states.new_ones(len(states), 1)], dim=1)


def _sum(a: Moments, b: Moments) -> Moments:
    return Moments(a.ss + b.ss, a.st + b.st, a.tt + b.tt)


def _centre(total: Moments, n: int) -> tuple[tuple[Tensor, Tensor], Moments]:
    """The means of the states, and the second moments of their deviations; `total` is of states with a column of ones."""
    mean_x, mean_y = total.ss[-1, :-1] / n, total.tt[-1, :-1] / n
    centred = Moments(
        total.ss[:-1, :-1] - n * torch.outer(mean_x, mean_x),
        total.st[:-1, :-1] - n * torch.outer(mean_x, mean_y),
        total.tt[:-1, :-1] - n * torch.outer(mean_y, mean_y),
    )
    return (mean_x, mean_y), centred


def _sampled_batches(
    source: EmbeddingLens,
    target: EmbeddingLens,
    ids_source: Int[Tensor, " n_shared"],
    ids_target: Int[Tensor, " n_shared"],
    n_rows: int,
    n_tokens: int,
    seed: int,
) -> Iterator[tuple[TokenBatch, TokenBatch]]:
    """Text sampled from the source, and the same tokens with the target's ids."""
    contexts = [length - 1 for length in map(context_length, (source.model, target.model)) if length]
    target_ids = torch.zeros(len(source.vocabulary), dtype=torch.long)
    target_ids[ids_source] = ids_target
    bos = getattr(getattr(target.model, "tokenizer", None), "bos_token_id", None) or 0
    for batch in sample_tokens(source.model, n_rows, min([n_tokens, *contexts]), tokens=ids_source, seed=seed):
        tokens = target_ids[batch.tokens]
        tokens[:, 0] = bos
        yield batch, TokenBatch(batch.example, batch.start, tokens, batch.mask, batch.length)


def _state_pairs(
    source: EmbeddingLens,
    target: EmbeddingLens,
    layers_source: Sequence[int],
    layer_target: int,
    batches: Iterator[tuple[TokenBatch, TokenBatch]],
    n_rows: int,
) -> Iterator[tuple[dict[int, Float[Tensor, "n d_source"]], Float[Tensor, "n d_target"]]]:
    """Both models' states of the same tokens; the source's by layer."""
    source_model, target_model = source.model, target.model
    source_hooks = {layer: state_hook(source_model, layer) for layer in layers_source}
    target_hook = state_hook(target_model, layer_target)
    with tqdm(total=n_rows, desc="states", unit="text", disable=None, leave=False) as bar, torch.no_grad():
        for source_batch, target_batch in batches:
            x = collect_activations(source_model, source_batch, list(source_hooks.values()))
            y = collect_activations(target_model, target_batch, [target_hook])[target_hook]
            mask_x, mask_y = (source_batch.mask.to(device_of(model)) for model in (source_model, target_model))
            yield {layer: x[hook][mask_x] for layer, hook in source_hooks.items()}, y[mask_y]
            bar.update(len(source_batch))
