"""Composition through tokens: whether a later head matches each token with the same token, stored by an earlier head."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ..lens import EmbeddingLens
from ..search.tokens import top_tokens
from ..tables.checks import check_integer, check_k
from ..tables.frames import tidy
from ..tables.selection import Select
from .permutation_tests import Hits, MaximumTest, shuffled

MIN_TOKENS = 2  # a shuffle needs two tokens


def token_composition(
    lens: EmbeddingLens,
    layer: Select = None,
    head: Select = None,
    *,
    k: int = 10,
    n_tokens: int = 500,
    n_shuffles: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Score K-composition of each pair of heads through tokens: the share of tokens that match themselves.

    The earlier head writes a token u into the residual stream, and the later head's query of token t scores a key that reads it:

    .. math:: s(t, u) = e_t\, W_{QK}^\mathrm{later}\, \big( e_u\, W_{OV}^\mathrm{earlier} \big)^\top

    Of an induction circuit, the best u for each t is t itself. `matching` is the share of tokens t that are among the k tokens u
    with the highest scores. Unlike the composition score of Elhage et al., a ratio of norms, it is high only if the content of
    what the earlier head writes is what the later head reads.

    Positions, biases and blocks between the two heads are left out. Keys of each earlier head are made for all tokens of the lens; the t × u
    matrix is never held.

    Args:
        lens: The model's lens; tokens are scored among those that it reads, with its score.
        layer: The blocks of the later heads; all by default. All heads of earlier blocks are paired with them.
        head: Which later query heads.
        k: A token matches if it is among the best k.
        n_tokens: The number of random tokens t; all of the lens's tokens if it reads fewer.
        n_shuffles: The number of shuffles for the p-value.
        seed: Seed of the tokens and shuffles.

    Returns:
        One row per (src_layer, src_head, layer, head), with `matching`, `control`, `p_value` and `n`, the number of tokens t.
        `control` is the expected value for shuffled tokens t, because some tokens u score high with every t. `p_value` is the share of
        shuffles in which the best of the table's pairs scores at least as high as this pair, so it needs no correction for the
        number of pairs.

    Raises:
        EmbspaceError: If the model has no such layer or head, or an option is out of range.

    Example:
        >>> table = token_composition(EmbeddingLens(demo.induction_model()), k=1)
        >>> table.nlargest(1, "matching")[["src_layer", "src_head", "layer", "head", "matching"]].values.tolist()
        [[0.0, 1.0, 1.0, 2.0, 1.0]]

    References:
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Two-Layer Attention-Only Transformers".
        Westfall & Young (1993), Resampling-Based Multiple Testing (the p-value of the maximum over pairs).
    """
    n_read = lens.space.n_tokens
    k = check_k(k, n_read)
    n = min(check_integer("n_tokens", n_tokens, minimum=MIN_TOKENS), n_read)
    n_shuffles = check_integer("n_shuffles", n_shuffles, minimum=1)
    layers, heads = sorted(lens.weights.select_layers(layer, "attn")), sorted(lens.weights.select_heads(head))
    all_layers = lens.weights.layers_with("attn")
    pairs = [
        (src_layer, src_head, later, h)
        for src_layer in all_layers
        for src_head in range(lens.weights.n_heads)
        for later in layers
        for h in heads
        if src_layer < later
    ]
    columns = ["src_layer", "src_head", "layer", "head", "matching", "control", "p_value", "n"]
    if not pairs:
        return tidy(columns, [])
    sample = torch.randperm(n_read, generator=torch.Generator().manual_seed(seed))[:n]
    targets = torch.arange(n)
    column_of = torch.full((n_read,), n)  # tokens outside the sample share the last column
    column_of[sample] = targets
    test = MaximumTest(len(pairs), shuffled(targets, n_shuffles, seed))
    index = {pair: i for i, pair in enumerate(pairs)}
    with tqdm(total=len(pairs), desc="composition", unit="pair", disable=None, leave=False) as progress:
        for later in layers:
            for pair, queries, keys in _queries_and_keys(lens, sample, later, heads, all_layers):
                top = top_tokens(queries, keys, k)[1].cpu()
                test.add(index[pair], Hits(column_of[top], targets, n))
                progress.update()
    names = dict(zip(("src_layer", "src_head", "layer", "head"), np.array(pairs).T, strict=True))
    return tidy(columns, [names | {"matching": test.score, "control": test.control, "p_value": test.p_value, "n": n}])


def _queries_and_keys(
    lens: EmbeddingLens, sample: Int[Tensor, " n"], later: int, heads: list[int], layers: list[int]
) -> Iterator[tuple[tuple[int, int, int, int], Float[Tensor, "n d_head"], Float[Tensor, "n_tokens d_head"]]]:
    """By pair of heads, matrices whose product is the score of each sampled token with each token, through d_head dimensions.

    The keys are the values of the earlier head; its W_O and the later head's W_K are folded into the queries.
    """
    weights, embedding = lens.weights, lens.space.rows("read")
    sampled = embedding[sample]
    W_Q, W_K = weights.W_Q(later), weights.W_K(later)
    read = [(sampled.to(W_Q) @ W_Q[h]) @ W_K[h].T for h in heads]
    for src_layer in layers:
        if src_layer >= later:
            continue
        W_V, W_O = weights.W_V(src_layer), weights.W_O(src_layer)
        for src_head in range(weights.n_heads):
            values = embedding.scores(W_V[src_head].T.to(embedding.device, embedding.dtype)).T.contiguous()
            for h, queries in zip(heads, read, strict=True):
                yield (src_layer, src_head, later, h), (queries.to(W_O) @ W_O[src_head].T).to(values), values
