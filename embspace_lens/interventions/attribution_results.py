"""Results of TransformerLens's attribution, composition and logit-lens tools as tables that join with those of a lens."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import errors
from ..lens import EmbeddingLens
from ..tables.checks import check_choice, check_k
from ..tables.frames import tidy
from .components import NOT_APPLICABLE

# TransformerLens's labels: "embed", "3_attn_out", "L3H7", "L3N15", "final_post", "remainder".
LABELS = re.compile(r"^(?:L(?P<block>\d+)(?:H(?P<head>\d+)|N(?P<neuron>\d+))|(?:(?P<layer>\d+)_)?(?P<node>\w+))$")
STREAM_NODES = {"pre": "resid_pre", "mid": "resid_mid", "post": "resid_post", "final_post": "resid_post"}
METRICS = {"logits": "logit", "log_probs": "log_prob", "probs": "probability"}
Composition = Literal["Q", "K", "V"]
COMPOSITIONS: tuple[Composition, ...] = ("Q", "K", "V")


def attribution_frame(result: Any) -> pd.DataFrame:
    r"""Turn the result of direct logit attribution, or of attribution patching, into a table.

    Args:
        result: A `DirectLogitAttribution` of any unit, or an `AttributionResult` (its nodes).

    Returns:
        One row per (layer, node, head, neuron, pos, example), with `value`: for direct logit attribution the part of the logit (or
        of a difference of logits), for attribution patching the estimated effect. `node` is embed, pos_embed, attn_out, mlp_out,
        head, neuron, remainder, or resid_pre, resid_mid and resid_post for cumulative sums. A key that does not apply is −1.

    Raises:
        EmbspaceError: If it is neither result, or has a label that is not known.

    Example:
        >>> attribution_frame(result).merge(lens.ov(k=1), on=["layer", "head"])  # doctest: +SKIP

    References:
        Wang et al. (2023), Interpretability in the Wild. https://arxiv.org/abs/2211.00593
        Nanda (2023), Attribution Patching; Syed et al. (2023), https://arxiv.org/abs/2310.10348
    """
    if hasattr(result, "node_scores"):
        block = _node_scores(result.node_scores)
    elif hasattr(result, "attribution") and hasattr(result, "labels"):
        block = _labelled_attribution(result.attribution.detach().cpu().float(), list(result.labels))
    else:
        raise errors.not_result("attribution_frame", result, "a DirectLogitAttribution or an AttributionResult")
    keys = ["layer", "node", "head", "neuron", "pos", "example"]
    return tidy([*keys, "value"], [block]).sort_values(keys, kind="stable", ignore_index=True)


def composition_frame(scores: Any, *, mode: Composition) -> pd.DataFrame:
    r"""Turn composition scores into a table: how much a head reads from what an earlier head writes.

    .. math:: \frac{\lVert W_{OV}^{\mathrm{src}} W^{\mathrm{dest}} \rVert_F}{\lVert W_{OV}^{\mathrm{src}} \rVert_F \lVert W^{\mathrm{dest}} \rVert_F}

    Args:
        scores: What `model.all_composition_scores(mode)` returns: `CompositionScores`, or a tensor `[layer, head, layer, head]`.
        mode: `"Q"`, `"K"` or `"V"`, the same as in that call.

    Returns:
        One row per (composition, src_layer, src_head, layer, head), with `value`, for all sources in earlier blocks. In hybrid
        models, layers are block numbers.

    Raises:
        EmbspaceError: If the scores have another shape, or the mode is unknown.

    Example:
        >>> len(composition_frame(torch.rand(2, 4, 2, 4), mode="K"))
        16

    References:
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Virtual attention heads".
    """
    mode = check_choice("mode", mode, COMPOSITIONS)
    values = getattr(scores, "scores", scores)
    if not isinstance(values, Tensor) or values.ndim != 4 or values.shape[:2] != values.shape[2:]:
        raise errors.not_composition_scores(scores)
    layers = np.asarray(getattr(scores, "layer_indices", range(len(values))))
    src, src_head, dest, head = (index.ravel() for index in np.indices(values.shape))
    is_earlier = layers[src] < layers[dest]
    columns = {"src_layer": layers[src], "src_head": src_head, "layer": layers[dest], "head": head}
    block: dict[str, Any] = {name: column[is_earlier] for name, column in columns.items()}
    block |= {
        "composition": [mode] * int(is_earlier.sum()),
        "value": values.detach().cpu().flatten()[torch.tensor(is_earlier)],
    }
    keys = ["composition", "src_layer", "src_head", "layer", "head"]
    return tidy([*keys, "value"], [block]).sort_values(keys, kind="stable", ignore_index=True)


def logit_lens_frame(result: Any, lens: EmbeddingLens, *, k: int | None = None) -> pd.DataFrame:
    r"""Turn the result of a logit lens into a table with this package's token columns.

    Args:
        result: What `transformer_lens.tools.analysis.logit_lens` returns (TransformerLens 4).
        lens: The model's lens, for the exact text of each token.
        k: The number of tokens to keep for each state; all that the result holds by default.

    Returns:
        One row per (metric, layer, node, example, pos, rank), with the token and `value`. `metric` is logit, log_prob or
        probability; `node` is resid_pre, resid_mid or resid_post. `pos` and `example` are indices in the result, −1 if the result
        has only one. `rank` is the rank among the tokens that the result holds.

    Raises:
        EmbspaceError: If it is not the result of a logit lens, or k is larger than its number of tokens.

    Example:
        >>> logit_lens_frame(logit_lens(model, "w2 w3", top_k=5), lens)  # doctest: +SKIP

    References:
        nostalgebraist (2020), interpreting GPT: the logit lens.
    """
    if not (hasattr(result, "readout") and hasattr(result, "labels") and hasattr(result, "has_batch_dim")):
        raise errors.not_result("logit_lens_frame", result, "the result of logit_lens")
    readout = result.readout
    values = readout.values.detach().cpu().float()
    n = values.shape[-1]
    n_kept = n if k is None else check_k(k, n, "tokens that the result holds")
    keys_of_state, n_states = _middle_keys(values.shape[1:-1], ("example", "pos") if result.has_batch_dim else ("pos",))
    ids = readout.top_ids if readout.top_ids is not None else readout.selected_ids
    ids = torch.arange(n) if ids is None else ids.detach().cpu()
    if getattr(readout, "per_row_targets", False):
        ids = ids[..., None].expand(values.shape[1:])
    ids = ids.expand_as(values).reshape(-1, n)
    best, order = values.reshape(-1, n).sort(dim=1, descending=True, stable=True)
    nodes = _parse_labels(list(result.labels))
    n_rows = len(values) * n_states * n_kept
    block: dict[str, Any] = {name: np.repeat(nodes[name], n_states * n_kept) for name in ("node", "layer")}
    block |= {name: np.repeat(np.tile(column, len(values)), n_kept) for name, column in keys_of_state.items()}
    block |= {
        "rank": np.tile(np.arange(n_kept), len(values) * n_states),
        "token_index": ids.gather(1, order)[:, :n_kept].flatten(),
        "value": best[:, :n_kept].flatten(),
        "metric": [METRICS.get(readout.return_type, readout.return_type)] * n_rows,
    }
    keys = ["metric", "layer", "node", "example", "pos", "rank"]
    table = tidy([*keys, "token_index", "token_string", "value"], [block], lens.vocabulary.array)
    return table.sort_values(keys, kind="stable", ignore_index=True)


def _node_scores(scores: dict[Any, float]) -> dict[str, Any]:
    """Attribution patching: one score per node of the forward pass."""
    nodes = list(scores)
    return {
        "node": ["head" if node.kind == "attn_head_out" else node.kind for node in nodes],
        "layer": [NOT_APPLICABLE if node.layer is None else node.layer for node in nodes],
        "head": [NOT_APPLICABLE if node.head is None else node.head for node in nodes],
        "pos": [node.position for node in nodes],
        "neuron": [NOT_APPLICABLE] * len(nodes),
        "example": [NOT_APPLICABLE] * len(nodes),
        "value": list(scores.values()),
    }


def _labelled_attribution(values: Tensor, labels: list[str]) -> dict[str, Any]:
    """Direct logit attribution: values `[label]`, `[label, example]` or `[label, example, pos]`."""
    if values.ndim > 3:
        raise errors.bad_attribution_shape(tuple(values.shape))
    keys_of_state, n_states = _middle_keys(values.shape[1:], ("example", "pos"))
    block: dict[str, Any] = {name: np.repeat(column, n_states) for name, column in _parse_labels(labels).items()}
    block |= {name: np.tile(column, len(values)) for name, column in keys_of_state.items()}
    return block | {"value": values.flatten()}


def _middle_keys(shape: Sequence[int], names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], int]:
    """`example` and `pos` of every cell of the named dimensions, −1 for a missing dimension; and the number of cells."""
    n_cells = int(np.prod(shape, dtype=int))
    keys = dict(zip(names, (index.ravel() for index in np.indices(tuple(shape)))))
    return {name: keys.get(name, np.full(n_cells, NOT_APPLICABLE)) for name in ("example", "pos")}, n_cells


def _parse_labels(labels: list[str]) -> dict[str, np.ndarray]:
    """Node, layer, head and neuron of TransformerLens's labels."""
    columns: dict[str, list] = {"node": [], "layer": [], "head": [], "neuron": []}
    for label in labels:
        match = LABELS.match(label)
        if match is None:
            raise errors.unknown_host_label(label)
        numbers = {
            name: NOT_APPLICABLE if match[name] is None else int(match[name])
            for name in ("layer", "block", "head", "neuron")
        }
        node = "head" if match["head"] else "neuron" if match["neuron"] else match["node"]
        columns["node"].append(STREAM_NODES.get(node, node))
        columns["layer"].append(max(numbers["layer"], numbers["block"]))
        columns["head"].append(numbers["head"])
        columns["neuron"].append(numbers["neuron"])
    node, layer = np.array(columns["node"], dtype=object), np.array(columns["layer"], dtype=int)
    # The label of the stream after the last block, "final_post", has no layer.
    layer = np.where((node == "resid_post") & (layer == NOT_APPLICABLE), layer.max(initial=NOT_APPLICABLE), layer)
    return {"node": node, "layer": layer, "head": np.array(columns["head"]), "neuron": np.array(columns["neuron"])}
