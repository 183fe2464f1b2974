"""Results of TransformerLens's forward-pass tools as tables that join with what the weights say."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import errors
from ..lens import EmbeddingLens
from ..tables.checks import check_k
from ..tables.frames import tidy

AXES = ("patch_type", "layer", "head", "neuron", "pos", "src_pos")
RENAMED = {"head_index": "head", "dest_pos": "pos"}
HEAD_TYPES = ("out", "q", "k", "v", "pattern")  # the host's order in its stacks of several kinds of patches
BLOCK_TYPES = ("resid_pre", "attn_out", "mlp_out")
SHARED = ("k", "v")  # kinds whose heads query heads share
NOT_SAID = -1  # a key that a result does not have

# How the host calls what it attributes to: "embed", "3_attn_out", "L3H7", "L3N15", "final_post", "remainder".
LABELS = re.compile(r"^(?:L(?P<unit>\d+)(?:H(?P<head>\d+)|N(?P<neuron>\d+))|(?:(?P<layer>\d+)_)?(?P<node>\w+))$")
STREAM = {"pre": "resid_pre", "mid": "resid_mid", "post": "resid_post", "final_post": "resid_post"}
VALUE_NAMES = {"logits": "logit", "log_probs": "log_prob", "probs": "probability"}


def patching_frame(
    result: Any, axes: Sequence[str] | None = None, *, lens: EmbeddingLens | None = None, metric: str = "metric"
) -> pd.DataFrame:
    r"""Make a table of an activation patching result, with the keys that this package's tables have.

    Args:
        result: What a function of `transformer_lens.patching` returns: a tensor; a tensor and its index table; or a
            `PatchingResult`, with several metrics and examples if it has them.
        axes: For a bare tensor, what its dimensions are: `"layer"`, `"head"`, `"neuron"`, `"pos"`, `"src_pos"`, `"patch_type"` (the
            stacks of 5 or 3 kinds of patches), or as the host says, `"head_index"` and `"dest_pos"`.
        lens: The model's lens. With grouped queries it must be given: keys and values have fewer heads there, and each
            query head gets the row of the head that it shares.
        metric: What a bare tensor measures.

    Returns:
        One row per (metric, patch_type, layer, head, neuron, pos, src_pos, example), with `value`. A key that the result does not
        have is −1 (`patch_type`: empty); `example` is −1 for a mean over examples. `pos` counts all tokens of the run, a
        beginning-of-sequence token included.

    Raises:
        EmbspaceError: If it is no such result, axes do not fit it, or a shared head's query heads cannot be told.

    Example:
        >>> table = patching_frame(torch.zeros(2, 4), ("layer", "head"))
        >>> table[["layer", "head"]].values.tolist()[:2]
        [[0, 0], [0, 1]]

    References:
        Meng et al. (2022), Locating and Editing Factual Associations in GPT. https://arxiv.org/abs/2202.05262
    """
    cells, values, metrics, averaged = _cells(result, axes, metric)
    cells = _typed(cells, getattr(result, "patch_type_names", None))
    if "head" in cells:
        cells, values = _shared_heads(cells, values, lens)
    n_metrics, n_cells, n_examples = values.shape
    each = {name: np.tile(np.repeat(cells[name], n_examples), n_metrics) for name in cells}
    missing = {
        name: [("" if name == "patch_type" else NOT_SAID)] * values.numel() for name in AXES if name not in cells
    }
    example = [NOT_SAID] * values.numel() if averaged else np.tile(np.arange(n_examples), n_metrics * n_cells)
    block = (
        each
        | missing
        | {"example": example, "value": values.flatten(), "metric": np.repeat(metrics, n_cells * n_examples)}
    )
    return _sorted(["metric", *AXES, "example"], ["value"], block)


def attribution_frame(result: Any) -> pd.DataFrame:
    r"""Make a table of direct logit attribution, or of attribution patching.

    Args:
        result: A `DirectLogitAttribution` of any unit, or an `AttributionResult` (its nodes).

    Returns:
        One row per (layer, node, head, neuron, pos, example), with `value`: for direct logit attribution the part of the logit (or
        of the difference of two), for attribution patching the estimated effect. `node` is embed, pos_embed, attn_out, mlp_out,
        head, neuron, remainder, or resid_pre, resid_mid and resid_post for cumulative sums; a key that does not apply is −1.

    Raises:
        EmbspaceError: If it is neither, or a label is none that is known.

    Example:
        >>> attribution_frame(result).merge(lens.ov(k=1), on=["layer", "head"])  # doctest: +SKIP

    References:
        Wang et al. (2023), Interpretability in the Wild. https://arxiv.org/abs/2211.00593
        Nanda (2023), Attribution Patching; Syed et al. (2023), https://arxiv.org/abs/2310.10348
    """
    keys = ["layer", "node", "head", "neuron", "pos", "example"]
    if hasattr(result, "node_scores"):
        nodes, values = list(result.node_scores), list(result.node_scores.values())
        block: dict[str, Any] = {
            "node": ["head" if node.kind == "attn_head_out" else node.kind for node in nodes],
            "layer": [NOT_SAID if node.layer is None else node.layer for node in nodes],
            "head": [NOT_SAID if node.head is None else node.head for node in nodes],
            "pos": [node.position for node in nodes],
            "neuron": [NOT_SAID] * len(nodes),
            "example": [NOT_SAID] * len(nodes),
            "value": values,
        }
        return _sorted(keys, ["value"], block)
    if not (hasattr(result, "attribution") and hasattr(result, "labels")):
        raise errors.EmbspaceError(
            f"A {type(result).__name__} is neither a DirectLogitAttribution nor an AttributionResult."
        )
    values = result.attribution.detach().cpu().float()
    if values.ndim > 3:
        raise errors.EmbspaceError(
            f"The attribution has shape {tuple(values.shape)}; it may have examples and positions."
        )
    leading, places = _leading(values.shape[1:], ("example", "pos"))
    named = _labelled(list(result.labels))
    block = {name: np.repeat(column, places) for name, column in named.items()}
    block |= {name: np.tile(column, len(values)) for name, column in leading.items()}
    return _sorted(keys, ["value"], block | {"value": values.flatten()})


def composition_frame(scores: Any, *, mode: str) -> pd.DataFrame:
    r"""Make a table of composition scores: how much of what a head reads another head wrote.

    .. math:: \frac{\lVert W_{OV}^{\mathrm{src}} W^{\mathrm{dest}} \rVert_F}{\lVert W_{OV}^{\mathrm{src}} \rVert_F \lVert W^{\mathrm{dest}} \rVert_F}

    Args:
        scores: What `model.all_composition_scores(mode)` returns: `CompositionScores`, or a tensor `[layer, head, layer, head]`.
        mode: `"Q"`, `"K"` or `"V"`, as there.

    Returns:
        One row per (composition, src_layer, src_head, layer, head), with `value`; pairs whose source does not stand in an earlier
        block are left out. Hybrid models keep the numbers of their blocks.

    Raises:
        EmbspaceError: If the scores have another shape, or there is no such mode.

    Example:
        >>> len(composition_frame(torch.rand(2, 4, 2, 4), mode="K"))
        16

    References:
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Virtual attention heads".
    """
    if mode not in ("Q", "K", "V"):
        raise errors.choice("mode", mode, ("Q", "K", "V"))
    values = getattr(scores, "scores", scores)
    if not isinstance(values, Tensor) or values.ndim != 4 or values.shape[:2] != values.shape[2:]:
        raise errors.EmbspaceError("scores are no tensor [layer, head, layer, head], nor CompositionScores.")
    layers = np.asarray(getattr(scores, "layer_indices", range(len(values))))
    src, src_head, dest, head = (index.ravel() for index in np.indices(values.shape))
    earlier = layers[src] < layers[dest]
    block = {"src_layer": layers[src], "src_head": src_head, "layer": layers[dest], "head": head}
    block = {name: column[earlier] for name, column in block.items()}
    block |= {
        "composition": [mode] * int(earlier.sum()),
        "value": values.detach().cpu().flatten()[torch.tensor(earlier)],
    }
    return _sorted(["composition", "src_layer", "src_head", "layer", "head"], ["value"], block)


def logit_lens_frame(result: Any, lens: EmbeddingLens, *, k: int | None = None) -> pd.DataFrame:
    r"""Make a table of a logit lens, its tokens told as this package tells them.

    Args:
        result: What `transformer_lens.tools.analysis.logit_lens` returns (TransformerLens 4).
        lens: The model's lens, for the tokens' exact texts.
        k: How many tokens to keep of each state; all that the result holds by default.

    Returns:
        One row per (metric, layer, node, example, pos, rank), with the token and `value`. `metric` is logit, log_prob or
        probability; `node` resid_pre, resid_mid or resid_post; `pos` and `example` count along the result, −1 where it was cut to
        one. `rank` is the place among the tokens that the result holds.

    Raises:
        EmbspaceError: If it is no logit lens, or k is more than it holds.

    Example:
        >>> logit_lens_frame(logit_lens(model, "w2 w3", top_k=5), lens)  # doctest: +SKIP

    References:
        nostalgebraist (2020), interpreting GPT: the logit lens.
    """
    if not (hasattr(result, "readout") and hasattr(result, "labels") and hasattr(result, "has_batch_dim")):
        raise errors.EmbspaceError(f"A {type(result).__name__} is no result of logit_lens.")
    readout = result.readout
    values = readout.values.detach().cpu().float()
    n = values.shape[-1]
    kept = n if k is None else check_k(k, n, "tokens that the result holds")
    leading, places = _leading(values.shape[1:-1], ("example", "pos") if result.has_batch_dim else ("pos",))
    ids = readout.top_ids if readout.top_ids is not None else readout.selected_ids
    ids = torch.arange(n) if ids is None else ids.detach().cpu()
    if getattr(readout, "per_row_targets", False):
        ids = ids[..., None].expand(values.shape[1:])
    ids = ids.expand_as(values).reshape(-1, n)
    best, order = values.reshape(-1, n).sort(dim=1, descending=True, stable=True)
    named = _labelled(list(result.labels))
    rows = len(values) * places * kept
    block: dict[str, Any] = {name: np.repeat(named[name], places * kept) for name in ("node", "layer")}
    block |= {name: np.repeat(np.tile(column, len(values)), kept) for name, column in leading.items()}
    block |= {
        "rank": np.tile(np.arange(kept), rows // kept),
        "token_index": ids.gather(1, order)[:, :kept].flatten(),
        "value": best[:, :kept].flatten(),
        "metric": [VALUE_NAMES.get(readout.return_type, readout.return_type)] * rows,
    }
    keys = ["metric", "layer", "node", "example", "pos", "rank"]
    return _sorted(keys, ["token_index", "token_string", "value"], block, lens.vocabulary.array)


def _sorted(keys: list[str], more: list[str], block: dict[str, Any], strings: Any = None) -> pd.DataFrame:
    return tidy([*keys, *more], [block], strings).sort_values(keys, kind="stable", ignore_index=True)


def _cells(
    result: Any, axes: Sequence[str] | None, metric: str
) -> tuple[dict[str, np.ndarray], Tensor, list[str], bool]:
    """The keys of each cell, values `[metric, cell, example]`, the metrics' names, and whether examples are averaged."""
    if hasattr(result, "index_df") and hasattr(result, "values") and hasattr(result, "metric_names"):
        index, names = result.index_df, list(result.metric_names)
        values = result.values.detach().cpu().reshape(len(names), len(index), -1)
        return _named({str(c): index[c].to_numpy() for c in index.columns}), values, names, bool(result.reduced)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], pd.DataFrame):
        values, index = result
        cells = {str(c): index[c].to_numpy() for c in index.columns}
    elif isinstance(result, Tensor | np.ndarray):
        values = torch.as_tensor(result)
        if axes is None or len(axes) != values.ndim:
            raise errors.EmbspaceError(
                f"The tensor has shape {tuple(values.shape)}, so axes must name {values.ndim} of {', '.join(AXES)}; they are {axes!r}."
            )
        if len({RENAMED.get(axis, axis) for axis in axes}) < len(axes):
            raise errors.EmbspaceError(f"axes name one thing twice: {tuple(axes)!r}.")
        cells = dict(zip(axes, (i.ravel() for i in np.indices(tuple(values.shape))), strict=True))
    else:
        raise errors.EmbspaceError(
            f"A {type(result).__name__} is no patching result: a tensor, or what the host makes of it."
        )
    return _named(cells), torch.as_tensor(values).detach().cpu().reshape(1, -1, 1), [metric], True


def _named(cells: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    cells = {RENAMED.get(name, name): column for name, column in cells.items()}
    for name in cells:
        if name not in AXES:
            raise errors.choice("axis", name, AXES)
    return cells


def _typed(cells: dict[str, np.ndarray], names: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Kinds of patches by name rather than by number."""
    if "patch_type" not in cells or not len(cells["patch_type"]) or isinstance(cells["patch_type"][0], str):
        return cells
    count = int(cells["patch_type"].max()) + 1
    known = names or {len(HEAD_TYPES): HEAD_TYPES, len(BLOCK_TYPES): BLOCK_TYPES}.get(count)
    if known is None:
        raise errors.EmbspaceError(
            f"patch_type has {count} kinds, where the host's stacks have 5 (heads) or 3 (blocks)."
        )
    return cells | {"patch_type": np.array(known, dtype=object)[cells["patch_type"].astype(int)]}


def _shared_heads(
    cells: dict[str, np.ndarray], values: Tensor, lens: EmbeddingLens | None
) -> tuple[dict[str, np.ndarray], Tensor]:
    """Each query head's own row, where query heads share the head that was patched; the host's padding left out."""
    head = cells["head"].astype(int)
    kinds = cells.get("patch_type")
    shared = np.isin(kinds, SHARED) if kinds is not None else np.ones(len(head), dtype=bool)
    if lens is None:
        last = shared & (head == head.max(initial=0))
        if kinds is not None and last.any() and not values[:, torch.tensor(last)].any():
            raise errors.EmbspaceError(
                "The last head's keys and values have no effect at all: query heads seem to share heads here. Give lens=…"
            )
        return cells, values
    n_heads = lens.weights.n_heads
    n_shared = lens.weights.n_key_value_heads
    if head.max(initial=0) >= n_heads:
        raise errors.out_of_range("head", int(head.max()), lens.name, n_heads, "heads")
    if n_shared == n_heads or (kinds is None and head.max(initial=0) >= n_shared):
        return cells, values
    group = n_heads // n_shared
    keep = np.flatnonzero(~shared | (head < n_shared))
    times = np.where(shared[keep], group, 1)
    row = np.repeat(keep, times)
    within = np.concatenate([np.arange(n) for n in times]) if len(times) else np.zeros(0, dtype=int)
    query = np.where(shared[row], head[row] * group + within, head[row])
    return {name: column[row] for name, column in cells.items()} | {"head": query}, values[:, torch.from_numpy(row)]


def _leading(shape: Sequence[int], names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], int]:
    """Examples and positions of the middle dimensions, −1 for those that are not there, and how many places they make."""
    index = [i.ravel() for i in np.indices(tuple(shape))]
    places = int(np.prod(shape, dtype=int))
    found = dict(zip(names, index))
    return {name: found.get(name, np.full(places, NOT_SAID)) for name in ("example", "pos")}, places


def _labelled(labels: list[str]) -> dict[str, np.ndarray]:
    """Node, layer, head and neuron of the host's labels."""
    rows = []
    for label in labels:
        match = LABELS.match(label)
        if match is None:
            raise errors.EmbspaceError(f"label {label!r} is not one that TransformerLens is known to give.")
        part = match.groupdict()
        node = "head" if part["head"] else "neuron" if part["neuron"] else STREAM.get(part["node"], part["node"])
        rows.append(
            (node, *(NOT_SAID if part[n] is None else int(part[n]) for n in ("layer", "unit", "head", "neuron")))
        )
    node, layer, unit, head, neuron = (np.array(column) for column in zip(*rows)) if rows else (np.zeros(0),) * 5
    layer = np.maximum(layer, unit)
    # The last sum has no number of its own.
    layer = np.where((node == "resid_post") & (layer == NOT_SAID), layer.max(initial=NOT_SAID), layer)
    return {"node": node, "layer": layer, "head": head, "neuron": neuron}
