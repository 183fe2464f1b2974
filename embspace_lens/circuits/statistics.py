"""What weights say of a neuron or a head in one number each: sizes, angles, moments over the vocabulary, eigenvalues."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..lens import EmbeddingLens
from ..search.tiles import float64
from ..space.embedding_space import EmbeddingSpace
from ..space.embeddings import Embedding
from ..tables.frames import tidy
from ..tables.selection import Select
from ..weights.effective import Weights

KURTOSIS = (
    10.0  # above it, a neuron's effect falls on few tokens (Gurnee et al. 2024, §5.3; a normal distribution has 3)
)
LARGE_NORM, SMALL_VARIANCE = (
    0.9,
    0.1,
)  # quantiles beyond which a neuron is no ordinary one, as the authors draw baselines
LAST_LAYERS = 2  # where entropy neurons are looked for
CHUNK = 1024  # neurons whose scores for one tile of tokens are held at a time


def neuron_statistics(lens: EmbeddingLens, layer: Select = None) -> pd.DataFrame:
    r"""Describe every neuron by its weights: norms, angles between what it reads and writes, moments over the vocabulary, role.

    With :math:`c_t` the cosine of a neuron's W_out row and token t's embedding (centred over the tokens that the lens reads),

    .. math:: \mu = \overline{c}, \qquad \sigma^2 = \overline{(c - \mu)^2}, \qquad
              \mathrm{skew} = \overline{(c - \mu)^3} / \sigma^3, \qquad \mathrm{kurtosis} = \overline{(c - \mu)^4} / \sigma^4

    Roles: `prediction`, kurtosis over 10 and skew above 0: the neuron promotes few tokens; `suppression`, the same with skew below
    0; `entropy`, none of these, in the last two layers, among the tenth of the model's neurons with the largest squared norm and
    among the tenth whose cosines vary least: it writes much, and nothing that a token reads. Others have an empty role. The paper
    gives the first threshold; it finds entropy neurons by the same two figures, and the quantiles are those beyond which its code
    draws no baseline neurons.

    Args:
        lens: A model's lens; its tokens and its space count, its score does not.
        layer: Which blocks; all of them by default.

    Returns:
        One row per (layer, neuron), in a mixture of experts per (layer, expert, neuron), with `in_norm`, `gate_norm`, `out_norm`,
        `in_out_similarity`, `gate_out_similarity`, `in_gate_similarity` (gates are NaN where there are none), `vocab_mean`,
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
    embeddings = _cosine(lens).write
    limits = None
    if {mlp.layer for mlp in mlps} & set(_last(lens.weights)):
        limits = _entropy_limits(lens, embeddings)

    def blocks() -> Iterator[dict[str, Any]]:
        bar = tqdm(mlps, desc="neuron statistics", unit="layer", disable=None, leave=False)
        for number, expert in bar:
            found = _sizes(lens.weights, number, expert)
            out = lens.weights.directions("W_out", number, expert).to(embeddings.device)
            found |= vocab_moments(torch.nn.functional.normalize(out, dim=1), embeddings)
            kurtosis, skew = found["vocab_kurtosis"], found["vocab_skew"]
            role = np.where(kurtosis > KURTOSIS, np.where(skew > 0, "prediction", "suppression"), "")
            if limits is not None and number in _last(lens.weights):
                quiet = (found["norms"] > limits[0]) & (found["vocab_variance"] < limits[1])
                role = np.where(quiet & (role == ""), "entropy", role)
            yield found | {
                "layer": number,
                "expert": expert,
                "neuron": np.arange(len(out)),
                "role": role.astype(object),
            }

    sizes = ["in_norm", "gate_norm", "out_norm", "in_out_similarity", "gate_out_similarity", "in_gate_similarity"]
    moments = ["vocab_mean", "vocab_variance", "vocab_skew", "vocab_kurtosis"]
    return tidy(["layer", *lens.expert_column, "neuron", *sizes, *moments, "role"], blocks())


def head_statistics(lens: EmbeddingLens, layer: Select = None, head: Select = None) -> pd.DataFrame:
    r"""Describe every head by its weights: norms and effective ranks of its circuits, whether it copies, whether it seeks its like.

    The effective rank of W with singular values :math:`\sigma_i` is the exponential of their entropy; copying and self-matching
    are the positive share of the eigenvalues of the full circuits over all tokens,

    .. math:: \mathrm{rank}(W) = e^{-\sum_i p_i \ln p_i}, \; p_i = \sigma_i / \textstyle\sum_j \sigma_j, \qquad
              \mathrm{copying} = \frac{\sum_i \lambda_i}{\sum_i |\lambda_i|}, \; \lambda = \mathrm{eig}(E' W_{OV} E), \qquad
              \mathrm{matching}: \lambda = \mathrm{eig}(E' W_{QK} E'^\top)

    1 is a head that raises (or attends to) every token by itself, −1 one that lowers it. Of the d_vocab × d_vocab matrices only
    the d_head eigenvalues that are not zero are computed.

    Args:
        lens: A model's lens: its space, tokens and score are the circuits'.
        layer: Which blocks; all of them by default.
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
    columns = ["ov_norm", "qk_norm", "ov_effective_rank", "qk_effective_rank", "ov_copying", "qk_matching"]
    if not layers or not heads:
        return tidy(["layer", "head", *columns], [])
    space = lens.space
    written, matched = _cross_gram(space.write, space.read), space.read.gram
    if space.inverse == "pinv":  # E' = E (EᵀE)⁻¹ on the sides that read
        inverse = float64(space.read.inverse_gram).to(written.device)
        written, matched = written @ inverse, inverse @ matched.to(inverse) @ inverse

    def blocks() -> Iterator[dict[str, Any]]:
        for number in tqdm(layers, desc="head statistics", unit="layer", disable=None, leave=False):
            row: dict[str, Any] = {"layer": number, "head": np.asarray(heads)}
            q, k, v = (float64(getattr(lens.weights, f"W_{x}")(number)[heads]) for x in "QKV")
            o = float64(lens.weights.W_O(number)[heads])
            for name, left, right, gram in (
                ("ov", v, o, written),
                ("qk", q, k.transpose(-1, -2), matched),
            ):
                values = _singular_values(left, right)
                share = values / values.sum(dim=-1, keepdim=True)
                row[f"{name}_norm"] = values.square().sum(dim=-1).sqrt()
                row[f"{name}_effective_rank"] = torch.special.entr(share).sum(dim=-1).exp()
                small = right @ gram.to(right) @ left  # the eigenvalues of A·B that are not zero are those of B·A
                row["ov_copying" if name == "ov" else "qk_matching"] = positive_share(small)
            yield row

    return tidy(["layer", "head", *columns], blocks())


def vocab_moments(vectors: Float[Tensor, "n d_model"], embeddings: Embedding) -> dict[str, np.ndarray]:
    """Mean, variance, skew and kurtosis (3 for a normal distribution) of each vector's scores over all tokens.

    One pass over the embeddings, by the tile: sums of powers in float64. Scores are products with centred embeddings, so their
    mean is small beside their spread, and sums of powers lose nothing. A vector whose scores do not vary has no skew and no
    kurtosis: NaN.
    """
    sums = torch.zeros(4, len(vectors), dtype=torch.float64)
    for tile in embeddings.tiles():
        for start in range(0, len(vectors), CHUNK):
            scores = vectors[start : start + CHUNK].to(tile) @ tile.T
            power = scores
            for order in range(4):
                sums[order, start : start + CHUNK] += power.sum(dim=1, dtype=torch.float64).cpu()
                power = power * scores if order < 3 else power
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
    """Sum of eigenvalues over the sum of their sizes: 1 if all are positive, −1 if all are negative; NaN if all are zero."""
    values = torch.linalg.eigvals(matrices.cpu())
    return values.real.sum(dim=-1) / values.abs().sum(dim=-1)


def _cosine(lens: EmbeddingLens) -> EmbeddingSpace:
    """The lens's space with cosines to centred embeddings, whatever its score."""
    space = lens.space
    if space.score == "cosine":
        return space
    return EmbeddingSpace(
        lens.weights, space=space.kind, inverse=space.inverse, score="cosine", token_ids=space.token_ids
    )


def _last(weights: Weights) -> list[int]:
    return weights.layers_with("mlp")[-LAST_LAYERS:]


def _sizes(weights: Weights, layer: int, expert: int) -> dict[str, Any]:
    """Norms and cosines of one MLP's weights, and the sum of squared norms of each neuron."""
    names = {"in": "W_in", "out": "W_out"} | ({"gate": "W_gate"} if weights.is_gated(layer) else {})
    x = {short: float64(weights.directions(name, layer, expert)) for short, name in names.items()}
    norms = {short: torch.linalg.vector_norm(rows, dim=1).cpu().numpy() for short, rows in x.items()}
    missing = np.full(len(norms["in"]), np.nan)
    found: dict[str, Any] = {f"{short}_norm": norms.get(short, missing) for short in ("in", "gate", "out")}
    for a, b in (("in", "out"), ("gate", "out"), ("in", "gate")):
        both = a in x and b in x
        cosine = torch.cosine_similarity(x[a], x[b].to(x[a]), dim=1).cpu().numpy() if both else missing
        found[f"{a}_{b}_similarity"] = cosine
    return found | {"norms": np.sum([norm**2 for norm in norms.values()], axis=0)}


def _entropy_limits(lens: EmbeddingLens, embeddings: Embedding) -> tuple[float, float]:
    """The squared norm and the variance beyond which a neuron of this model is unusual.

    Over all neurons, whichever are asked for. Variances come from the embeddings' second moment, not token by token.
    """
    weights = lens.weights
    gram = embeddings.gram / len(embeddings)
    mean = torch.stack([float64(tile).sum(dim=0).to(gram.device) for tile in embeddings.tiles()]).sum(dim=0)
    mean = mean / len(embeddings)
    norms, variances = [], []
    for number, expert in tqdm(weights.mlps(), desc="norms", unit="layer", disable=None, leave=False):
        out = float64(weights.directions("W_out", number, expert)).to(gram.device)
        out = torch.nn.functional.normalize(out, dim=1)
        variances.append((((out @ gram) * out).sum(dim=1) - (out @ mean).square()).cpu())
        norms.append(_sizes(weights, number, expert)["norms"])
    return (
        float(np.quantile(np.concatenate(norms), LARGE_NORM)),
        float(np.quantile(torch.cat(variances).numpy(), SMALL_VARIANCE)),
    )


def _cross_gram(a: Embedding, b: Embedding) -> Float[Tensor, "d_model d_model"]:
    """Σ over tokens of a's row times b's row, in float64."""
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for x, y in zip(a.tiles(), b.tiles(), strict=True):
        x = float64(x)
        total = total.to(x.device) + x.T @ float64(y).to(x.device)
    return total


def _singular_values(left: Float[Tensor, "n d r"], right: Float[Tensor, "n r d"]) -> Float[Tensor, "n r"]:
    """Of the products left·right, through the triangular factors of both."""
    a, b = torch.linalg.qr(left).R, torch.linalg.qr(right.transpose(-1, -2)).R
    return torch.linalg.svdvals(a @ b.transpose(-1, -2)).cpu()
