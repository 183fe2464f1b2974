"""Neuron matching: the partner of each neuron in a layer of another model."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .. import errors
from ..lens import EmbeddingLens
from ..search.tiles import chunks
from ..tables.frames import tidy
from ..tables.selection import select, weight_names
from ..weights.indices import weight_indices
from ..weights.parameter_names import MLP
from .correlation_space import CorrelationSpace, SpaceName, Which, shared_space

MAX_PAIRS = 2**26  # of a one-to-one assignment: the table of their correlations takes 0.8 GB
MATCHES = ("nearest", "one_to_one")


def match_neurons(
    a: EmbeddingLens,
    b: EmbeddingLens,
    layer_a: int,
    layer_b: int,
    *,
    weight: str = "W_out",
    space: SpaceName = "embedding",
    one_to_one: bool = True,
) -> pd.DataFrame:
    r"""Find the partner of every neuron in a layer of another model.

    The partner has the largest correlation r over the shared tokens. The sign counts: a neuron that writes the opposite vector
    has the opposite effect. `nearest` is each neuron's best partner; `one_to_one` is the assignment with the largest sum in which
    every neuron is used at most once:

    .. math:: \mathrm{nearest}(i) = \arg\max_j r(x_i E_a, y_j E_b), \qquad
              \mathrm{one\_to\_one} = \arg\max_\pi \sum_i r(x_i E_a, y_{\pi(i)} E_b)

    Neurons whose scores do not vary have no correlation and are left out.

    Args:
        a: The first model's lens.
        b: The second model's lens.
        layer_a: A block of a.
        layer_b: A block of b.
        weight: `"W_in"`, `"W_gate"` or `"W_out"`.
        space: As for `align`.
        one_to_one: With False, only nearest partners; these need no table of all pairs.

    Returns:
        One row per (weight, layer_a, layer_b, neuron_a, match), with `neuron_b` and `correlation`; also `expert_a` before
        neuron_a, and `expert_b`, if that model has mixtures of experts.

    Raises:
        EmbspaceError: As `align`; or if the layers have too many neurons to match one to one, or lack the weight.

    Example:
        >>> matches = match_neurons(lens, lens, 0, 0)
        >>> bool((matches["neuron_a"] == matches["neuron_b"]).all())
        True

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §5. https://arxiv.org/abs/2209.02535
    """
    names = [] if weight is None else weight_names(weight, MLP)
    name = _single("weight", weight, names, "weight of an MLP")
    common = shared_space(a, b, space)
    index_a, index_b = _layer_index(a, "layer_a", layer_a), _layer_index(b, "layer_b", layer_b)
    x, experts_a, neurons_a = _neuron_vectors(common, 0, name, index_a)
    y, experts_b, neurons_b = _neuron_vectors(common, 1, name, index_b)
    if one_to_one and len(x) * len(y) > MAX_PAIRS:
        raise errors.too_many_pairs(len(x), len(y), MAX_PAIRS)
    row, column, match, correlation = _partners(x, y, one_to_one)
    block = {
        "weight": [name] * len(row),
        "layer_a": [index_a] * len(row),
        "layer_b": [index_b] * len(row),
        "expert_a": experts_a[row],
        "neuron_a": neurons_a[row],
        "match": np.array(MATCHES)[match],
        "expert_b": experts_b[column],
        "neuron_b": neurons_b[column],
        "correlation": correlation,
    }
    expert_columns = [f"expert_{suffix}" for suffix, lens in (("a", a), ("b", b)) if lens.weights.has_experts]
    columns = ["weight", "layer_a", "layer_b", *expert_columns, "neuron_a", "match", "neuron_b", "correlation"]
    return tidy(columns, [{column: block[column] for column in columns}])


def _single(name: str, value: object, selected: list[Any], what: str) -> Any:
    """The single item that an argument selects.

    Raises:
        EmbspaceError: If it selects several, or none.
    """
    if len(selected) != 1:
        raise errors.not_single(name, value, what)
    return selected[0]


def _layer_index(lens: EmbeddingLens, name: str, value: Any) -> int:
    """The single layer that an argument selects."""
    selected = [] if value is None else select(name, value, lens.weights.n_layers, lens.name, "layers")
    return _single(name, value, selected, "layer")


def _neuron_vectors(
    common: CorrelationSpace, which: Which, weight: str, layer: int
) -> tuple[Float[Tensor, "n rank"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Unit vectors of a layer's neurons that vary, with their experts and their numbers, in the order of both."""
    vectors, experts, neurons = [], [], []
    for index in weight_indices(common.lenses[which].weights, weight, [layer]):
        unit, varies = common.weight_vectors(which, weight, index)
        vectors.append(unit)
        neurons.append(np.flatnonzero(varies.numpy()))
        experts.append(np.full(len(unit), index.expert))
    return torch.cat(vectors), np.concatenate(experts), np.concatenate(neurons)


def _partners(
    x: Float[Tensor, "n_a rank"], y: Float[Tensor, "n_b rank"], one_to_one: bool
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Row, column, index in `MATCHES` and correlation of all partners, in the order of rows."""
    no_index = np.zeros(0, dtype=np.int64)
    parts: list[tuple[np.ndarray, ...]] = [(no_index, no_index, no_index, np.zeros(0))]
    tables = []
    for rows in chunks(len(x), x.element_size() * len(y)) if len(y) else ():
        table = (x[rows] @ y.T).cpu()
        value, column = table.max(dim=1)
        row = np.arange(rows.start, rows.stop)
        parts.append((row, column.numpy(), np.zeros_like(row), value.numpy()))
        if one_to_one:
            tables.append(table)
    if tables:
        table = torch.cat(tables).numpy()
        row, column = linear_sum_assignment(table, maximize=True)
        parts.append((row, column, np.ones_like(row), table[row, column]))
    row, column, match, value = (np.concatenate(part) for part in zip(*parts))
    order = np.lexsort((match, row))
    return row[order], column[order], match[order], value[order]
