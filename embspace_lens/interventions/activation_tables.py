"""Activations of the components of a table in forward passes, as a table that joins with it."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..forward.batches import TokenBatch, token_batches
from ..forward.runs import collect_activations
from ..tables.frames import tidy
from ..weights.configuration import device_of
from ..weights.effective import Weights
from .components import parse_components, table_keys
from .feature_targets import Encoder, FeatureTarget
from .targets import HookTarget, Target, hook_targets


@torch.no_grad()
def activations(
    model: Any, tokens: Any, df: pd.DataFrame, *, vectors: Any = None, batch_tokens: int = 8192
) -> pd.DataFrame:
    r"""Measure the activations of the components of a table on texts, token by token.

    - neuron: the activation after the activation function, which multiplies its W_out row;
    - sub-head: its entry of q, k, v or z;
    - direction v: the coordinate :math:`x \cdot v / |v|` of the residual stream after the block;
    - feature of a dictionary: its code, by the dictionary's own non-linearity;
    - head: the length :math:`|z W_O|` of its output, before any norm or factor between the output and the residual stream.

    Args:
        model: A TransformerBridge or a HookedTransformer.
        tokens: Token ids, `[batch, pos]` or `[pos]`, all of which are measured; or texts, without the special tokens that the
            tokenizer adds.
        df: As for `ablation_hooks`.
        vectors: As for `ablation_hooks`.
        batch_tokens: The approximate number of tokens in a batch.

    Returns:
        One row per (the table's keys, example, pos), with `activation`. The keys are the columns `layer`, `expert`, `head`,
        `neuron`, `subhead`, `weight`, `direction` and `factor` that the table has, or `feature_index`, so the two tables merge on them. `pos` is the
        position in the run: with texts, special tokens before the text are counted, but have no row.

    Raises:
        EmbspaceError: As `ablation_hooks`; or if `tokens` are neither ids nor texts.

    Example:
        >>> table = activations(model, torch.tensor([[5, 6, 7]]), lens.neurons(layer=0, neuron=3, weight="W_out", k=1))
        >>> table[["neuron", "pos"]].values.tolist()
        [[3, 0], [3, 1], [3, 2]]
    """
    keys = table_keys(df, of_features=isinstance(vectors, Encoder))
    components = parse_components(keys)
    distinct = {component: i for i, component in enumerate(dict.fromkeys(components))}
    targets = hook_targets(model, distinct, vectors)
    columns = [*keys.columns, "example", "pos", "activation"]
    values, positions = _measure(model, tokens, targets, len(distinct), batch_tokens)
    if not values.numel():
        return tidy(columns, [])
    example, pos = positions.numpy()
    order = np.lexsort((pos, example))
    rows = np.array([distinct[component] for component in components])
    block = {name: np.repeat(keys[name].to_numpy(), len(order)) for name in keys.columns}
    block |= {"example": np.tile(example[order], len(keys)), "pos": np.tile(pos[order], len(keys))}
    return tidy(columns, [block | {"activation": values.numpy()[rows][:, order].ravel()}])


def _measure(
    model: Any, tokens: Any, targets: list[Target], n_components: int, batch_tokens: int
) -> tuple[Float[Tensor, "n_components n_tokens"], Int[Tensor, "2 n_tokens"]]:
    """The activations of all components at all tokens, and each token's example and position in it."""
    grams = {
        each.hook: _output_gram(model, each) for each in targets if isinstance(each, HookTarget) and each.kind == "head"
    }
    sources = [each.source_hook if isinstance(each, FeatureTarget) else each.hook for each in targets]
    values = [torch.zeros(n_components, 0)]
    positions = [torch.zeros(2, 0, dtype=torch.long)]
    with tqdm(desc="activations", unit="token", unit_scale=True, disable=None, leave=False) as bar:
        for batch in _batches(model, tokens, batch_tokens) if targets else ():
            hook_values = collect_activations(model, batch, sources)
            mask = batch.mask.to(device_of(model))
            block = torch.empty(n_components, int(batch.mask.sum()))
            for source, target in zip(sources, targets, strict=True):
                value = hook_values[source]
                if value.shape[:2] != mask.shape:
                    raise errors.no_positions_in_expert(target.hook)
                x = target.codes(value) if isinstance(target, FeatureTarget) else target.read(value)
                x = x[mask].float()
                if target.kind == "head":
                    squares = einsum(x, grams[target.hook], x, "token head i, head i j, token head j -> token head")
                    x = squares.clamp(min=0).sqrt()
                block[target.component_indices] = x.T.cpu()
            values.append(block)
            example = batch.example[:, None].expand_as(batch.tokens)
            positions.append(torch.stack([example, batch.pos])[:, batch.mask])
            bar.update(block.shape[1])
    return torch.cat(values, dim=1), torch.cat(positions, dim=1)


def _output_gram(model: Any, target: HookTarget) -> Float[Tensor, "n d_head d_head"]:
    """G = W_O W_Oᵀ of each head: z G zᵀ is the squared length of the head's output."""
    layer = int(target.hook.split(".")[1])
    W_O = Weights(model).stored("W_O", layer)[target.coordinates[0].to(device_of(model))].float()
    return W_O @ W_O.transpose(-1, -2)


def _batches(model: Any, tokens: Any, batch_tokens: int) -> Iterator[TokenBatch]:
    """Batches of token ids, or of texts."""
    tokens = [tokens] if isinstance(tokens, str) else tokens
    is_sequence = isinstance(tokens, Tensor | np.ndarray | list | tuple)
    starts_with_text = isinstance(tokens, list | tuple) and len(tokens) > 0 and isinstance(tokens[0], str)
    if starts_with_text or (isinstance(tokens, Iterable) and not is_sequence):
        yield from token_batches(model, tokens, batch_tokens=batch_tokens)
        return
    ids = _token_ids(model, tokens)
    width = ids.shape[1]
    for example in torch.arange(len(ids)).split(max(1, batch_tokens // max(width, 1))):
        batch, start = ids[example], torch.zeros_like(example)
        yield TokenBatch(example, start, batch, torch.ones_like(batch, dtype=torch.bool), start + width)


def _token_ids(model: Any, tokens: Any) -> Int[Tensor, "batch pos"]:
    """Token ids as a tensor.

    Raises:
        EmbspaceError: If they are not `[batch, pos]` integers of the vocabulary, or longer than the context window.
    """
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise errors.not_tensor("tokens", reason) from reason
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise errors.not_token_ids(str(ids.dtype), tuple(ids.shape))
    weights = Weights(model)
    if weights.has_positions and ids.shape[1] > len(weights.W_pos):
        raise errors.longer_than_context(ids.shape[1], weights.name, len(weights.W_pos))
    for token in (int(ids.min()), int(ids.max())) if ids.numel() else ():
        if not 0 <= token < weights.d_vocab:
            raise errors.out_of_range("token", token, weights.name, weights.d_vocab, "tokens")
    return ids.long()
