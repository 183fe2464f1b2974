"""Learned position embeddings: which positions a head attends to, and the shares of tokens and positions in its scores."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..lens import EmbeddingLens
from ..search.tiles import float64
from ..space.embeddings import Embedding, as_tensor
from ..tables.frames import tidy
from ..tables.selection import Select, select
from ..weights.attention_scores import attention_bias, attention_scale, normalize, visible
from ..weights.effective import Weights

FIRST_QUERY = 2  # the first query whose own, previous and first positions are distinct
ATTENTION_COLUMNS = ("previous_token", "first_token", "same_position", "uniform")
TERM_COLUMNS = ("token_token", "token_position", "position_token", "position_position")


def position_qk(
    lens: EmbeddingLens, layer: Select = None, head: Select = None, *, positions: Select = None
) -> pd.DataFrame:
    r"""Read the QK circuit on position embeddings: the score of every query position for every key position.

    .. math:: s(\mathrm{dest}, \mathrm{src}) = p_\mathrm{dest}\, W_Q W_K^\top\, p_\mathrm{src}^\top

    Position embeddings replace token embeddings, and scores have the scale of `lens.qk`: they are not divided by √d_head or by
    the scale of the norm. Pairs that the attention mask hides are left out: later keys in a causal
    model, and distant keys in a block with local attention.

    Args:
        lens: The lens of a model with learned position embeddings.
        layer: Which blocks; all by default. Scores are exact for block 0; earlier blocks change what later ones read.
        head: Which query heads.
        positions: Which positions, for queries and keys; all by default, which gives n_ctx² / 2 rows per head.

    Returns:
        One row per (layer, head, dest_pos, src_pos), with `score`.

    Raises:
        EmbspaceError: If the model has no learned position embeddings, or no such layer, head or position.

    Example:
        >>> position_qk(lens, layer=0, head=1, positions=range(2))[["dest_pos", "src_pos"]].values.tolist()
        [[0, 0], [1, 0], [1, 1]]

    References:
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Eigenvalue analysis" (positional heads).
    """
    layers, heads = lens.weights.select_layers(layer, "attn"), lens.weights.select_heads(head)
    W_pos = _position_embeddings(lens)
    selected = torch.tensor(select("positions", positions, len(W_pos), lens.name, "positions"), dtype=torch.long)
    dest, src = (index.flatten() for index in torch.meshgrid(selected, selected, indexing="ij"))
    rows = W_pos[selected.to(W_pos.device)]

    def blocks() -> Iterator[dict[str, Any]]:
        for index in tqdm(layers if len(dest) else [], desc="position_qk", unit="layer", disable=None, leave=False):
            is_visible = visible(lens.weights, index, dest, src)
            for h, q, k in _queries_and_keys(lens.weights, index, heads):
                scores = ((rows @ q) @ (rows @ k).T).cpu()
                yield {
                    "layer": index,
                    "head": h,
                    "dest_pos": dest[is_visible],
                    "src_pos": src[is_visible],
                    "score": scores.flatten()[is_visible],
                }

    return tidy(["layer", "head", "dest_pos", "src_pos", "score"], blocks())


def position_heads(
    lens: EmbeddingLens, layer: Select = None, head: Select = None, *, frequencies: Any = None
) -> pd.DataFrame:
    r"""Measure how far each head's attention depends on positions.

    Attention by position is the attention on a text in which every token is the mean token. The residual stream holds
    :math:`x_i = \bar e + p_i`, the mean embedding of the lens's tokens plus a position embedding. With :math:`\hat x` the
    output of the norm,

    .. math:: A_{ij} = \operatorname{softmax}_{j} \; (\hat x_i W_Q + b_Q)(\hat x_j W_K + b_K)^\top / \sqrt{d_\mathrm{head}}

    `previous_token`, `first_token` and `same_position` are the means of :math:`A_{i,i-1}`, :math:`A_{i,0}` and
    :math:`A_{ii}` over the positions i ≥ 2. Attention spread evenly over the visible positions gives each of them the value
    `uniform`: the mean of 1/(i+1) under a causal mask. b_Q and b_K include the norm's bias.

    The score of a query (token t, position i) and a key (token u, position j) is a sum of four terms,

    .. math:: e_t W \tilde e_u + e_t W \tilde p_j + p_i W \tilde e_u + p_i W \tilde p_j, \qquad W = W_Q W_K^\top

    where the mean key is subtracted, because a constant added to all scores of a query does not change its attention.
    `token_token`, `token_position`, `position_token` and `position_position` (query first) are the mean squares of the four
    terms over all tokens and positions, divided by their sum.

    Args:
        lens: The lens of a model with learned position embeddings; the means are over its tokens.
        layer: Which blocks; all by default. Values are exact for block 0; earlier blocks change what later ones read.
        head: Which query heads.
        frequencies: The frequency of each token, `[d_vocab]`, as counts or shares; equal by default. The mean token of real
            texts differs from that of the vocabulary, and so does the attention by position.

    Returns:
        One row per (layer, head), with `previous_token`, `first_token`, `same_position`, `uniform`, `token_token`,
        `token_position`, `position_token` and `position_position`.

    Raises:
        EmbspaceError: If the model has no learned position embeddings, no such layer or head, or `frequencies` are not one
            non-negative number per token.

    Example:
        >>> table = position_heads(lens, layer=0)
        >>> table.filter(regex="^(token|position)_").sum(axis=1).round(4).tolist()
        [1.0, 1.0, 1.0, 1.0]

    References:
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits. Voita et al. (2019), Analyzing Multi-Head
        Self-Attention, §4 (positional heads). https://arxiv.org/abs/1905.09418
    """
    layers, heads = lens.weights.select_layers(layer, "attn"), lens.weights.select_heads(head)
    columns = ["layer", "head", *ATTENTION_COLUMNS, *TERM_COLUMNS]
    W_pos = float64(_position_embeddings(lens))
    n_ctx = len(W_pos)
    if n_ctx <= FIRST_QUERY:
        raise errors.too_few_positions(lens.name, n_ctx, FIRST_QUERY + 1)
    if not layers or not heads:
        return tidy(columns, [])
    mean, moment = (part.to(W_pos.device) for part in _token_moments(lens, frequencies))
    # Queries enter the mean squares by their second moments, keys by their covariances.
    moments = {"token": moment, "position": W_pos.T @ W_pos / n_ctx}
    means = {"token": mean, "position": W_pos.mean(dim=0)}
    covariances = {kind: moments[kind] - torch.outer(means[kind], means[kind]) for kind in moments}
    positions = torch.arange(n_ctx)

    def blocks() -> Iterator[dict[str, Any]]:
        for index in tqdm(layers, desc="position_heads", unit="layer", disable=None, leave=False):
            x = normalize(lens.weights, index, mean + W_pos)
            is_visible = visible(lens.weights, index, positions[:, None], positions)
            uniform = _mean_attention(is_visible / is_visible.sum(dim=1, keepdim=True))["same_position"]
            for h, q, k in _queries_and_keys(lens.weights, index, heads):
                q, k = float64(q).to(x), float64(k).to(x)
                attention = _attention(lens.weights, index, h, x, q, k, is_visible)
                squares = {
                    f"{dest}_{src}": float(((q.T @ moments[dest] @ q) * (k.T @ covariances[src] @ k)).sum())
                    for dest in moments
                    for src in covariances
                }
                total = sum(squares.values()) or np.nan
                yield {
                    "layer": index,
                    "head": h,
                    "uniform": uniform,
                    **_mean_attention(attention),
                    **{name: value / total for name, value in squares.items()},
                }

    return tidy(columns, blocks())


def _position_embeddings(lens: EmbeddingLens) -> Float[Tensor, "n_ctx d_model"]:
    if not lens.weights.has_positions:
        raise errors.unsupported(
            f"W_pos of {lens.name}",
            "its positions are not learned embeddings. lens.qk(distance=…) reads rotary ones",
        )
    return lens.weights.W_pos.float()


def _token_moments(
    lens: EmbeddingLens, frequencies: Any
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "d_model d_model"]]:
    """The mean and the second moment of the lens's token embeddings, weighted by frequency, in float64."""
    embedding, d_vocab = Embedding(lens.weights.W_E, token_ids=lens.space.token_ids), len(lens.weights.W_E)
    share = torch.ones(d_vocab) if frequencies is None else as_tensor(frequencies, "frequencies").cpu()
    if share.shape != (d_vocab,) or not torch.isfinite(share).all() or (share < 0).any():
        raise errors.bad_frequencies(tuple(share.shape), d_vocab)
    share = share.double()[lens.space.token_ids]
    if share.sum() == 0:
        raise errors.zero_frequencies()
    share = share / share.sum()
    mean, moment, start = torch.zeros(lens.weights.d_model).double(), torch.zeros(()).double(), 0
    for tile in embedding.tiles():
        rows = float64(tile).cpu()
        weighted = share[start : start + len(rows), None] * rows
        mean, moment, start = mean + weighted.sum(dim=0), moment + rows.T @ weighted, start + len(rows)
    return mean, moment


def _queries_and_keys(
    weights: Weights, layer: int, heads: list[int]
) -> Iterator[tuple[int, Float[Tensor, "d_model d_head"], Float[Tensor, "d_model d_head"]]]:
    """Each head with its W_Q and W_K."""
    q, k = weights.W_Q(layer), weights.W_K(layer)
    return ((h, q[h], k[h]) for h in heads)


def _attention(
    weights: Weights,
    layer: int,
    head: int,
    x: Float[Tensor, "n_ctx d_model"],
    q: Float[Tensor, "d_model d_head"],
    k: Float[Tensor, "d_model d_head"],
    is_visible: Bool[Tensor, "n_ctx n_ctx"],
) -> Float[Tensor, "n_ctx n_ctx"]:
    """The attention pattern of a head on the normalised residual vectors x."""
    b_Q, b_K = (attention_bias(weights, layer, head, name).to(x) for name in ("b_Q", "b_K"))
    scores = (x @ q + b_Q) @ (x @ k + b_K).T * attention_scale(weights, layer, q.shape[1])
    return scores.masked_fill(~is_visible.to(scores.device), -torch.inf).softmax(dim=-1)


def _mean_attention(attention: Float[Tensor, "n_ctx n_ctx"]) -> dict[str, float]:
    """The mean attention to the previous, the first and the own position, over the queries for which they differ."""
    return {
        "previous_token": float(attention.diagonal(-1)[FIRST_QUERY - 1 :].mean()),
        "first_token": float(attention[FIRST_QUERY:, 0].mean()),
        "same_position": float(attention.diagonal()[FIRST_QUERY:].mean()),
    }
