"""Which components read or write a token."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ..tables.checks import check_integer
from ..tables.frames import tidy
from ..tables.selection import Select, weight_names
from ..weights.effective import ATTENTION, MLP, WeightIndex, side_of, sublayer_of
from ..weights.indices import weight_indices
from .base import TOKEN_COLUMNS, BaseLens, Block, DirectionWeight

KEYS = ("layer", "expert", "head", "neuron", "subhead")


def search_token(
    lens: BaseLens,
    token: str | int,
    layer: Select = None,
    *,
    weight: DirectionWeight | Sequence[DirectionWeight] | None = None,
    k: int = 10,
    largest: bool = True,
) -> pd.DataFrame:
    """Find the directions that score a token highest; see `EmbeddingLens.search`."""
    names = weight_names(weight, (*MLP, *ATTENTION))
    k = check_integer("k", k, minimum=1)
    token_index = lens.vocabulary.index(token)
    blocks = []
    for name in tqdm(names, desc="search", unit="weight", disable=None, leave=False):
        if weight is None and not lens.weights.layers_with(sublayer_of(name)):
            continue
        indices = weight_indices(lens.weights, name, layer, required=weight is not None or name != "W_gate")
        if indices:
            best = _best_directions(lens, name, indices, token_index, k, largest)
            blocks.append(best | {"weight": name, "token_index": token_index})
    columns = ["layer", *lens.expert_column, "head", "neuron", "subhead", "weight", "rank", *TOKEN_COLUMNS]
    return tidy(columns, blocks, lens.vocabulary.array, kind="search")


def _best_directions(lens: BaseLens, name: str, indices: list[WeightIndex], token: int, k: int, largest: bool) -> Block:
    """The k directions of one weight, over all layers, that score the token highest (or lowest)."""
    side = side_of(name)
    target = lens.space.embedding_of(token, side)
    scores, keys = [], []
    for index in indices:
        x = lens.weights.directions(name, *index)
        flat = (lens.space.vectors(x.reshape(-1, x.shape[-1]), side) @ target).cpu()
        scores.append(flat)
        row, none = np.arange(len(flat)), np.full(len(flat), -1)
        layer_and_expert = [np.full(len(flat), index.layer), np.full(len(flat), index.expert)]
        if name in ATTENTION:
            d_head = x.shape[-2]
            keys.append(np.stack([*layer_and_expert, row // d_head, none, row % d_head]))
        else:
            keys.append(np.stack([*layer_and_expert, none, row, none]))
    score = torch.cat(scores)
    order = torch.argsort(score, descending=largest, stable=True)[:k]
    key = dict(zip(KEYS, np.concatenate(keys, axis=1)[:, order.numpy()]))
    return key | {"rank": np.arange(len(order)), "score": score[order]}
