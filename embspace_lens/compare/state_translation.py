"""A translation fitted to hidden states, of text that the source makes up: no data, but forward passes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..errors import EmbspaceError, choice, out_of_range
from ..forward.batches import TokenBatch
from ..forward.runs import collect_activations
from ..forward.sampling import sample_tokens
from ..lens import EmbeddingLens
from ..search.tiles import float64
from ..weights.configuration import device_of
from ..weights.hook_points import state_hook
from .common_tokens import require_lenses, shared_tokens
from .translation import Moments, Translation, fitted

FITS = ("ridge", "least_squares", "procrustes")


def translate_states(
    source: EmbeddingLens,
    target: EmbeddingLens,
    layer_source: int,
    layer_target: int,
    *,
    inverse: str = "ridge",
    rank: int | None = None,
    n_rows: int = 64,
    n_tokens: int = 128,
    seed: int = 0,
) -> Translation:
    r"""Carry hidden states from a block of one model to a block of another, by what both make of the same tokens.

    Embeddings say little of what blocks have added to a state: means and phrases, positions, what attention gathered. Here the
    source makes up text (`forward.sample_tokens`), the target reads it, token for token, and the map is fitted to the pairs:

    .. math:: \min_K \sum_t \|(x_t - \bar x) K - (y_t - \bar y)\|^2

    Neither model is trained and no data is used, but both run.

    Args:
        source: The lens of the model that states come from; it must be causal.
        target: The lens of the model that they go to.
        layer_source: After which block of the source; −1 is before the first.
        layer_target: After which block of the target.
        inverse: `"ridge"`, `"least_squares"` or `"procrustes"`, as for `translate`.
        rank: As for `translate`.
        n_rows: How many texts the source makes up.
        n_tokens: How long they are; no longer than either model's context.
        seed: Of the made-up text.

    Returns:
        A `Translation` whose `state` goes from mean to mean.

    Raises:
        EmbspaceError: If a model has no such layer, the two share fewer than 100 tokens, or an option is unknown.

    Example:
        >>> translate_states(lens, lens, 0, 0, n_rows=4, n_tokens=8).d_target == lens.weights.d_model
        True
    """
    made = translations_of_states(
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
    return made[layer_source]


def translations_of_states(
    source: EmbeddingLens,
    target: EmbeddingLens,
    layers_source: Sequence[int],
    layer_target: int,
    *,
    inverse: str = "ridge",
    rank: int | None = None,
    n_rows: int = 64,
    n_tokens: int = 128,
    seed: int = 0,
) -> dict[int, Translation]:
    """`translate_states` from several blocks of the source at once, over the same text."""
    require_lenses(source, target)
    if inverse not in FITS:
        raise choice("inverse", inverse, FITS)
    wanted = [("layer_source", source, layer) for layer in layers_source] + [("layer_target", target, layer_target)]
    for name, lens, layer in wanted:
        if isinstance(layer, bool) or not isinstance(layer, int) or not -1 <= layer < lens.weights.n_layers:
            raise out_of_range(name, layer, lens.name, lens.weights.n_layers, "layers")
    ids_source, ids_target = shared_tokens(source, target)
    count = 0
    sums: dict[int, list[Tensor]] = {}
    for xs, y in _pairs(source, target, layers_source, layer_target, ids_source, ids_target, n_rows, n_tokens, seed):
        y = _with_ones(y)
        for layer, x in xs.items():
            x = _with_ones(x)
            parts = [x.T @ x, x.T @ y, y.T @ y]
            sums[layer] = [a + b for a, b in zip(sums[layer], parts)] if layer in sums else parts
        count += len(y)
    if not count:
        raise EmbspaceError(f"n_rows={n_rows!r} and n_tokens={n_tokens!r} make no text.")
    found = {}
    for layer, (xx, xy, yy) in sums.items():
        mean_x, mean_y = xx[-1, :-1] / count, yy[-1, :-1] / count
        moments = Moments(
            xx[:-1, :-1] - count * torch.outer(mean_x, mean_x),
            xy[:-1, :-1] - count * torch.outer(mean_x, mean_y),
            yy[:-1, :-1] - count * torch.outer(mean_y, mean_y),
        )
        named = f"{inverse} on states, block {layer} → {layer_target}"
        found[layer] = fitted(
            moments, inverse, rank, source.name, target.name, len(ids_source), (mean_x, mean_y), named
        )
    return found


def _with_ones(states: Tensor) -> Float[Tensor, "n d_plus_1"]:
    """In float64, with a column of ones: second moments then hold the sums in their last row and column."""
    states = float64(states).cpu()
    return torch.cat([states, states.new_ones(len(states), 1)], dim=1)


def _pairs(
    source: EmbeddingLens,
    target: EmbeddingLens,
    layers_source: Sequence[int],
    layer_target: int,
    ids_source: Tensor,
    ids_target: Tensor,
    n_rows: int,
    n_tokens: int,
    seed: int,
) -> Iterator[tuple[dict[int, Float[Tensor, "n d_source"]], Float[Tensor, "n d_target"]]]:
    """Both models' states of the same tokens."""
    speaker, reader = (lens.model for lens in (source, target))
    longest = min([n_tokens, *(n - 1 for n in map(_n_ctx, (speaker, reader)) if n)])
    heard = torch.zeros(len(source.vocabulary), dtype=torch.long)
    heard[ids_source] = ids_target
    bos = getattr(getattr(reader, "tokenizer", None), "bos_token_id", None)
    hooks = {layer: state_hook(speaker, layer) for layer in layers_source}
    end = state_hook(reader, layer_target)
    with tqdm(total=n_rows, desc="states", unit="text", disable=None, leave=False) as bar, torch.no_grad():
        for batch in sample_tokens(speaker, n_rows, longest, tokens=ids_source, seed=seed):
            theirs = TokenBatch(batch.example, batch.start, heard[batch.tokens], batch.mask, batch.length)
            theirs.tokens[:, 0] = bos or 0
            x = collect_activations(speaker, batch, list(hooks.values()))
            y = collect_activations(reader, theirs, [end])[end]
            own_x, own_y = (batch.mask.to(device_of(model)) for model in (speaker, reader))
            yield {layer: x[name][own_x] for layer, name in hooks.items()}, y[own_y]
            bar.update(len(batch))


def _n_ctx(model: Any) -> int | None:
    return getattr(model.cfg, "n_ctx", None)
