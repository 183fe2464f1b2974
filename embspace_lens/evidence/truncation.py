"""Keep-k: the right inverse that preserves inner products when only k scores of a projection are kept."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..lens import EmbeddingLens
from ..search.tiles import chunks
from ..space.embedding_space import INVERSES, Inverse
from ..space.embeddings import as_tensor
from ..tables.checks import check_choice, check_integer, check_k
from ..tables.frames import tidy
from .layer_directions import directions_of


def keep_k(
    lens: EmbeddingLens,
    vectors: Any = None,
    *,
    ks: Sequence[int] | None = None,
    n: int = 300,
    seed: int = 0,
    inverses: Inverse | Sequence[Inverse] = INVERSES,
) -> pd.DataFrame:
    r"""Measure how well inner products are preserved when only the k largest scores of each vector are kept.

    With a right inverse E', inner products of residual vectors are inner products in embedding space:
    $X X^\top = (XE)(XE')^\top$. But a reading lists only the top tokens of a projection. So all but the k entries of
    largest absolute value are set to zero in each row of both factors, and the measure is the cosine of the two products:

    .. math:: \cos\left(\operatorname{vec} X X^\top,\;
              \operatorname{vec}\, \operatorname{keep}_k(XE)\, \operatorname{keep}_k(XE')^\top\right)

    The transpose is not a right inverse, but preserves inner products at small k. The pseudo-inverse is exact for all
    scores, but preserves inner products only if k is most of the vocabulary. E is the embedding through which the lens writes, with its tokens and its score.

    Args:
        lens: The model's lens.
        vectors: More vectors to measure, `[n, d_model]`, such as hidden states; or several, by name.
        ks: How many entries to keep; by default powers of two from 16, and the whole vocabulary.
        n: How many vectors to draw from each source: Gaussian vectors, rows of W_out of all layers, and `vectors`.
        seed: Seed of the draws.
        inverses: `"transpose"`, `"pinv"`, or both.

    Returns:
        One row per (source, inverse, k), with `similarity` and `n`, the number of vectors. The sources are `"gaussian"`,
        `"W_out"` if the model has an MLP, and `"given"` or the names in `vectors`.

    Raises:
        EmbspaceError: If a k is larger than the vocabulary, an inverse is unknown, or vectors do not fit the model.

    Example:
        >>> keep_k(lens, ks=[8, 64], n=20, inverses="pinv")["source"].tolist()
        ['W_out', 'W_out', 'gaussian', 'gaussian']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space. https://arxiv.org/abs/2209.02535
    """
    names = [inverses] if isinstance(inverses, str) else list(inverses)
    selected: set[Inverse] = {check_choice("inverses", name, INVERSES) for name in names}
    n_tokens = lens.space.n_tokens
    if ks is None:
        ks = [*(2**i for i in range(4, n_tokens.bit_length()) if 2**i < n_tokens), n_tokens]
    ks = sorted({check_k(k, n_tokens) for k in ks})
    sources = _sources(lens, vectors, check_integer("n", n, minimum=2), seed)

    def blocks() -> Iterator[dict[str, Any]]:
        curves: list[tuple[str, Inverse]] = [
            (source, inverse) for source in sorted(sources) for inverse in sorted(selected)
        ]
        for source, inverse in tqdm(curves, desc="keep-k", unit="curve", disable=None, leave=False):
            x = lens.space.vectors(sources[source], "write")
            similarity = _similarities(lens, x, ks, inverse)
            yield {"source": source, "inverse": inverse, "k": ks, "similarity": similarity, "n": len(x)}

    return tidy(["source", "inverse", "k", "similarity", "n"], blocks(), kind="keep_k")


def _sources(lens: EmbeddingLens, vectors: Any, n: int, seed: int) -> dict[str, Float[Tensor, "_ d_model"]]:
    """The vectors of each source, at most n of each."""
    generator = torch.Generator().manual_seed(seed)
    sources = {"gaussian": torch.randn(n, lens.weights.d_model, generator=generator)}
    layers = lens.weights.layers_with("mlp")
    if layers:
        sources["W_out"] = _sample_outputs(lens, layers, n, generator)
    given = vectors if isinstance(vectors, Mapping) else {} if vectors is None else {"given": vectors}
    for name, value in given.items():
        x = as_tensor(value, f"vectors {name!r}")
        if x.ndim != 2 or len(x) < 2:
            raise errors.not_several_vectors(str(name), tuple(x.shape))
        if name in sources:
            raise errors.reserved_source(str(name))
        sources[str(name)] = x[torch.randperm(len(x), generator=generator)[:n].sort().values.to(x.device)]
    return sources


def _sample_outputs(
    lens: EmbeddingLens, layers: Sequence[int], n: int, generator: torch.Generator
) -> Float[Tensor, "n_drawn d_model"]:
    """Rows of W_out, drawn from all layers and experts together."""
    weights = lens.weights
    widths = [sum(weights.d_mlp(layer, expert) for expert in weights.experts(layer)) for layer in layers]
    drawn = torch.randperm(sum(widths), generator=generator)[:n].sort().values
    parts, start = [], 0
    for layer, width in zip(layers, widths):
        drawn_here = drawn[(drawn >= start) & (drawn < start + width)] - start
        start += width
        first = 0
        for rows in directions_of(weights, "W_out", layer) if len(drawn_here) else ():
            drawn_rows = drawn_here[(drawn_here >= first) & (drawn_here < first + len(rows))] - first
            first += len(rows)
            parts.append(rows[drawn_rows.to(rows.device)].cpu())
    return torch.cat(parts)


def _similarities(
    lens: EmbeddingLens, x: Float[Tensor, "n d_model"], ks: Sequence[int], inverse: Inverse
) -> Float64[Tensor, " n_ks"]:
    """One cosine for each k, chunk by chunk of X Xᵀ: neither the scores nor the product are stored as a whole."""
    rows = lens.space.write
    y = x @ rows.inverse_gram.to(x) if inverse == "pinv" else x
    dots = torch.zeros(3, len(ks), dtype=torch.float64)  # <true, kept>, <kept, kept>, <true, true>
    # For each chunk, all others are scored again. 300 vectors (the default) over 50,000 tokens are one chunk.
    parts = list(chunks(len(x), 4 * len(rows), scale=4))
    for left in parts:
        a = rows.scores(x[left])
        rank_a = _ranks(a)
        for right in parts:
            b = a if inverse == "transpose" and left == right else rows.scores(y[right])
            rank_b = rank_a if b is a else _ranks(b)
            true = (x[left] @ x[right].T).double()
            for i, k in enumerate(ks):
                product = (_keep(a, rank_a, k) @ _keep(b, rank_b, k).T).double()
                dots[:, i] += torch.stack([(true * product).sum(), product.square().sum(), true.square().sum()]).cpu()
    return dots[0] / (dots[1] * dots[2]).sqrt().clamp_min(torch.finfo(torch.float64).tiny)


def _ranks(scores: Float[Tensor, "n n_tokens"]) -> Int[Tensor, "n n_tokens"]:
    """The rank of each entry in its row by absolute value, 0 for the largest; equal values in order of position."""
    order = scores.abs().argsort(dim=1, descending=True, stable=True).int()
    ranks = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order.long(), ranks)


def _keep(scores: Float[Tensor, "n n_tokens"], rank: Int[Tensor, "n n_tokens"], k: int) -> Float[Tensor, "n n_tokens"]:
    return torch.where(rank < k, scores, 0)
