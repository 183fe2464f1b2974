"""Neurons as lists of tokens."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..search.tiles import chunk_rows
from ..tables.checks import check_k
from ..tables.frames import tidy
from ..tables.selection import Select, select, weight_names
from ..weights.host import MLPWeight
from ..weights.parameter_names import MLP, WeightIndex, side_of
from ..weights.prefetching import read_ahead
from .base import TOKEN_COLUMNS, BaseLens, Block, interleave, token_bar, token_block


def read_neurons(
    lens: BaseLens,
    layer: Select = None,
    neuron: Select = None,
    *,
    expert: Select = None,
    weight: MLPWeight | Sequence[MLPWeight] | None = None,
    k: int = 10,
    largest: bool = True,
) -> pd.DataFrame:
    """Read MLP neurons as lists of tokens; see `EmbeddingLens.neurons`."""
    names = weight_names(weight, MLP)
    k = check_k(k, lens.space.n_tokens)
    mlps = lens.weights.mlps(layer, expert)
    widths = [lens.weights.d_mlp(*mlp) for mlp in mlps]
    # Experts may differ in width: a neuron must exist in the widest MLP, and is read in every MLP that has it.
    selected = select("neuron", neuron, max(widths, default=0), lens.name, "neurons in its widest MLP")
    widths = widths if neuron is None else [len(selected)] * len(mlps)
    skip_ungated = names != ["W_gate"]  # if only W_gate is selected, an MLP without it raises an error

    def queries(batch: list[WeightIndex], name: str) -> Iterator[tuple[Block, Float[Tensor, "n d_model"]]]:
        """Keys and directions of one weight's neurons, MLP by MLP."""
        for index in batch:
            if name == "W_gate" and skip_ungated and not lens.weights.is_gated(index.layer):
                continue
            x = lens.weights.directions(name, *index)
            neurons = [n for n in selected if n < len(x)]
            x = x if neuron is None else x[torch.tensor(neurons, dtype=torch.long, device=x.device)]
            keys = {"layer": np.full(len(x), index.layer), "expert": np.full(len(x), index.expert)}
            yield keys | {"neuron": np.asarray(neurons)}, x

    def blocks() -> Iterator[Block]:
        batches = list(_batches(mlps, widths, lens.weights.d_model))
        with token_bar(lens, "neurons", len(batches) * len(names)) as bar:
            for batch, following in zip_longest(batches, batches[1:], fillvalue=[]):
                read_ahead(lens.weights, names, following)
                parts = []
                for name in names:
                    directions = list(queries(batch, name))
                    if not directions:
                        continue
                    first_keys, first = directions[0]
                    x = torch.cat([x.to(first.device) for _, x in directions])
                    block = token_block(lens, x, side_of(name), k, largest=largest, bar=bar)
                    row = block.pop("row")
                    keys = {key: np.concatenate([keys[key] for keys, _ in directions])[row] for key in first_keys}
                    parts.append(block | keys | {"weight": [name] * len(row)})
                yield from interleave(parts, {}, "layer", "expert", "neuron")

    columns = ["layer", *lens.expert_column, "neuron", "weight", "rank", *TOKEN_COLUMNS]
    return tidy(columns, blocks(), lens.vocabulary.array, kind="tokens")


def _batches(mlps: list[WeightIndex], widths: list[int], d_model: int) -> Iterator[list[WeightIndex]]:
    """Batches of MLPs whose directions fit half a chunk, so that the rows of the embedding are made once for several layers."""
    batch: list[WeightIndex] = []
    room = limit = chunk_rows(4 * d_model, scale=0.5)
    for mlp, width in zip(mlps, widths):
        if batch and width > room:
            yield batch
            batch, room = [], limit
        batch.append(mlp)
        room -= width
    if batch:
        yield batch
