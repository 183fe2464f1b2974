"""Statistics of neurons and heads from weights: norms, cosines, moments over the vocabulary, effective ranks, eigenvalues."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from ..lens import EmbeddingLens
from ..search.tiles import PART_SCALE, chunks, float64
from ..space.embedding_space import EmbeddingSpace
from ..space.embeddings import Embedding
from ..tables.frames import tidy
from ..tables.selection import Select
from ..weights.effective import Weights

# A neuron with a larger kurtosis affects few tokens (Gurnee et al. 2024, §5.3); a normal distribution has 3.
MIN_KURTOSIS = 10.0
# Quantiles over the model's neurons; the paper's code selects its baseline neurons within these limits.
LARGE_NORM_QUANTILE, SMALL_VARIANCE_QUANTILE = 0.9, 0.1
ENTROPY_LAYERS = 2  # entropy neurons are in the last layers

SIZE_COLUMNS = ("in_norm", "gate_norm", "out_norm", "in_out_similarity", "gate_out_similarity", "in_gate_similarity")
MOMENT_COLUMNS = ("vocab_mean", "vocab_variance", "vocab_skew", "vocab_kurtosis")
HEAD_COLUMNS = ("ov_norm", "qk_norm", "ov_effective_rank", "qk_effective_rank", "ov_copying", "qk_matching")


def neuron_statistics(lens: EmbeddingLens, layer: Select = None) -> pd.DataFrame:
    r"""Describe every neuron by its weights: norms, cosines between its weights, moments over the vocabulary, and role.

    With :math:`c_t` the cosine of a neuron's W_out row and token t's embedding (centred over the lens's tokens),

    .. math:: \mu = \overline{c}, \qquad \sigma^2 = \overline{(c - \mu)^2}, \qquad
              \mathrm{skew} = \overline{(c - \mu)^3} / \sigma^3, \qquad \mathrm{kurtosis} = \overline{(c - \mu)^4} / \sigma^4

    A neuron has one of three roles, or none (an empty string):

    - `prediction`: kurtosis above 10 and positive skew. The neuron promotes few tokens.
    - `suppression`: kurtosis above 10 and negative skew. The neuron suppresses few tokens.
    - `entropy`: neither of these, in the last two layers, with a total squared norm among the largest 10 % of the model and a
      variance among the smallest 10 %. The neuron writes a long vector that hardly changes the order of the logits.

    The paper gives the kurtosis threshold. It finds entropy neurons by norm and variance, but gives no thresholds; the quantiles
    are the limits within which its code selects baseline neurons.

    Args:
        lens: A model's lens; its tokens and its space are used, its score is not.
        layer: Which blocks; all by default.

    Returns:
        One row per (layer, neuron), in a mixture of experts per (layer, expert, neuron), with `in_norm`, `gate_norm`, `out_norm`,
        `in_out_similarity`, `gate_out_similarity`, `in_gate_similarity` (NaN for gates of MLPs that have none), `vocab_mean`,
        `vocab_variance`, `vocab_skew`, `vocab_kurtosis` and `role`.

    Raises:
        EmbspaceError: If the model has no such layer, or its MLPs cannot be read.

    Example:
        >>> neuron_statistics(lens, layer=0)["neuron"].tolist() == list(range(lens.weights.d_mlp(0)))
        True

    References:
        Gurnee et al. (2024), Universal Neurons in GPT2 Language Models, §4.2 and §5. https://arxiv.org/abs/2401.12181
    """
    mlps = lens.weights.mlps(layer)
    embeddings = _cosine_space(lens).write
    entropy_layers = lens.weights.layers_with("mlp")[-ENTROPY_LAYERS:]
    needs_limits = any(mlp.layer in entropy_layers for mlp in mlps)
    min_norm, max_variance = _entropy_limits(lens, embeddings) if needs_limits else (np.inf, -np.inf)

    def blocks() -> Iterator[dict[str, Any]]:
        for index, expert in tqdm(mlps, desc="neuron statistics", unit="layer", disable=None, leave=False):
            for neurons, x in _parts(lens.weights, index, expert):
                sizes = _sizes(x)
                moments = vocab_moments(normalize(x["out"].to(embeddings.device), dim=1), embeddings)
                kurtosis, skew, variance = (moments[f"vocab_{name}"] for name in ("kurtosis", "skew", "variance"))
                role = np.where(kurtosis > MIN_KURTOSIS, np.where(skew > 0, "prediction", "suppression"), "")
                if index in entropy_layers:
                    is_entropy = (sizes["squared_norm"] > min_norm) & (variance < max_variance) & (role == "")
                    role = np.where(is_entropy, "entropy", role)
                keys = {"layer": index, "expert": expert, "neuron": neurons}
                yield keys | sizes | moments | {"role": role.astype(object)}

    return tidy(["layer", *lens.expert_column, "neuron", *SIZE_COLUMNS, *MOMENT_COLUMNS, "role"], blocks())


def head_statistics(lens: EmbeddingLens, layer: Select = None, head: Select = None) -> pd.DataFrame:
    r"""Describe every head by its weights: norms and effective ranks of its circuits, copying and matching scores.

    The effective rank of W with singular values :math:`\sigma_i` is the exponential of their entropy. The copying and matching
    scores are sums of the eigenvalues of the full circuits over all tokens, divided by the sums of their absolute values:

    .. math:: \mathrm{rank}(W) = e^{-\sum_i p_i \ln p_i}, \; p_i = \sigma_i / \textstyle\sum_j \sigma_j, \qquad
              \mathrm{copying} = \frac{\sum_i \lambda_i}{\sum_i |\lambda_i|}, \; \lambda = \mathrm{eig}(E' W_{OV} E), \qquad
              \mathrm{matching}: \lambda = \mathrm{eig}(E' W_{QK} E'^\top)

    A head with a copying score of 1 promotes the token that it attends to; with −1, it suppresses this token. A head with a
    matching score of 1 attends to tokens equal to the query's token; with −1, it attends to them least. Only the d_head
    nonzero eigenvalues are computed, without the d_vocab × d_vocab matrices. W_QK is read without norms of queries and keys,
    which some models have (see `lens.components()`).

    Args:
        lens: A model's lens; its space, tokens and score define the circuits.
        layer: Which blocks; all by default.
        head: Which query heads.

    Returns:
        One row per (layer, head), with `ov_norm`, `qk_norm` (Frobenius), `ov_effective_rank`, `qk_effective_rank`, `ov_copying` and
        `qk_matching`.

    Raises:
        EmbspaceError: If the model has no such layer or head, or its attention cannot be read.

    Example:
        >>> head_statistics(lens, layer=0)["ov_copying"].abs().le(1).all().item()
        True

    References:
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Summarizing OV/QK matrices" (eigenvalues).
        Roy & Vetterli (2007), The effective rank: A measure of effective dimensionality.
    """
    layers, heads = lens.weights.select_layers(layer, "attn"), lens.weights.select_heads(head)
    columns = ["layer", "head", *HEAD_COLUMNS]
    if not layers or not heads:
        return tidy(columns, [])
    space = lens.space
    write_read, read_read = _cross_gram(space.write, space.read), space.read.gram
    if space.inverse == "pinv":  # E' = E (EᵀE)⁻¹ on the reading sides
        inverse = float64(space.read.inverse_gram).to(write_read.device)
        write_read, read_read = write_read @ inverse, inverse @ read_read.to(inverse) @ inverse

    def blocks() -> Iterator[dict[str, Any]]:
        for index in tqdm(layers, desc="head statistics", unit="layer", disable=None, leave=False):
            W_Q, W_K, W_V, W_O = (
                float64(read(index)[heads])
                for read in (lens.weights.W_Q, lens.weights.W_K, lens.weights.W_V, lens.weights.W_O)
            )
            ov = _circuit_statistics(W_V, W_O, write_read)
            qk = _circuit_statistics(W_Q, W_K.transpose(-1, -2), read_read)
            yield {
                "layer": index,
                "head": np.asarray(heads),
                "ov_norm": ov.norm,
                "qk_norm": qk.norm,
                "ov_effective_rank": ov.effective_rank,
                "qk_effective_rank": qk.effective_rank,
                "ov_copying": ov.positive_share,
                "qk_matching": qk.positive_share,
            }

    return tidy(columns, blocks())


class _CircuitStatistics(NamedTuple):
    norm: Float[Tensor, " n_heads"]
    effective_rank: Float[Tensor, " n_heads"]
    positive_share: Float[Tensor, " n_heads"]


def _circuit_statistics(
    left: Float[Tensor, "n_heads d_model d_head"],
    right: Float[Tensor, "n_heads d_head d_model"],
    gram: Float[Tensor, "d_model d_model"],
) -> _CircuitStatistics:
    """Statistics of the circuits left·right; `gram` is the product of the embeddings at their two ends."""
    values = _singular_values(left, right)
    share = values / values.sum(dim=-1, keepdim=True)
    return _CircuitStatistics(
        values.square().sum(dim=-1).sqrt(),
        torch.special.entr(share).sum(dim=-1).exp(),
        # The nonzero eigenvalues of A·B are those of B·A.
        positive_share(right @ gram.to(right) @ left),
    )


def vocab_moments(vectors: Float[Tensor, "n d_model"], embeddings: Embedding) -> dict[str, np.ndarray]:
    """Mean, variance, skew and kurtosis (3 for a normal distribution) of each vector's scores over all tokens.

    They come from sums of powers in float64, in one pass over the embeddings. Scores are products with centred embeddings, so
    their mean is small compared to their standard deviation, and the sums of powers do not cancel. Skew and kurtosis are NaN
    for constant scores.
    """
    sums = torch.zeros(4, len(vectors), dtype=torch.float64)
    for tile in embeddings.tiles():
        for chunk in chunks(len(vectors), 4 * len(tile)):
            scores = vectors[chunk].to(tile) @ tile.T
            power = scores
            for exponent in range(4):
                sums[exponent, chunk] += power.sum(dim=1, dtype=torch.float64).cpu()
                power = power * scores if exponent < 3 else power
    m1, m2, m3, m4 = (sums / len(embeddings)).numpy()
    variance = np.maximum(m2 - m1**2, 0)
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    spread = np.where(variance > 1e-12 * np.maximum(m2, 1e-300), variance, np.nan)
    return {
        "vocab_mean": m1,
        "vocab_variance": variance,
        "vocab_skew": third / spread**1.5,
        "vocab_kurtosis": fourth / spread**2,
    }


def positive_share(matrices: Float[Tensor, "*n d d"]) -> Float[Tensor, "*n"]:
    """The sum of eigenvalues over the sum of their absolute values: 1 if all are positive, −1 if all are negative."""
    values = torch.linalg.eigvals(matrices.cpu())
    return values.real.sum(dim=-1) / values.abs().sum(dim=-1)


def _cosine_space(lens: EmbeddingLens) -> EmbeddingSpace:
    """The lens's space, with cosines to centred embeddings as its score."""
    space = lens.space
    if space.score == "cosine":
        return space
    return EmbeddingSpace(
        lens.weights, space=space.kind, inverse=space.inverse, score="cosine", token_ids=space.token_ids
    )


def _parts(
    weights: Weights, layer: int, expert: int
) -> Iterator[tuple[Int[np.ndarray, " n"], dict[str, Float[Tensor, "n d_model"]]]]:
    """Neurons of an MLP, part by part, and the directions of their weights: `in`, `out` and, if there is one, `gate`."""
    names = {"in": "W_in", "out": "W_out"} | ({"gate": "W_gate"} if weights.is_gated(layer) else {})
    rows = {short: weights.direction_rows(name, layer, expert) for short, name in names.items()}
    for chunk in chunks(len(rows["out"]), 4 * weights.d_model, scale=PART_SCALE):
        yield np.arange(chunk.start, chunk.stop), {short: each[chunk] for short, each in rows.items()}


def _sizes(directions: dict[str, Float[Tensor, "n d_model"]]) -> dict[str, np.ndarray]:
    """Norms and cosines of the weights of each neuron, and the sum of its squared norms."""
    x = {short: float64(rows) for short, rows in directions.items()}
    norms = {short: torch.linalg.vector_norm(rows, dim=1).cpu().numpy() for short, rows in x.items()}
    missing = np.full(len(norms["in"]), np.nan)
    sizes = {f"{short}_norm": norms.get(short, missing) for short in ("in", "gate", "out")}
    for a, b in (("in", "out"), ("gate", "out"), ("in", "gate")):
        if a in x and b in x:
            sizes[f"{a}_{b}_similarity"] = torch.cosine_similarity(x[a], x[b].to(x[a]), dim=1).cpu().numpy()
        else:
            sizes[f"{a}_{b}_similarity"] = missing
    return sizes | {"squared_norm": np.sum([norm**2 for norm in norms.values()], axis=0)}


def _entropy_limits(lens: EmbeddingLens, embeddings: Embedding) -> tuple[float, float]:
    """The smallest squared norm and the largest variance of an entropy neuron: quantiles over all neurons of the model.

    Variances come from the second moment of the embeddings, without a score per token.
    """
    weights = lens.weights
    gram = embeddings.gram / len(embeddings)
    mean = torch.stack([float64(tile).sum(dim=0).to(gram.device) for tile in embeddings.tiles()]).sum(dim=0)
    mean = mean / len(embeddings)
    norms, variances = [], []
    for index, expert in tqdm(weights.mlps(), desc="norms", unit="layer", disable=None, leave=False):
        for _, x in _parts(weights, index, expert):
            out = normalize(float64(x["out"]).to(gram.device), dim=1)
            variances.append((((out @ gram) * out).sum(dim=1) - (out @ mean).square()).cpu())
            norms.append(_sizes(x)["squared_norm"])
    return (
        float(np.quantile(np.concatenate(norms), LARGE_NORM_QUANTILE)),
        float(np.quantile(torch.cat(variances).numpy(), SMALL_VARIANCE_QUANTILE)),
    )


def _cross_gram(a: Embedding, b: Embedding) -> Float[Tensor, "d_model d_model"]:
    """The product AᵀB of two embedding matrices, in float64."""
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for x, y in zip(a.tiles(), b.tiles(), strict=True):
        x = float64(x)
        total = total.to(x.device) + x.T @ float64(y).to(x.device)
    return total


def _singular_values(
    left: Float[Tensor, "n_heads d_model d_head"], right: Float[Tensor, "n_heads d_head d_model"]
) -> Float[Tensor, "n_heads rank"]:
    """The singular values of left·right, from the triangular factors of both."""
    a, b = torch.linalg.qr(left).R, torch.linalg.qr(right.transpose(-1, -2)).R
    return torch.linalg.svdvals(a @ b.transpose(-1, -2)).cpu()
