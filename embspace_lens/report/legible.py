"""Which neurons and heads to show first: those whose tokens are alike, judged from the weights alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..space.embedding_space import EmbeddingSpace
from ..space.embeddings import Embedding, unembedding_rows
from ..space.masks import whole_words
from ..space.undertrained import undertraining
from ..tables.frames import tidy
from ..weights.effective import side_of

NEURON_RULE = (
    "Chosen by rule, not by hand: of all neurons those whose {k} strongest written tokens are most alike (mean cosine "
    "of their embeddings, less the mean and the two strongest common directions), spread over the layers, near "
    "duplicates left out."
)
HEAD_RULE = (
    "Chosen likewise: heads whose {k} best pairs hold several tokens on each side of the arrow, alike among themselves."
)
TILE = 1024  # units whose embeddings are gathered at a time
COMMON = 2  # directions that tell frequent tokens from rare ones, and would make all frequent tokens alike


class _Contrast:
    """Unit embeddings less their mean and their strongest common directions: what tells one token from another.

    References:
        Mu & Viswanath (2018), All-but-the-Top: Simple and Effective Postprocessing for Word Representations.
    """

    def __init__(self, rows: Embedding) -> None:
        self.rows = rows
        self.common = torch.linalg.eigh(rows.gram).eigenvectors[:, -COMMON:].to(rows.dtype)

    def __getitem__(self, places: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        rows = self.rows[places.to(self.rows.device)]
        return torch.nn.functional.normalize(rows - (rows @ self.common) @ self.common.T, dim=1).float().cpu()


class _Judge:
    """Judges how alike tokens are, as one lens embeds them; words that training has seen count, other tokens do not."""

    def __init__(self, lens: Any) -> None:
        space = EmbeddingSpace(lens.weights, space=lens.space.kind, score="cosine", token_ids=lens.space.token_ids)
        self.sides = {"read": _Contrast(space.read), "write": _Contrast(space.write)}
        self.ids = lens.space.token_ids.numpy()
        rows = lens.weights.W_E, unembedding_rows(lens.weights)
        words = whole_words.choose(lens.vocabulary, lambda: rows).numpy()
        if words.mean() < 0.05:  # a tokenizer that does not write words with a leading space
            words = np.ones_like(words)
        indicator, _ = undertraining(lens.vocabulary, *rows)
        self.words = words & (indicator > indicator.median() / 2).cpu().numpy()

    def alikeness(self, tokens: np.ndarray, side: str, *, once: bool = False) -> Float[Tensor, " n"]:
        r"""Mean cosine of every two tokens of each row of ids, with $\hat e$ the unit embeddings of its k tokens.

        .. math:: \frac{\lVert \sum_i \hat e_i \rVert^2 - k}{k (k - 1)}

        Tokens that do not count pull the mean towards 0; with `once`, so do repeated ones.
        """
        k = tokens.shape[1]
        counted = self.words[tokens] & (_first_of_its_kind(tokens) if once else True)
        places = torch.from_numpy(np.searchsorted(self.ids, tokens))
        value = torch.zeros(len(tokens))
        for start in range(0, len(tokens) if k > 1 else 0, TILE):
            tile = slice(start, start + TILE)
            mask = torch.from_numpy(counted[tile]).float()[..., None]
            rows = self.sides[side][places[tile].flatten()].reshape(*mask.shape[:2], -1) * mask
            own = rows.square().sum(dim=(1, 2))  # each token with itself
            value[tile] = (rows.sum(dim=1).square().sum(dim=1) - own) / (k * (k - 1))
        return value


def alike(lens: Any, df: pd.DataFrame, judge: _Judge | None = None) -> pd.DataFrame:
    """How alike the tokens of each neuron, sub-head or head are.

    Args:
        lens: The lens that made the table.
        df: A table of `neurons()`, `subheads()`, `ov()` or `qk()`, with the same number of ranks for each unit.
        judge: What judges, if it is there already.

    Returns:
        One row per unit of the table, with `similarity`: the mean cosine of its tokens' embeddings; for pairs the mean
        of both sides, times the share of different tokens on the poorer one.
    """
    pairs = "src_token_index" in df.columns
    names = [n for n in ("layer", "expert", "head", "neuron", "subhead", "weight") if n in df.columns]
    if df.empty:
        return tidy([*names, "similarity"], [])
    judge = judge or _Judge(lens)
    k = int(df["rank"].to_numpy().max()) + 1
    units = df.iloc[::k]
    value = np.zeros(len(units), dtype=np.float32)
    weights = units["weight"].astype(str).to_numpy()
    for weight in dict.fromkeys(weights):
        chosen = weights == weight
        if pairs:
            src, dest = (df[f"{end}_token_index"].to_numpy().reshape(-1, k)[chosen] for end in ("src", "dest"))
            both = judge.alikeness(src, "read", once=True)
            both = (both + judge.alikeness(dest, "write" if weight == "W_OV" else "read", once=True)) / 2
            fewest = np.minimum(_first_of_its_kind(src).sum(axis=1), _first_of_its_kind(dest).sum(axis=1))
            value[chosen] = both.numpy() * fewest / k
        else:
            value[chosen] = judge.alikeness(
                df["token_index"].to_numpy().reshape(-1, k)[chosen], side_of(weight)
            ).numpy()
    keys = {name: units[name].astype(str).tolist() if name == "weight" else units[name].to_numpy() for name in names}
    return tidy([*names, "similarity"], [keys | {"similarity": value}])


def _first_of_its_kind(tokens: np.ndarray) -> np.ndarray:
    """Which tokens of each row have not stood before in it."""
    return np.array([[list(row).index(token) == place for place, token in enumerate(row)] for row in tokens.tolist()])


def _spread(units: list[tuple[int, set[int]]], n: int, n_layers: int, overlap: float) -> Iterator[int]:
    """Places of n units (layer, tokens), best first: ⌈n / layers⌉ or 2 from a layer at most, none much like another."""
    room = dict.fromkeys({layer for layer, _ in units}, max(2, -(-n // max(1, n_layers))))
    taken: list[set[int]] = []
    for place, (layer, tokens) in enumerate(units):
        if len(taken) == n:
            return
        if room[layer] > 0 and all(len(tokens & other) <= overlap * len(tokens) for other in taken):
            room[layer] -= 1
            taken.append(tokens)
            yield place


def legible_neurons(lens: Any, n: int = 6, *, k: int = 10, weight: str = "W_out") -> pd.DataFrame:
    """Choose neurons whose tokens are alike, over all layers and different from each other.

    Args:
        lens: An EmbeddingLens.
        n: How many; fewer where the model has fewer.
        k: How many tokens decide, and are returned, for each weight.
        weight: The weight whose tokens decide.

    Returns:
        One row per (layer, neuron, weight, rank) as `lens.neurons` returns them, chosen neurons only.
    """
    parts, judge = [], _Judge(lens)
    for layer in lens.weights.layers_with("mlp"):  # a layer at a time, so that memory does not grow with the model
        df = lens.neurons(layer, weight=weight, k=k)
        value = alike(lens, df, judge)["similarity"].to_numpy()
        best = np.argsort(-value, kind="stable")[: 20 * n]
        rows = (best[:, None] * k + np.arange(k)).ravel()
        parts.append(df.iloc[rows].assign(_value=np.repeat(value[best], k)))
    if not parts:
        return lens.neurons(k=k)  # says that there is no MLP
    pool = pd.concat(parts, ignore_index=True)
    pool = pool.sort_values(["_value"], ascending=False, kind="stable")
    units = [pool.iloc[start : start + k] for start in range(0, len(pool), k)]
    keyed = [(int(unit["layer"].iloc[0]), set(unit["token_index"])) for unit in units]
    chosen = [units[place].iloc[0] for place in _spread(keyed, n, len(parts), overlap=0.2)]
    keys = sorted((int(row["layer"]), int(row.get("expert", -1)), int(row["neuron"])) for row in chosen)
    return pd.concat([one_neuron(lens, *key, k=k) for key in keys], ignore_index=True)


def one_neuron(lens: Any, layer: int, expert: int, neuron: int, *, weight: str | None = None, k: int) -> pd.DataFrame:
    """The rows of one neuron, in a mixture of experts of one expert's (which need not all have so many neurons).

    Returns:
        One row per (weight, rank), as `lens.neurons` returns them.
    """
    if not lens.weights.has_experts:
        return lens.neurons(layer, neuron, weight=weight, k=k)
    df = lens.neurons(layer, weight=weight, k=k)
    return df.loc[((df["expert"] == expert) & (df["neuron"] == neuron)).to_numpy()].reset_index(drop=True)


def legible_heads(lens: Any, n: int = 2, *, k: int = 10, pairs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Choose heads whose best pairs hold several tokens on each side, alike among themselves.

    Args:
        lens: An EmbeddingLens.
        n: How many; fewer where the model has fewer.
        k: How many pairs decide, and are returned.
        pairs: The table to choose from, with k ranks for each head; that of `lens.ov(k=k)` by default.

    Returns:
        One row per (layer, head, weight, rank) as in the table given, chosen heads only.
    """
    table: pd.DataFrame = lens.ov(k=k) if pairs is None else pairs
    if table.empty:
        return table
    k = int(table["rank"].to_numpy().max()) + 1
    value = alike(lens, table)
    order = np.argsort(-value["similarity"].to_numpy(), kind="stable")
    tokens = table["dest_token_index"].to_numpy().reshape(-1, k)
    keyed = [(int(value["layer"].iloc[place]), set(tokens[place].tolist())) for place in order]
    chosen = sorted(int(order[place]) for place in _spread(keyed, n, len(value["layer"].unique()), overlap=0.5))
    return pd.concat([table.iloc[place * k : (place + 1) * k] for place in chosen], ignore_index=True)
