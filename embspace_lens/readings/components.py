"""All weights of a model as one table: shape, norm, and what was folded in."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import EmbspaceError
from ..search.tiles import working_dtype
from ..space.embeddings import unembedding_rows
from ..tables.frames import tidy
from ..weights.effective import Weights
from ..weights.experts import NO_EXPERT
from ..weights.parameter_names import ATTENTION, MLP
from ..weights.weight_difference import WeightDifference
from .base import BaseLens, Block

UNREADABLE = {"rows": 0, "columns": 0, "n_heads": 0, "norm": np.nan, "dtype": "", "folded": ""}


def list_components(lens: BaseLens) -> pd.DataFrame:
    """List the weights of a model; see `EmbeddingLens.components`."""
    weights = lens.weights
    notes, is_difference = weights.notes(), isinstance(weights, WeightDifference)
    origin = f"dequantised from {weights.format_name}" if weights.format_name else ""

    def row(weight: str, layer: int = -1, expert: int = NO_EXPERT) -> Block:
        keys: dict[str, Any] = {"layer": layer, "expert": expert, "weight": weight}
        try:
            stored = weights.stored(weight, layer, expert)
            norm = _norm(weights, weight, layer, expert)
            dtype = weights.dtype_of_factors(weight, layer) or stored.dtype
        except EmbspaceError as reason:
            return keys | UNREADABLE | {"note": str(reason)}
        return keys | {
            "rows": stored.shape[-2],
            "columns": stored.shape[-1],
            "n_heads": len(stored) if stored.ndim == 3 else 0,
            "norm": norm,
            "dtype": str(dtype).removeprefix("torch."),
            "folded": weights.folded(weight, layer),
            "note": "; ".join(
                filter(None, ["unchanged" if is_difference and norm == 0 else "", notes.get(weight, ""), origin])
            ),
        }

    def rows() -> Iterator[Block]:
        yield from (row(name) for name in ("W_E", "W_U", *(["W_pos"] if weights.has_positions else [])))
        with_mlp = weights.layers_with("mlp")
        for layer in tqdm(range(weights.n_layers), desc="components", unit="layer", disable=None, leave=False):
            experts, is_gated = [NO_EXPERT], False
            if layer in with_mlp:
                try:
                    experts, is_gated = weights.experts(layer), weights.is_gated(layer)
                except EmbspaceError:  # the rows below hold the reason
                    is_gated = True
            for expert in experts:
                yield from (row(name, layer, expert) for name in MLP if name != "W_gate" or is_gated)
            yield from (row(name, layer) for name in ATTENTION)

    columns = ["layer", *lens.expert_column, "weight", "rows", "columns", "n_heads", "norm", "dtype", "folded", "note"]
    table = tidy(columns, rows(), kind="components")
    return table.sort_values(["layer", *lens.expert_column, "weight"], kind="stable", ignore_index=True)


def _norm(weights: Weights, weight: str, layer: int, expert: int) -> float:
    """The Frobenius norm of the effective weight."""
    if weight == "W_U":  # chunk by chunk: with its norm folded in, W_U is a large new matrix
        return float(torch.stack([rows.square().sum() for rows in unembedding_rows(weights).tiles()]).sum().sqrt())
    if layer < 0:
        effective: Tensor = getattr(weights, weight)
    else:
        effective = getattr(weights, weight)(layer, expert) if weight in MLP else getattr(weights, weight)(layer)
    return float(torch.linalg.vector_norm(effective, dtype=working_dtype(effective.dtype)))
