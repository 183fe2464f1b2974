"""What a head does most: the tokens that its W_OV amplifies most, and what it makes of them (MAPS)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ..errors import EmbspaceError
from ..lens import EmbeddingLens
from ..readings.base import token_block
from ..tables.checks import check_k
from ..tables.frames import tidy
from ..tables.selection import Select
from .relations import sources_of

CHUNK_BYTES = 2**26  # of token vectors held at a time


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

    with x_s as in `relation_scores`. No relation need be thought of beforehand: this is what the head itself stands out by.

    Args:
        lens: The model; both ends of a mapping are tokens that it reads.
        layer: Which blocks; all of them by default.
        head: Which query heads.
        n: How many source tokens of each head.
        k: How many tokens each of them is mapped to.
        largest: The tokens promoted most first; with False, those suppressed most.
        first_mlp: With False, x_s is the embedding in every block.

    Returns:
        One row per (layer, head, src_rank, rank) with `dest_token_*`, `src_token_*`, `score` and `amplification`.

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
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= n_tokens:
        raise EmbspaceError(f"n={n!r} is not between 1 and {n_tokens:,}, the number of tokens that this lens reads.")
    layers, heads = lens.weights.select_layers(layer, "attn"), lens.weights.select_heads(head)

    def blocks() -> Iterator[dict[str, Any]]:
        for number, (amplification, tokens) in _most_amplified(lens, layers, heads, int(n), first_mlp).items():
            form = lens.weights.W_OV(number)
            sources = sources_of(lens, tokens.flatten(), [number], first_mlp)(number).to(form.A)
            x = sources.unflatten(0, tokens.shape) @ form.A[heads] @ form.B[heads]
            block = token_block(lens, x.flatten(0, 1), "write", k, largest=largest)
            row = block.pop("row")
            yield {
                "layer": number,
                "head": np.asarray(heads)[row // n],
                "src_rank": row % n,
                "rank": block["rank"],
                "dest_token_index": block["token_index"],
                "src_token_index": tokens.flatten().numpy()[row],
                "score": block["score"],
                "amplification": amplification.flatten().numpy()[row],
            }

    pairs = [f"{end}_token_{what}" for end in ("dest", "src") for what in ("index", "string")]
    columns = ["layer", "head", "src_rank", "rank", *pairs, "score", "amplification"]
    return tidy(columns, blocks() if layers and heads else [], lens.vocabulary.array)


def _most_amplified(
    lens: EmbeddingLens, layers: list[int], heads: list[int], n: int, first_mlp: bool
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """By layer, each head's n most amplified tokens: amplification and token ids, `[n_heads, n]`, equal ones by id."""
    ids = lens.space.token_ids
    chunks = ids.split(max(1, CHUNK_BYTES // (4 * lens.space.d_model)))
    best = {number: (torch.zeros(len(heads), 0), torch.zeros(len(heads), 0, dtype=torch.long)) for number in layers}
    with tqdm(
        total=len(ids) * len(layers), desc="salient", unit="token", unit_scale=True, disable=None, leave=False
    ) as bar:
        for chunk in chunks:
            seen = sources_of(lens, chunk, layers, first_mlp)
            for number in layers:
                form = lens.weights.W_OV(number)
                x = seen(number).to(form.A)
                length = x.norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
                found = torch.stack([_lengths(x @ form.A[head], form.B[head]) for head in heads]) / length
                value = torch.cat([best[number][0], found.cpu()], 1)
                token = torch.cat([best[number][1], chunk.expand(len(heads), -1)], 1)
                # The sort is stable and tokens come in ascending order.
                value, order = value.sort(dim=1, descending=True, stable=True)
                best[number] = value[:, :n], token.gather(1, order[:, :n])
                bar.update(len(chunk))
    return best


def _lengths(y: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The length of every row of `y @ matrix`, through the small matrix Gram."""
    return ((y @ (matrix @ matrix.T)) * y).sum(dim=1).clamp_min(0).sqrt()
