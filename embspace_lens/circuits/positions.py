"""Learned position embeddings as items of their own: whom a head attends to by place alone, and how much place decides."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
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

FIRST = 2  # the first place whose own, previous and first tokens are three


def position_qk(
    lens: EmbeddingLens, layer: Select = None, head: Select = None, *, positions: Select = None
) -> pd.DataFrame:
    r"""Read whom each head attends to by place alone: the score of every query position for every key position.

    .. math:: s(\mathrm{dest}, \mathrm{src}) = p_\mathrm{dest}\, W_Q W_K^\top\, p_\mathrm{src}^\top

    Position embeddings stand in the stream where tokens do, so that a score here is to be read as those of `lens.qk`: before
    the division by √d_head, and by the norm. A causal model's head sees no position behind its own, and in local blocks none too far
    before it; such pairs are left out.

    Args:
        lens: The lens of a model with learned position embeddings.
        layer: Which blocks; all of them by default. What later blocks see of positions has passed the blocks before.
        head: Which query heads.
        positions: Which positions, on both sides; all that the model has by default, which is n_ctx² / 2 rows for each head.

    Returns:
        One row per (layer, head, dest_pos, src_pos), with `score`.

    Raises:
        EmbspaceError: If the model's positions are not learned embeddings, or it has no such layer, head or position.

    Example:
        >>> position_qk(lens, layer=0, head=1, positions=range(2))[["dest_pos", "src_pos"]].values.tolist()
        [[0, 0], [1, 0], [1, 1]]

    References:
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Eigenvalue analysis" (positional heads).
    """
    layers, heads = _selected(lens, layer, head)
    W_pos = _positions(lens)
    chosen = torch.tensor(select("positions", positions, len(W_pos), lens.name, "positions"), dtype=torch.long)
    dest, src = (part.flatten() for part in torch.meshgrid(chosen, chosen, indexing="ij"))
    rows = W_pos[chosen.to(W_pos.device)]

    def blocks() -> Iterator[dict[str, Any]]:
        for number in tqdm(layers if len(dest) else [], desc="position_qk", unit="layer", disable=None, leave=False):
            seen = visible(lens.weights, number, dest, src)
            for h, q, k in _heads(lens.weights, number, heads):
                scores = ((rows @ q) @ (rows @ k).T).cpu()
                yield {
                    "layer": number,
                    "head": h,
                    "dest_pos": dest[seen],
                    "src_pos": src[seen],
                    "score": scores.flatten()[seen],
                }

    return tidy(["layer", "head", "dest_pos", "src_pos", "score"], blocks())


def position_heads(
    lens: EmbeddingLens, layer: Select = None, head: Select = None, *, frequencies: Any = None
) -> pd.DataFrame:
    r"""Describe every head by what place does to its attention.

    Attention by place alone is that of a text of mean tokens: the stream holds :math:`x_i = \bar e + p_i`, the mean embedding of
    the lens's tokens and a position, and passes the norm,

    .. math:: A_{ij} = \operatorname{softmax}_{j} \; (\hat x_i W_Q + b_Q)(\hat x_j W_K + b_K)^\top / \sqrt{d_\mathrm{head}}

    `previous_token`, `first_token` and `same_position` are the means of :math:`A_{i,i-1}`, :math:`A_{i,0}` and :math:`A_{ii}` over
    the positions from the third on; attention spread evenly would give each `uniform`, the mean of 1/(i+1) where all positions
    before are seen. The norm's bias is in b_Q and b_K.

    How token and place share the work: a score of query (token t, place i) and key (token u, place j) is the sum of four,

    .. math:: e_t W \tilde e_u + e_t W \tilde p_j + p_i W \tilde e_u + p_i W \tilde p_j, \qquad W = W_Q W_K^\top

    with keys less their mean, for what all keys share moves no attention. `token_token`, `token_position`, `position_token` and
    `position_position` (query first) are the mean squares of the four over all tokens and places, as shares of their sum.

    Args:
        lens: The lens of a model with learned position embeddings; its tokens count.
        layer: Which blocks; all of them by default. The figures are exact for the first block's stream alone.
        head: Which query heads.
        frequencies: How often each token is, `[d_vocab]`, counts or shares; all of the lens's tokens alike by default. Mean tokens
            of real texts lie elsewhere than those of a vocabulary, and attention by place with them.

    Returns:
        One row per (layer, head), with `previous_token`, `first_token`, `same_position`, `uniform`, `token_token`,
        `token_position`, `position_token` and `position_position`.

    Raises:
        EmbspaceError: If the model's positions are not learned embeddings, it has no such layer or head, or frequencies are not one
            number for each token.

    Example:
        >>> found = position_heads(lens, layer=0)
        >>> found.filter(regex="^(token|position)_").sum(axis=1).round(4).tolist()
        [1.0, 1.0, 1.0, 1.0]

    References:
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits. Voita et al. (2019), Analyzing Multi-Head
        Self-Attention, §4 (positional heads). https://arxiv.org/abs/1905.09418
    """
    layers, heads = _selected(lens, layer, head)
    columns = ["layer", "head", "previous_token", "first_token", "same_position", "uniform"]
    columns += ["token_token", "token_position", "position_token", "position_position"]
    W_pos = float64(_positions(lens))
    n = len(W_pos)
    if n <= FIRST:
        raise errors.EmbspaceError(f"{lens.name} has {n} positions; previous, first and own token are three.")
    if not layers or not heads:
        return tidy(columns, [])
    mean, moment = (part.to(W_pos.device) for part in _token_moments(lens, frequencies))
    # Query sides by their second moments, key sides by their covariances.
    moments = {"token": moment, "position": W_pos.T @ W_pos / n}
    spreads = {"token": moments["token"] - torch.outer(mean, mean)}
    spreads["position"] = moments["position"] - torch.outer(W_pos.mean(dim=0), W_pos.mean(dim=0))
    place = torch.arange(n)

    def blocks() -> Iterator[dict[str, Any]]:
        for number in tqdm(layers, desc="position_heads", unit="layer", disable=None, leave=False):
            x = normalize(lens.weights, number, mean + W_pos)
            seen = visible(lens.weights, number, place[:, None], place)
            uniform = _shares(seen / seen.sum(dim=1, keepdim=True))["same_position"]
            for h, q, k in _heads(lens.weights, number, heads):
                q, k = float64(q).to(x), float64(k).to(x)
                b_Q, b_K = (attention_bias(lens.weights, number, h, f"b_{side}").to(x) for side in "QK")
                scores = (x @ q + b_Q) @ (x @ k + b_K).T * attention_scale(lens.weights, number, q.shape[1])
                found = _shares(scores.masked_fill(~seen.to(scores.device), -torch.inf).softmax(dim=-1))
                squares = {
                    f"{dest}_{src}": float(((q.T @ moments[dest] @ q) * (k.T @ spreads[src] @ k)).sum())
                    for dest in moments
                    for src in spreads
                }
                total = sum(squares.values()) or np.nan
                yield {
                    "layer": number,
                    "head": h,
                    "uniform": uniform,
                    **found,
                    **{name: value / total for name, value in squares.items()},
                }

    return tidy(columns, blocks())


def _selected(lens: EmbeddingLens, layer: Select, head: Select) -> tuple[list[int], list[int]]:
    return lens.weights.select_layers(layer, "attn"), lens.weights.select_heads(head)


def _positions(lens: EmbeddingLens) -> Float[Tensor, "n_ctx d_model"]:
    if not lens.weights.has_positions:
        raise errors.unsupported(
            f"W_pos of {lens.name}",
            "its positions are not learned embeddings. lens.qk(distance=…) reads rotary ones",
        )
    return lens.weights.W_pos.float()


def _token_moments(
    lens: EmbeddingLens, frequencies: Any
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "d_model d_model"]]:
    """The mean and the second moment of the lens's token embeddings, in float64, each token as often as it is."""
    tokens, d_vocab = Embedding(lens.weights.W_E, token_ids=lens.space.token_ids), len(lens.weights.W_E)
    share = torch.ones(d_vocab) if frequencies is None else as_tensor(frequencies, "frequencies").cpu()
    if share.shape != (d_vocab,) or not torch.isfinite(share).all() or (share < 0).any():
        raise errors.EmbspaceError(
            f"frequencies have shape {tuple(share.shape)}; give one number of 0 or more for each of {d_vocab:,} tokens."
        )
    share = share.double()[lens.space.token_ids]
    if share.sum() == 0:
        raise errors.EmbspaceError("frequencies are 0 for every token that this lens reads.")
    share = share / share.sum()
    mean, moment, start = torch.zeros(lens.weights.d_model).double(), torch.zeros(()).double(), 0
    for tile in tokens.tiles():
        rows = float64(tile).cpu()
        part = share[start : start + len(rows), None]
        mean, moment, start = mean + (part * rows).sum(dim=0), moment + rows.T @ (part * rows), start + len(rows)
    return mean, moment


def _heads(weights: Weights, layer: int, heads: list[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    q, k = weights.W_Q(layer), weights.W_K(layer)
    return ((h, q[h], k[h]) for h in heads)


def _shares(attention: Float[Tensor, "n n"]) -> dict[str, float]:
    """Mean attention to the previous, the first and the own position, over those positions for which they are three."""
    return {
        "previous_token": float(attention.diagonal(-1)[FIRST - 1 :].mean()),
        "first_token": float(attention[FIRST:, 0].mean()),
        "same_position": float(attention.diagonal()[FIRST:].mean()),
    }
