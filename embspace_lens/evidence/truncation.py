"""Keep-k: which right inverse survives when only a few tokens of a projection are kept?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..lens import EmbeddingLens
from ..search.tiles import chunks
from ..space.embedding_space import INVERSES
from ..space.embeddings import as_tensor
from ..tables.checks import check_k
from ..tables.frames import tidy
from .layer_directions import directions


def keep_k(
    lens: EmbeddingLens,
    vectors: Any = None,
    *,
    ks: Sequence[int] | None = None,
    n: int = 300,
    seed: int = 0,
    inverses: str | Sequence[str] = INVERSES,
) -> pd.DataFrame:
    r"""Measure how well inner products survive when each vector is known by its k strongest tokens alone.

    A right inverse E' lets vectors of the residual stream meet in embedding space, $X X^\top = (XE)(XE')^\top$. A reader sees
    only the top of such a projection, so what matters is how much of the product is left once all but the k entries of
    largest absolute value are zero, in each factor and in each row:

    .. math:: \cos\left(\operatorname{vec} X X^\top,\;
              \operatorname{vec}\, \operatorname{keep}_k(XE)\, \operatorname{keep}_k(XE')^\top\right)

    The transpose is no right inverse, but keeps its meaning at small k; the pseudo-inverse is exact, and needs most of the
    vocabulary for it. E is what this lens writes through, over the tokens and with the score of the lens.

    Args:
        lens: The model.
        vectors: More vectors to measure, `[n, d_model]`, hidden states for example; or several, by name.
        ks: How many entries to keep; by default powers of two from 16, and the whole vocabulary.
        n: How many vectors to draw: Gaussian ones, rows of W_out over all layers, and of what is given if it is more.
        seed: Of the draws.
        inverses: `"transpose"`, `"pinv"`, or both.

    Returns:
        One row per (source, inverse, k) with `similarity` and `n`, the number of vectors. The sources are `"gaussian"`,
        `"W_out"` where the model has an MLP, and `"given"` or the names of `vectors`.

    Raises:
        EmbspaceError: If a k is larger than the vocabulary, an inverse unknown, or vectors do not fit the model.

    Example:
        >>> evidence.keep_k(lens, ks=[8, 64], n=20, inverses="pinv")["source"].tolist()
        ['W_out', 'W_out', 'gaussian', 'gaussian']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §3 and appendix. https://arxiv.org/abs/2209.02535
    """
    chosen = [inverses] if isinstance(inverses, str) else list(inverses)
    for name in chosen:
        if name not in INVERSES:
            raise errors.choice("inverses", name, INVERSES)
    n_tokens = lens.space.n_tokens
    default = [*(2**i for i in range(4, n_tokens.bit_length()) if 2**i < n_tokens), n_tokens]
    kept = sorted({check_k(k, n_tokens) for k in (default if ks is None else ks)})
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise errors.EmbspaceError(f"n={n!r} is not a number of vectors that have inner products. Give 2 or more.")
    sources = _sources(lens, vectors, n, seed)

    def blocks() -> Iterator[dict[str, Any]]:
        runs = [(source, inverse) for source in sorted(sources) for inverse in sorted(set(chosen))]
        for source, inverse in tqdm(runs, desc="keep-k", unit="curve", disable=None, leave=False):
            x = lens.space.vectors(sources[source], "write")
            yield {
                "source": source,
                "inverse": inverse,
                "k": kept,
                "similarity": _similarities(lens, x, kept, inverse),
                "n": len(x),
            }

    return tidy(["source", "inverse", "k", "similarity", "n"], blocks())


def _sources(lens: EmbeddingLens, vectors: Any, n: int, seed: int) -> dict[str, Float[Tensor, "n d_model"]]:
    """The vectors of each source, n of them at most."""
    generator = torch.Generator().manual_seed(seed)
    found = {"gaussian": torch.randn(n, lens.weights.d_model, generator=generator)}
    layers = lens.weights.layers_with("mlp")
    if layers:
        found["W_out"] = _some_values(lens, layers, n, generator)
    given = vectors if isinstance(vectors, Mapping) else {} if vectors is None else {"given": vectors}
    for name, value in given.items():
        x = as_tensor(value, f"vectors {name!r}")
        if x.ndim != 2 or len(x) < 2:
            raise errors.EmbspaceError(
                f"vectors {str(name)!r} have shape {tuple(x.shape)}; give [n, d_model], two vectors or more."
            )
        if name in found:
            raise errors.EmbspaceError(
                f"vectors may not be called {name!r}: a row of the table would have two meanings."
            )
        found[str(name)] = x[torch.randperm(len(x), generator=generator)[:n].sort().values.to(x.device)]
    return found


def _some_values(
    lens: EmbeddingLens, layers: Sequence[int], n: int, generator: torch.Generator
) -> Float[Tensor, "n d_model"]:
    """Rows of W_out, drawn from all layers (and experts) together."""
    weights = lens.weights
    widths = [sum(weights.d_mlp(layer, expert) for expert in weights.experts(layer)) for layer in layers]
    drawn = torch.randperm(sum(widths), generator=generator)[:n].sort().values
    parts, start = [], 0
    for layer, width in zip(layers, widths):
        here = drawn[(drawn >= start) & (drawn < start + width)] - start
        start += width
        first = 0
        for rows in directions(weights, "W_out", layer) if len(here) else ():
            inside = here[(here >= first) & (here < first + len(rows))] - first
            first += len(rows)
            parts.append(rows[inside.to(rows.device)].cpu())
    return torch.cat(parts)


def _similarities(
    lens: EmbeddingLens, x: Float[Tensor, "n d_model"], ks: Sequence[int], inverse: str
) -> Float[Tensor, " ks"]:
    """One cosine for each k, block by block of X Xᵀ: neither X E nor the product need be whole."""
    rows = lens.space.write
    y = x @ rows.inverse_gram.to(x) if inverse == "pinv" else x
    dots = torch.zeros(3, len(ks), dtype=torch.float64)  # <true, kept>, <kept, kept>, <true, true>
    parts = list(chunks(len(x), 4 * len(rows), scale=4))
    for left in parts:
        a = rows.scores(x[left])
        place_a = _places(a)
        for right in parts:
            b = a if inverse == "transpose" and left == right else rows.scores(y[right])
            place_b = place_a if b is a else _places(b)
            true = (x[left] @ x[right].T).double()
            for i, k in enumerate(ks):
                product = (_kept(a, place_a, k) @ _kept(b, place_b, k).T).double()
                dots[:, i] += torch.stack([(true * product).sum(), product.square().sum(), true.square().sum()]).cpu()
    return dots[0] / (dots[1] * dots[2]).sqrt().clamp_min(torch.finfo(torch.float64).tiny)


def _places(scores: Float[Tensor, "n v"]) -> Int[Tensor, "n v"]:
    """The place of each entry in its row's order by absolute value, 0 for the largest; ties by position."""
    order = scores.abs().argsort(dim=1, descending=True, stable=True).int()
    numbers = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order.long(), numbers)


def _kept(scores: Float[Tensor, "n v"], places: Int[Tensor, "n v"], k: int) -> Float[Tensor, "n v"]:
    return torch.where(places < k, scores, 0)
