"""Salient operations of heads (MAPS): the tokens that W_OV amplifies most, and the tokens that it maps them to."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ..lens import EmbeddingLens
from ..readings.base import token_block
from ..readings.pair_search import pair_columns
from ..search.tiles import chunks
from ..tables.checks import check_integer, check_k
from ..tables.frames import tidy
from ..tables.selection import Select
from .relations import source_vectors


def salient_operations(
    lens: EmbeddingLens,
    layer: Select = None,
    head: Select = None,
    *,
    n: int = 30,
    k: int = 10,
    largest: bool = True,
    first_mlp: bool = True,
) -> pd.DataFrame:
    r"""List the tokens that each head amplifies most, and the tokens that it maps them to.

    .. math:: \sigma_s = \frac{\lVert x_s W_{OV} \rVert}{\lVert x_s \rVert}, \qquad
              s \mapsto \operatorname{top}_k (x_s W_{OV} W_U)

    with x_s as in `relation_scores`. This finds what a head does without a list of relations to test. Norms are folded as in the
    lens; the original reads the weights as stored (`fold_ln=False`), and applies the first MLP in block 0 too.

    Args:
        lens: The model's lens; source and target tokens are among the tokens that it reads.
        layer: Which blocks; all by default.
        head: Which query heads.
        n: The number of source tokens of each head.
        k: The number of target tokens of each source token.
        largest: List the most promoted tokens first; with False, the most suppressed.
        first_mlp: With False, x_s is the embedding in every block.

    Returns:
        One row per (layer, head, src_rank, rank), with `dest_token_*`, `src_token_*`, `score` and `amplification` (σ).

    Raises:
        EmbspaceError: If the model has no such layer or head, or fewer than n or k tokens are read.

    Example:
        >>> salient_operations(lens, layer=0, head=1, n=2, k=2)[["src_rank", "rank"]].values.tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]

    References:
        Elhelo & Geva (2025), Inferring Functionality of Attention Heads from their Parameters, §3.2. https://arxiv.org/abs/2412.11965
    """
    n_tokens = lens.space.n_tokens
    k = check_k(k, n_tokens)
    n = check_integer("n", n, minimum=1, maximum=n_tokens, count_of="tokens that this lens reads")
    layers, heads = lens.weights.select_layers(layer, "attn"), lens.weights.select_heads(head)

    def blocks() -> Iterator[dict[str, Any]]:
        for index, (amplification, tokens) in _most_amplified(lens, layers, heads, n, first_mlp).items():
            form = lens.weights.W_OV(index)
            x = source_vectors(lens, tokens.flatten(), [index], first_mlp)(index).to(form.A)
            y = x.unflatten(0, tokens.shape) @ form.A[heads] @ form.B[heads]
            block = token_block(lens, y.flatten(0, 1), "write", k, largest=largest)
            row = block["row"]
            yield {
                "layer": index,
                "head": np.asarray(heads)[row // n],
                "src_rank": row % n,
                "rank": block["rank"],
                "dest_token_index": block["token_index"],
                "src_token_index": tokens.flatten().numpy()[row],
                "score": block["score"],
                "amplification": amplification.flatten().numpy()[row],
            }

    columns = ["layer", "head", "src_rank", "rank", *pair_columns(lens, ["W_OV"]), "score", "amplification"]
    return tidy(columns, blocks() if layers and heads else [], lens.vocabulary.array, kind="pairs")


def _most_amplified(
    lens: EmbeddingLens, layers: list[int], heads: list[int], n: int, first_mlp: bool
) -> dict[int, tuple[Float[Tensor, "n_heads n"], Int[Tensor, "n_heads n"]]]:
    """By layer, the amplifications and ids of each head's n most amplified tokens; equal amplifications in order of id."""
    token_ids = lens.space.token_ids
    best = {layer: (torch.zeros(len(heads), 0), torch.zeros(len(heads), 0, dtype=torch.long)) for layer in layers}
    total = len(token_ids) * len(layers)
    with tqdm(total=total, desc="salient", unit="token", unit_scale=True, disable=None, leave=False) as bar:
        # Four times the usual memory: each chunk computes the W_OV of all layers again.
        for chunk in chunks(len(token_ids), 4 * lens.space.d_model, scale=4.0):
            tokens = token_ids[chunk]
            sources = source_vectors(lens, tokens, layers, first_mlp)
            for layer in layers:
                best_values, best_tokens = best[layer]
                form = lens.weights.W_OV(layer)
                x = sources(layer).to(form.A)
                x_norm = x.norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
                y_norm = torch.stack([_product_norms(x @ form.A[head], form.B[head]) for head in heads])
                values = torch.cat([best_values, (y_norm / x_norm).cpu()], dim=1)
                candidates = torch.cat([best_tokens, tokens.expand(len(heads), -1)], dim=1)
                # The sort is stable and token ids are ascending.
                values, order = values.sort(dim=1, descending=True, stable=True)
                best[layer] = values[:, :n], candidates.gather(1, order[:, :n])
                bar.update(len(tokens))
    return best


def _product_norms(y: Float[Tensor, "n d_head"], matrix: Float[Tensor, "d_head d_model"]) -> Float[Tensor, " n"]:
    """The norm of every row of `y @ matrix`, through the small Gram matrix `matrix matrixᵀ`."""
    return ((y @ (matrix @ matrix.T)) * y).sum(dim=1).clamp_min(0).sqrt()
