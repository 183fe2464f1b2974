"""Which neuron of one model is which of another."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..errors import EmbspaceError
from ..lens import EmbeddingLens
from ..tables.frames import tidy
from ..tables.selection import select, weight_names
from ..weights.effective import MLP
from ..weights.indices import weight_indices
from .correlation_space import Meeting, meet, units_at

TILE_PAIRS = 2**22  # correlations made at a time
MOST_PAIRS = 2**26  # matched one to one: the table of their correlations takes 0.8 GB
MATCHES = ("nearest", "one_to_one")


def match_neurons(
    a: EmbeddingLens,
    b: EmbeddingLens,
    layer_a: int,
    layer_b: int,
    *,
    weight: str = "W_out",
    space: str = "embedding",
    one_to_one: bool = True,
) -> pd.DataFrame:
    """Find every neuron's partner in a layer of another model.

    Partners are those with the largest correlation over the shared tokens, its sign included: a neuron that writes the
    opposite does the opposite. `nearest` is each neuron's best, `one_to_one` the assignment, every neuron taken once, with the
    largest sum. Neurons whose scores do not vary have no partner and are no one's.

    Args:
        a: One model's lens.
        b: The other's.
        layer_a: A block of a.
        layer_b: A block of b.
        weight: `"W_in"`, `"W_gate"` or `"W_out"`.
        space: As for `align`.
        one_to_one: With False, only nearest partners, which takes no table of all pairs.

    Returns:
        One row per (weight, layer_a, layer_b, neuron_a, match), with `neuron_b` and `correlation`; with `expert_a` before
        neuron_a, and `expert_b`, where that model has mixtures of experts.

    Raises:
        EmbspaceError: As `align`; or if there are too many neurons to match one to one, or the layer has no such weight.

    Example:
        >>> found = match_neurons(lens, other, 3, 3)
        >>> found["match"].value_counts().to_dict()
        {'nearest': 768, 'one_to_one': 768}

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §4.2. https://arxiv.org/abs/2209.02535
    """
    (name,) = _one(
        weight_names(weight, MLP) if weight is not None else [], "weight", weight, "one of the MLP's weights"
    )
    meeting = meet(a, b, space)
    number_a, number_b = _layer(a, "layer_a", layer_a), _layer(b, "layer_b", layer_b)
    x, experts_a, neurons_a = _neurons(meeting, 0, name, number_a)
    y, experts_b, neurons_b = _neurons(meeting, 1, name, number_b)
    if one_to_one and len(x) * len(y) > MOST_PAIRS:
        raise EmbspaceError(
            f"{len(x):,} × {len(y):,} neurons are too many to match one to one (at most {MOST_PAIRS:,} pairs). "
            "Give one_to_one=False for nearest partners."
        )
    row, column, match, correlation = _partners(x, y, one_to_one)
    block = {
        "weight": [name] * len(row),
        "layer_a": [number_a] * len(row),
        "layer_b": [number_b] * len(row),
        "expert_a": experts_a[row],
        "neuron_a": neurons_a[row],
        "match": np.array(MATCHES)[match],
        "expert_b": experts_b[column],
        "neuron_b": neurons_b[column],
        "correlation": correlation,
    }
    mixed = [f"expert_{end}" for end, lens in (("a", a), ("b", b)) if lens.weights.has_experts]
    columns = ["weight", "layer_a", "layer_b", *mixed, "neuron_a", "match", "neuron_b", "correlation"]
    return tidy(columns, [{column: block[column] for column in columns}])


def _one(chosen: list[Any], name: str, value: Any, what: str) -> list[Any]:
    if len(chosen) != 1:
        raise EmbspaceError(f"{name}={value!r} does not name {what}; match_neurons() takes exactly one.")
    return chosen


def _layer(lens: EmbeddingLens, name: str, value: Any) -> int:
    chosen = [] if value is None else select(name, value, lens.weights.n_layers, lens.name, "layers")
    return _one(chosen, name, value, "a layer")[0]


def _neurons(meeting: Meeting, which: int, weight: str, layer: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Unit vectors of a layer's neurons, with their experts and numbers, in the order of both."""
    here = weight_indices(meeting.lenses[which].weights, weight, [layer])
    vectors, experts, neurons = [], [], []
    for place in here:
        units, kept = units_at(meeting, which, weight, place)
        vectors.append(units)
        neurons.append(np.flatnonzero(kept.numpy()))
        experts.append(np.full(len(units), place.expert))
    return torch.cat(vectors), np.concatenate(experts), np.concatenate(neurons)


def _partners(x: Tensor, y: Tensor, one_to_one: bool) -> tuple[np.ndarray, ...]:
    """Row, column, number in `MATCHES` and correlation of all partners, in the order of rows."""
    parts: list[tuple[np.ndarray, ...]] = [(np.zeros(0, dtype=np.int64),) * 3 + (np.zeros(0),)]
    tables = []
    for start in range(0, len(x) if len(y) else 0, step := max(1, TILE_PAIRS // max(len(y), 1))):
        table = (x[start : start + step] @ y.T).cpu()
        value, column = table.max(dim=1)
        row = np.arange(start, start + len(table))
        parts.append((row, column.numpy(), np.zeros_like(row), value.numpy()))
        if one_to_one:
            tables.append(table)
    if tables:
        table = torch.cat(tables).numpy()
        row, column = linear_sum_assignment(table, maximize=True)
        parts.append((row, column, np.ones_like(row), table[row, column]))
    row, column, match, value = (np.concatenate(some) for some in zip(*parts))
    order = np.lexsort((match, row))
    return row[order], column[order], match[order], value[order]
