"""Neurons and heads to show first: those with similar tokens, judged from the weights alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..lens import EmbeddingLens
from ..search.tiles import chunks
from ..space.embedding_space import EmbeddingSpace
from ..space.embeddings import Embedding, unembedding_rows
from ..space.masks import whole_words
from ..space.undertrained import undertraining
from ..tables.frames import tidy
from ..weights.experts import NO_EXPERT
from ..weights.host import MLPWeight
from ..weights.parameter_names import Side, side_of

NEURON_RULE = (
    "Neurons are chosen by a rule: the {k} tokens that each writes most strongly have the most similar embeddings (mean "
    "cosine, without the mean and the two strongest common directions). They are spread over the layers, and near duplicates "
    "are left out."
)
HEAD_RULE = "Heads are also chosen by a rule: their {k} best pairs have several tokens on each side of the arrow, and these are similar."
N_COMMON = 2  # directions that separate frequent tokens from rare ones; with them, all frequent tokens would be similar
MAX_NEURON_OVERLAP, MAX_HEAD_OVERLAP = 0.2, 0.5  # share of tokens that two chosen neurons, or heads, may have in common


class _ContrastiveEmbeddings:
    """Unit embeddings without their mean and their strongest common directions; the rest separates tokens.

    References:
        Mu & Viswanath (2018), All-but-the-Top: Simple and Effective Postprocessing for Word Representations.
    """

    def __init__(self, rows: Embedding) -> None:
        self.rows = rows
        self.common = torch.linalg.eigh(rows.gram).eigenvectors[:, -N_COMMON:].to(rows.dtype)

    def __getitem__(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        rows = self.rows[index.to(self.rows.device)]
        return torch.nn.functional.normalize(rows - (rows @ self.common) @ self.common.T, dim=1).float().cpu()


class TokenSimilarity:
    """Mean cosines of lists of tokens, as one lens embeds them. Only trained whole words contribute."""

    def __init__(self, lens: EmbeddingLens) -> None:
        space = EmbeddingSpace(lens.weights, space=lens.space.kind, score="cosine", token_ids=lens.space.token_ids)
        self.sides = {"read": _ContrastiveEmbeddings(space.read), "write": _ContrastiveEmbeddings(space.write)}
        self.token_ids = lens.space.token_ids.numpy()
        self.d_model = lens.weights.d_model
        embeddings = lens.weights.W_E, unembedding_rows(lens.weights)
        is_word = whole_words.choose(lens.vocabulary, lambda: embeddings).numpy()
        if is_word.mean() < 0.05:  # a vocabulary of parts of words, or of ids
            is_word = np.ones_like(is_word)
        indicator, _ = undertraining(lens.vocabulary, *embeddings)
        self.counts = is_word & (indicator > indicator.median() / 2).cpu().numpy()

    def mean_cosines(
        self, tokens: Int[np.ndarray, "n k"], side: Side, *, distinct: bool = False
    ) -> Float[Tensor, " n"]:
        r"""Mean cosine over all pairs of tokens of each row, with $\hat e$ the unit embeddings of its k tokens.

        .. math:: \frac{\lVert \sum_i \hat e_i \rVert^2 - k}{k (k - 1)}

        The embedding of a token that does not count is zero; with `distinct`, so is that of a repeated token.
        """
        k = tokens.shape[1]
        counts = self.counts[tokens] & (is_first_occurrence(tokens) if distinct else True)
        index = torch.from_numpy(np.searchsorted(self.token_ids, tokens))
        means = torch.zeros(len(tokens), dtype=torch.float32)
        for chunk in chunks(len(tokens) if k > 1 else 0, 4 * k * self.d_model):
            mask = torch.from_numpy(counts[chunk]).float()[..., None]
            rows = self.sides[side][index[chunk].flatten()].reshape(*mask.shape[:2], -1) * mask
            diagonal = rows.square().sum(dim=(1, 2))  # the pairs of a token with itself
            means[chunk] = (rows.sum(dim=1).square().sum(dim=1) - diagonal) / (k * (k - 1))
        return means


def token_similarity(lens: EmbeddingLens, df: pd.DataFrame, similarity: TokenSimilarity | None = None) -> pd.DataFrame:
    """The similarity of the tokens of each neuron, sub-head or head.

    Args:
        lens: The lens that made the table.
        df: A table of `neurons()`, `subheads()`, `ov()` or `qk()`, with the same number of ranks for each of them.
        similarity: The lens's `TokenSimilarity`, if it exists already.

    Returns:
        One row per neuron, sub-head or head of the table, with `similarity`: the mean cosine of its tokens' embeddings; for
        pairs the mean of both sides, times the share of different tokens on the side that has fewer.
    """
    has_pairs = "src_token_index" in df.columns
    names = [n for n in ("layer", "expert", "head", "neuron", "subhead", "weight") if n in df.columns]
    if df.empty:
        return tidy([*names, "similarity"], [])
    similarity = similarity or TokenSimilarity(lens)
    k = int(df["rank"].to_numpy().max()) + 1
    keys = df.iloc[::k][names]
    values = np.zeros(len(keys), dtype=np.float32)
    weights = keys["weight"].astype(str).to_numpy()
    for weight in dict.fromkeys(weights):
        rows = weights == weight
        if has_pairs:
            src, dest = (df[f"{end}_token_index"].to_numpy().reshape(-1, k)[rows] for end in ("src", "dest"))
            dest_side: Side = "write" if weight == "W_OV" else "read"
            of_src = similarity.mean_cosines(src, "read", distinct=True)
            of_dest = similarity.mean_cosines(dest, dest_side, distinct=True)
            n_distinct = np.minimum(is_first_occurrence(src).sum(axis=1), is_first_occurrence(dest).sum(axis=1))
            values[rows] = ((of_src + of_dest) / 2).numpy() * n_distinct / k
        else:
            tokens = df["token_index"].to_numpy().reshape(-1, k)[rows]
            values[rows] = similarity.mean_cosines(tokens, side_of(weight)).numpy()
    block = {name: keys[name].astype(str).tolist() if name == "weight" else keys[name].to_numpy() for name in names}
    return tidy([*names, "similarity"], [block | {"similarity": values}])


def is_first_occurrence(tokens: Int[np.ndarray, "n k"]) -> Bool[np.ndarray, "n k"]:
    """For each token, whether no earlier token of its row is the same."""
    is_same_as_earlier = np.tril(tokens[:, :, None] == tokens[:, None, :], k=-1)
    return ~is_same_as_earlier.any(axis=2)


def _spread(candidates: list[tuple[int, set[int]]], n: int, n_layers: int, max_overlap: float) -> Iterator[int]:
    """Indices of n of the candidates (layer, tokens), best first, spread over layers and with different tokens.

    A layer gives at most max(2, ⌈n / layers⌉), and no two candidates share more than `max_overlap` of their tokens.
    """
    room = dict.fromkeys({layer for layer, _ in candidates}, max(2, -(-n // max(1, n_layers))))
    chosen: list[set[int]] = []
    for i, (layer, tokens) in enumerate(candidates):
        if len(chosen) == n:
            return
        if room[layer] > 0 and all(len(tokens & other) <= max_overlap * len(tokens) for other in chosen):
            room[layer] -= 1
            chosen.append(tokens)
            yield i


def legible_neurons(lens: EmbeddingLens, n: int = 6, *, k: int = 10, weight: MLPWeight = "W_out") -> pd.DataFrame:
    """Choose neurons with similar tokens, from all layers and different from each other.

    Args:
        lens: An EmbeddingLens.
        n: How many; fewer if the model has fewer.
        k: How many tokens decide, and are returned, for each weight.
        weight: The weight with the tokens that decide.

    Returns:
        One row per (layer, neuron, weight, rank) as in `lens.neurons`, chosen neurons only.
    """
    candidates, similarity = [], TokenSimilarity(lens)
    for layer in lens.weights.layers_with("mlp"):  # layer by layer, so that memory does not grow with depth
        df = lens.neurons(layer, weight=weight, k=k)
        values = token_similarity(lens, df, similarity)["similarity"].to_numpy()
        best = np.argsort(-values, kind="stable")[: 20 * n]
        rows = (best[:, None] * k + np.arange(k)).ravel()
        candidates.append(df.iloc[rows].assign(_similarity=np.repeat(values[best], k)))
    if not candidates:
        return lens.neurons(k=k)  # raises: the model has no MLP
    pool = pd.concat(candidates, ignore_index=True)
    pool = pool.sort_values(["_similarity"], ascending=False, kind="stable")
    neurons = [pool.iloc[start : start + k] for start in range(0, len(pool), k)]
    tokens = [(int(neuron["layer"].iloc[0]), set(neuron["token_index"])) for neuron in neurons]
    chosen = [neurons[i].iloc[0] for i in _spread(tokens, n, len(candidates), MAX_NEURON_OVERLAP)]
    keys = sorted((int(row["layer"]), int(row.get("expert", NO_EXPERT)), int(row["neuron"])) for row in chosen)
    return pd.concat([one_neuron(lens, *key, k=k) for key in keys], ignore_index=True)


def one_neuron(
    lens: EmbeddingLens, layer: int, expert: int, neuron: int, *, weight: MLPWeight | None = None, k: int
) -> pd.DataFrame:
    """The rows of one neuron; in a mixture, of one expert's neuron, since other experts may have fewer neurons.

    Returns:
        One row per (weight, rank), as in `lens.neurons`.
    """
    if not lens.weights.has_experts:
        return lens.neurons(layer, neuron, weight=weight, k=k)
    df = lens.neurons(layer, weight=weight, k=k)
    return df.loc[((df["expert"] == expert) & (df["neuron"] == neuron)).to_numpy()].reset_index(drop=True)


def legible_heads(lens: EmbeddingLens, n: int = 2, *, k: int = 10, pairs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Choose heads with best pairs of several, similar tokens on each side.

    Args:
        lens: An EmbeddingLens.
        n: How many; fewer if the model has fewer.
        k: How many pairs decide, and are returned.
        pairs: The table to choose from, with k ranks for each head; `lens.ov(k=k)` by default.

    Returns:
        One row per (layer, head, weight, rank) as in that table, chosen heads only.
    """
    table: Any = lens.ov(k=k) if pairs is None else pairs
    if table.empty:
        return table
    k = int(table["rank"].max()) + 1
    similarities = token_similarity(lens, table)
    order = np.argsort(-similarities["similarity"].to_numpy(), kind="stable")
    targets = table["dest_token_index"].to_numpy().reshape(-1, k)
    tokens = [(int(similarities["layer"].iloc[i]), set(targets[i].tolist())) for i in order]
    n_layers = len(similarities["layer"].unique())
    chosen = sorted(int(order[i]) for i in _spread(tokens, n, n_layers, MAX_HEAD_OVERLAP))
    return pd.concat([table.iloc[i * k : (i + 1) * k] for i in chosen], ignore_index=True)
