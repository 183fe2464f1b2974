"""Results of TransformerLens's activation patching as tables that join with those of a lens."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..lens import EmbeddingLens
from ..tables.checks import check_choice
from ..tables.frames import tidy
from .components import NOT_APPLICABLE

Axis = Literal["patch_type", "layer", "head", "neuron", "pos", "src_pos"]
AXES: tuple[Axis, ...] = ("patch_type", "layer", "head", "neuron", "pos", "src_pos")
HOST_AXES = {"head_index": "head", "dest_pos": "pos"}  # TransformerLens's names for them
# The order in which TransformerLens stacks several types of patches.
HEAD_PATCHES = ("out", "q", "k", "v", "pattern")
BLOCK_PATCHES = ("resid_pre", "attn_out", "mlp_out")
KEY_VALUE_PATCHES = ("k", "v")  # patches of heads that the query heads of a group share

Cells = dict[str, np.ndarray]
"""The keys of the patched cells: one array per axis, with one entry per cell."""


def patching_frame(
    result: Any, axes: Sequence[str] | None = None, *, lens: EmbeddingLens | None = None, metric: str = "metric"
) -> pd.DataFrame:
    r"""Turn the result of activation patching into a table with the keys of this package's tables.

    Args:
        result: What a function of `transformer_lens.patching` returns: a tensor; a tensor and its index table; or a
            `PatchingResult`, which may have several metrics and examples.
        axes: The dimensions of a bare tensor: `"layer"`, `"head"`, `"neuron"`, `"pos"`, `"src_pos"`, `"patch_type"` (stacks of 5
            types of head patches or 3 types of block patches), or TransformerLens's `"head_index"` and `"dest_pos"`.
        lens: The model's lens, required for grouped-query attention. There, keys and values have fewer heads, and each query
            head gets the row of the head that its group shares.
        metric: The name of the metric of a bare tensor.

    Returns:
        One row per (metric, patch_type, layer, head, neuron, pos, src_pos, example), with `value`. A key that the result does not
        have is −1 (`patch_type`: empty); `example` is −1 for a mean over examples. `pos` counts all tokens of the run, with a
        beginning-of-sequence token.

    Raises:
        EmbspaceError: If it is not such a result, the axes do not fit it, or heads are shared and no lens is given.

    Example:
        >>> table = patching_frame(torch.zeros(2, 4), ("layer", "head"))
        >>> table[["layer", "head"]].values.tolist()[:2]
        [[0, 0], [0, 1]]

    References:
        Meng et al. (2022), Locating and Editing Factual Associations in GPT. https://arxiv.org/abs/2202.05262
    """
    cells, values, metrics, is_mean = _parse(result, axes, metric)
    cells = _name_patch_types(cells, getattr(result, "patch_type_names", None))
    if "head" in cells:
        cells, values = _expand_shared_heads(cells, values, lens)
    n_metrics, n_cells, n_examples = values.shape
    block: dict[str, Any] = {name: [("" if name == "patch_type" else NOT_APPLICABLE)] * values.numel() for name in AXES}
    block |= {name: np.tile(np.repeat(column, n_examples), n_metrics) for name, column in cells.items()}
    examples = np.full(n_examples, NOT_APPLICABLE) if is_mean else np.arange(n_examples)
    block |= {
        "example": np.tile(examples, n_metrics * n_cells),
        "value": values.flatten(),
        "metric": np.repeat(metrics, n_cells * n_examples),
    }
    keys = ["metric", *AXES, "example"]
    return tidy([*keys, "value"], [block]).sort_values(keys, kind="stable", ignore_index=True)


def _parse(
    result: Any, axes: Sequence[str] | None, metric: str
) -> tuple[Cells, Float[Tensor, "n_metrics n_cells n_examples"], list[str], bool]:
    """The cells, their values, the metrics' names, and whether the values are means over examples."""
    if hasattr(result, "index_df") and hasattr(result, "values") and hasattr(result, "metric_names"):
        index, names = result.index_df, list(result.metric_names)
        values = result.values.detach().cpu().reshape(len(names), len(index), -1)
        return _cells_of_table(index), values, names, bool(result.reduced)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], pd.DataFrame):
        values, cells = result[0], _cells_of_table(result[1])
    elif isinstance(result, Tensor | np.ndarray):
        values = torch.as_tensor(result)
        if axes is None or len(axes) != values.ndim:
            raise errors.axes_do_not_fit(tuple(values.shape), axes, AXES)
        if len({HOST_AXES.get(axis, axis) for axis in axes}) < len(axes):
            raise errors.repeated_axis(axes)
        cells = _rename_axes(dict(zip(axes, (i.ravel() for i in np.indices(tuple(values.shape))), strict=True)))
    else:
        raise errors.not_result(
            "patching_frame", result, "a tensor, a tensor with its index table, or a PatchingResult"
        )
    return cells, torch.as_tensor(values).detach().cpu().reshape(1, -1, 1), [metric], True


def _cells_of_table(index: pd.DataFrame) -> Cells:
    return _rename_axes({str(name): index[name].to_numpy() for name in index.columns})


def _rename_axes(cells: Cells) -> Cells:
    return {check_choice("axis", HOST_AXES.get(name, name), AXES): column for name, column in cells.items()}


def _name_patch_types(cells: Cells, names: Sequence[str] | None) -> Cells:
    """Replace numbers of patch types by their names."""
    types = cells.get("patch_type")
    if types is None or not len(types) or isinstance(types[0], str):
        return cells
    count = int(types.max()) + 1
    names = names or {len(HEAD_PATCHES): HEAD_PATCHES, len(BLOCK_PATCHES): BLOCK_PATCHES}.get(count)
    if names is None:
        raise errors.unknown_patch_types(count)
    return cells | {"patch_type": np.array(names, dtype=object)[types.astype(int)]}


def _expand_shared_heads(
    cells: Cells, values: Float[Tensor, "n_metrics n_cells n_examples"], lens: EmbeddingLens | None
) -> tuple[Cells, Float[Tensor, "n_metrics n_rows n_examples"]]:
    """Give each query head the row of the key-value head that its group shares, and drop TransformerLens's padding."""
    head = cells["head"].astype(int)
    types = cells.get("patch_type")
    is_shared = np.isin(types, KEY_VALUE_PATCHES) if types is not None else np.ones(len(head), dtype=bool)
    if lens is None:
        last = is_shared & (head == head.max(initial=0))
        if types is not None and last.any() and not values[:, torch.tensor(last)].any():
            raise errors.lens_needed_for_shared_heads()
        return cells, values
    n_heads, n_key_value_heads = lens.weights.n_heads, lens.weights.n_key_value_heads
    if head.max(initial=0) >= n_heads:
        raise errors.out_of_range("head", int(head.max()), lens.name, n_heads, "heads")
    if n_key_value_heads == n_heads or (types is None and head.max(initial=0) >= n_key_value_heads):
        return cells, values
    group = n_heads // n_key_value_heads
    real_cells = np.flatnonzero(~is_shared | (head < n_key_value_heads))
    n_copies = np.where(is_shared[real_cells], group, 1)
    row = np.repeat(real_cells, n_copies)
    within_group = np.concatenate([np.arange(0), *(np.arange(n) for n in n_copies)])
    query_head = np.where(is_shared[row], head[row] * group + within_group, head[row])
    expanded = {name: column[row] for name, column in cells.items()} | {"head": query_head}
    return expanded, values[:, torch.from_numpy(row)]
