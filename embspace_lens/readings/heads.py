"""Heads as pairs of tokens, and their single columns and rows as lists of tokens."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np
import pandas as pd
from tqdm import tqdm

from .. import errors
from ..space.same_tokens import SameRule, same_pairs
from ..tables.checks import check_k
from ..tables.frames import tidy
from ..tables.selection import Select, weight_names
from ..weights.experts import NO_EXPERT
from ..weights.host import AttentionWeight
from ..weights.parameter_names import ATTENTION, WeightIndex, side_of
from ..weights.prefetching import read_ahead
from .base import BaseLens, Block, check_list_length, entry_columns, interleave, token_bar, token_block
from .pair_search import CIRCUIT_SIDES, pair_block, pair_columns, pair_search


def read_subheads(
    lens: BaseLens,
    layer: Select = None,
    head: Select = None,
    *,
    weight: AttentionWeight | Sequence[AttentionWeight] | None = None,
    k: int = 10,
    largest: bool = True,
) -> pd.DataFrame:
    """Read the columns of W_Q, W_K, W_V and the rows of W_O; see `EmbeddingLens.subheads`."""
    names = weight_names(weight, ATTENTION)
    k = check_list_length(lens, k, {side_of(name) for name in names})
    heads, layers = lens.weights.select_heads(head), lens.weights.select_layers(layer, "attn")

    def blocks() -> Iterator[Block]:
        with token_bar(lens, "subheads", (side_of(name) for name in len(layers) * names)) as bar:
            for index, following in zip_longest(layers, layers[1:]):
                if following is not None:
                    read_ahead(lens.weights, names, [WeightIndex(following, NO_EXPERT)])
                parts = []
                for name in names:
                    x = lens.weights.direction_rows(name, index)[heads]
                    block = token_block(lens, x.flatten(0, 1), side_of(name), k, largest=largest, bar=bar)
                    row = block.pop("row")
                    d_head = x.shape[1]
                    keys = {"head": np.asarray(heads)[row // d_head], "subhead": row % d_head}
                    parts.append(block | keys | {"weight": [name] * len(row)})
                yield from interleave(parts, {"layer": index}, "head", "subhead")

    columns = ["layer", "head", "subhead", "weight", "rank", *entry_columns(lens), "score"]
    return tidy(columns, blocks(), lens.vocabulary.array, kind="tokens")


def read_ov(
    lens: BaseLens,
    layer: Select = None,
    head: Select = None,
    *,
    exclude_same: SameRule | None = None,
    k: int = 10,
    largest: bool = True,
) -> pd.DataFrame:
    """Read the OV circuits: the best pairs of source and output tokens; see `EmbeddingLens.ov`."""
    return _read_circuit(lens, "W_OV", layer, head, k, largest, exclude_same)


def read_qk(
    lens: BaseLens,
    layer: Select = None,
    head: Select = None,
    *,
    distance: int | None = None,
    exclude_same: SameRule | None = None,
    k: int = 10,
    largest: bool = True,
) -> pd.DataFrame:
    """Read the QK circuits: the best pairs of query and key tokens; see `EmbeddingLens.qk`."""
    return _read_circuit(lens, "W_QK", layer, head, k, largest, exclude_same, distance)


def _read_circuit(
    lens: BaseLens,
    name: str,
    layer: Select,
    head: Select,
    k: int,
    largest: bool,
    exclude_same: SameRule | None,
    distance: int | None = None,
) -> pd.DataFrame:
    """The best pairs of tokens of W_OV (source × output), or of W_QK (query × key, at a distance of rotary positions)."""
    excluded = None
    first, second = CIRCUIT_SIDES[name]
    if exclude_same is not None:
        if lens.space.has_features:
            raise errors.same_features(lens.name)
        excluded = same_pairs(lens.vocabulary.strings[lens.space.token_ids.numpy()].tolist(), exclude_same)
    n_pairs = len(lens.space.ids(first)) * len(lens.space.ids(second)) - (0 if excluded is None else len(excluded))
    k = check_k(k, n_pairs, f"pairs of {'features' if lens.space.has_features else 'tokens'} that this lens reads")
    heads, layers = lens.weights.select_heads(head), lens.weights.select_layers(layer, "attn")

    def blocks() -> Iterator[Block]:
        with tqdm(total=len(layers) * len(heads), desc=name, unit="head", disable=None, leave=False) as bar:
            for index, following in zip_longest(layers, layers[1:]):
                if following is not None:
                    read_ahead(lens.weights, [name], [WeightIndex(following, NO_EXPERT)])
                search = pair_search(lens, name, index, distance)
                for h in heads:
                    keys = {"layer": index, "head": h, "weight": name, "rank": np.arange(k)}
                    yield keys | pair_block(lens, search, name, h, k, largest=largest, excluded=excluded)
                    bar.update()

    columns = ["layer", "head", "weight", "rank", *pair_columns(lens, [name]), "score"]
    return tidy(columns, blocks(), lens.vocabulary.array, kind="pairs")
