"""Neurons as lists of tokens."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from ..search.tiles import PART_SCALE, chunk_rows
from ..tables.frames import tidy
from ..tables.selection import Select, select, weight_names
from ..weights.direction_rows import Directions
from ..weights.host import MLPWeight
from ..weights.parameter_names import MLP, WeightIndex, side_of
from ..weights.prefetching import read_ahead
from .base import BaseLens, Block, check_list_length, entry_columns, interleave, token_bar, token_block


class Part(NamedTuple):
    """Neurons of one MLP that are read together.

    Attributes:
        mlp: The MLP.
        neurons: The neurons, ascending.
    """

    mlp: WeightIndex
    neurons: Int[np.ndarray, " n"]

    @property
    def rows(self) -> slice | Int[Tensor, " n"]:
        """The neurons as an index; a slice if they follow each other, which copies nothing."""
        first, last = int(self.neurons[0]), int(self.neurons[-1])
        is_range = last - first + 1 == len(self.neurons)
        return slice(first, last + 1) if is_range else torch.from_numpy(self.neurons)


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
    k = check_list_length(lens, k, {side_of(name) for name in names})
    mlps = lens.weights.mlps(layer, expert)
    widths = [lens.weights.d_mlp(*mlp) for mlp in mlps]
    # Experts may differ in width: a neuron must exist in the widest MLP, and is read in every MLP that has it.
    selected = select("neuron", neuron, max(widths, default=0), lens.name, "neurons in its widest MLP")
    parts = [part for mlp, width in zip(mlps, widths) for part in _parts(mlp, width, selected, lens.weights.d_model)]
    skip_ungated = names != ["W_gate"]  # if only W_gate is selected, an MLP without it raises an error

    def open_rows(mlp: WeightIndex, name: str) -> Directions | None:
        """The directions of one weight; None for the W_gate of an ungated MLP."""
        if name == "W_gate" and skip_ungated and not lens.weights.is_gated(mlp.layer):
            return None
        return lens.weights.direction_rows(name, *mlp)

    def blocks() -> Iterator[Block]:
        rows: dict[tuple[WeightIndex, str], Directions | None] = {}
        batches = list(_batches(parts, lens.weights.d_model))
        with token_bar(lens, "neurons", (side_of(name) for name in len(batches) * names)) as bar:
            for batch, following in zip_longest(batches, batches[1:], fillvalue=[]):
                here = {part.mlp for part in batch}
                read_ahead(
                    lens.weights, names, [mlp for mlp in dict.fromkeys(p.mlp for p in following) if mlp not in here]
                )
                # The parts of a large MLP are read one after another from one weight.
                needed = [(mlp, name) for name in names for mlp in here]
                rows = {key: rows[key] if key in rows else open_rows(*key) for key in needed}
                found = []
                for name in names:
                    read = [(part, each) for part in batch if (each := rows[part.mlp, name]) is not None]
                    if not read:
                        continue
                    x = torch.cat([each[part.rows].to(read[0][1].device) for part, each in read])
                    block = token_block(lens, x, side_of(name), k, largest=largest, bar=bar)
                    row = block.pop("row")
                    keys = {
                        "layer": np.concatenate([np.full(len(part.neurons), part.mlp.layer) for part, _ in read]),
                        "expert": np.concatenate([np.full(len(part.neurons), part.mlp.expert) for part, _ in read]),
                        "neuron": np.concatenate([part.neurons for part, _ in read]),
                    }
                    found.append(
                        block | {key: values[row] for key, values in keys.items()} | {"weight": [name] * len(row)}
                    )
                yield from interleave(found, {}, "layer", "expert", "neuron")

    columns = ["layer", *lens.expert_column, "neuron", "weight", "rank", *entry_columns(lens), "score"]
    return tidy(columns, blocks(), lens.vocabulary.array, kind="tokens")


def _parts(mlp: WeightIndex, width: int, selected: list[int], d_model: int) -> Iterator[Part]:
    """The selected neurons of an MLP in parts of similar size, so that only a part of a large weight is in float32."""
    neurons = np.array(selected[: bisect_left(selected, width)], dtype=np.int64)
    n_parts = -(-len(neurons) // chunk_rows(4 * d_model, scale=PART_SCALE))
    return (Part(mlp, part) for part in np.array_split(neurons, n_parts or 1) if len(part))


def _batches(parts: list[Part], d_model: int) -> Iterator[list[Part]]:
    """Batches of parts whose directions fit half a chunk, so that the rows of the embedding are made once for several layers."""
    batch: list[Part] = []
    room = limit = chunk_rows(4 * d_model, scale=0.5)
    for part in parts:
        if batch and len(part.neurons) > room:
            yield batch
            batch, room = [], limit
        batch.append(part)
        room -= len(part.neurons)
    if batch:
        yield batch
