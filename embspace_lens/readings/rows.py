"""The neurons, heads and sub-heads in the rows of any table, read row by row."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..search.tiles import chunk_rows
from ..tables.columns import WEIGHTS
from ..tables.frames import join_rows, tidy
from ..tables.selection import weight_names
from ..weights.parameter_names import ATTENTION, CIRCUITS, MLP, side_of
from .base import NOT_APPLICABLE, BaseLens, check_list_length, entry_columns, token_block
from .pair_search import pair_block, pair_columns, pair_search

KEYS = ("layer", "expert", "head", "neuron", "subhead")


class Unit(NamedTuple):
    """One direction, or one circuit of a head; −1 for keys that do not apply."""

    layer: int
    expert: int
    head: int
    neuron: int
    subhead: int
    weight: str


ENTRIES = ("", "dest_", "src_")
"""Prefixes of the columns of a list's tokens (or features), and of the two ends of a pair."""

Lists = dict[str, np.ndarray]
"""Columns of the best tokens, features or pairs of each unit, each `[n_units, k]`; −1 and empty where they do not apply."""


def read_rows(
    lens: BaseLens, rows: pd.DataFrame, *, suffix: str = "", k: int = 10, largest: bool = True
) -> pd.DataFrame:
    """Read the components in the rows of a table; see `EmbeddingLens.read`."""
    if not isinstance(rows, pd.DataFrame):
        raise errors.not_table("rows", rows, 'lens.search(" film")')
    if not rows.columns.is_unique:
        raise errors.repeated_columns("rows", rows.columns[rows.columns.duplicated()].unique())
    k = check_list_length(lens, k)
    present = [key for key in KEYS if key + suffix in rows.columns]
    if "layer" not in present or not {"neuron", "head"} & set(present) or "component" in rows.columns:
        raise errors.rows_without_units(rows.columns, suffix)
    has_tokens = "neuron" in present or "subhead" in present
    has_pairs = "head" in present and ("neuron" in present or "subhead" not in present)
    units_of_rows = [_units(lens, keys, has_pairs) for keys in _row_keys(rows, present, suffix)]
    units = list(dict.fromkeys(unit for of_row in units_of_rows for unit in of_row))
    lists = _read_units(lens, units, k, largest)

    number = {unit: i for i, unit in enumerate(units)}
    read = [(row, unit) for row, of_row in enumerate(units_of_rows) for unit in of_row]
    order = np.array([number[unit] for _, unit in read], dtype=np.int64)
    block = {key: np.repeat([getattr(unit, key) for _, unit in read], k) for key in (*KEYS, "weight")}
    block |= {"row": np.repeat([row for row, _ in read], k), "rank": np.tile(np.arange(k), len(read))}
    block |= {name: values[order].ravel() for name, values in lists.items()}
    columns = [*present, *(lens.expert_column if has_tokens else []), "row", "weight", "rank"]
    columns += [*(entry_columns(lens) if has_tokens else ()), *(pair_columns(lens) if has_pairs else ()), "score"]
    are_pairs = has_pairs and all(unit.weight in CIRCUITS for unit in units)
    kind = "pairs" if are_pairs else "tokens"
    table = tidy(columns, [block] if read else [], lens.vocabulary.array, kind=kind)
    used = {key + suffix for key in present} if not suffix else set()
    return join_rows(table, rows.drop(columns=[*used, *({"weight"} & set(rows.columns))]))


def _row_keys(rows: pd.DataFrame, present: list[str], suffix: str) -> Iterable[dict[str, Any]]:
    """The keys of each row as integers, −1 for missing ones; and its weight, "" if the table has none."""
    keys: dict[str, Any] = {}
    for key in KEYS:
        keys[key] = _whole_numbers(rows, key + suffix) if key in present else [NOT_APPLICABLE] * len(rows)
    weights = rows["weight"].astype(object) if "weight" in rows.columns else pd.Series("", index=rows.index)
    keys["weight"] = ["" if pd.isna(weight) else str(weight) for weight in weights]
    return (dict(zip(keys, values)) for values in zip(*keys.values(), strict=True))


def _whole_numbers(rows: pd.DataFrame, name: str) -> list[int]:
    """The keys in a column, −1 for missing ones; each row has a layer.

    Raises:
        EmbspaceError: If a key is not a whole number.
    """
    column: Any = rows[name]
    is_number = column.dtype.kind in "biufO"  # O: strings and mixed columns
    numbers: Any = pd.to_numeric(column, errors="coerce") if is_number else pd.Series(np.nan, index=rows.index)
    is_missing = column.isna() | (column.astype(object) == "")
    may_be_missing = is_missing & (not name.startswith("layer"))
    invalid = (~may_be_missing & ~(numbers % 1 == 0)).to_numpy().nonzero()[0]
    if len(invalid):
        value, row = column.tolist()[invalid[0]], rows.index.tolist()[invalid[0]]
        raise errors.not_whole_number(name, value, row, "rows")
    return numbers.fillna(NOT_APPLICABLE).astype("int64").tolist()


def _units(lens: BaseLens, keys: dict[str, Any], has_pairs: bool) -> list[Unit]:
    """The units of one row: of its weight, or of all weights that its component has."""
    layer, expert, head, neuron, subhead = (keys[key] for key in KEYS)
    weights = lens.weights
    if neuron >= 0:
        options: tuple[str, ...] = tuple(name for name in MLP if name != "W_gate" or weights.is_gated(layer))
        d_mlp = weights.d_mlp(layer, expert)
        if neuron >= d_mlp:
            raise errors.out_of_range("neuron", neuron, lens.name, d_mlp, f"neurons in layer {layer}")
        unit = Unit(layer, expert, NOT_APPLICABLE, neuron, NOT_APPLICABLE, "")
    elif head >= 0 and (subhead >= 0 or has_pairs):
        options = ATTENTION if subhead >= 0 else CIRCUITS
        weights.select_layers([layer], "attn")
        weights.select_heads([head])
        unit = Unit(layer, NOT_APPLICABLE, head, NOT_APPLICABLE, subhead, "")
    else:
        raise errors.row_without_unit(layer)
    names = weight_names(keys["weight"] or None, options)
    return [unit._replace(weight=name) for name in WEIGHTS if name in names]


def _read_units(lens: BaseLens, units: list[Unit], k: int, largest: bool) -> Lists:
    """The best k tokens or pairs of each unit. Every weight is read once per layer."""
    lists: Lists = {"score": np.zeros((len(units), k), dtype=np.float32)}
    for end in ENTRIES:
        lists[f"{end}token_index"] = np.full((len(units), k), NOT_APPLICABLE)
        if lens.space.has_features:
            lists[f"{end}feature_index"] = np.full((len(units), k), NOT_APPLICABLE)
            lists[f"{end}feature_label"] = np.full((len(units), k), "", dtype=object)
    for name in WEIGHTS:
        # In the order of layers, so that a layer's weight is made once.
        numbers = sorted((i for i, unit in enumerate(units) if unit.weight == name), key=lambda i: units[i])
        if name in CIRCUITS:
            _read_pairs(lens, name, units, numbers, lists, largest)
            continue
        step = chunk_rows(4 * lens.weights.d_model, scale=0.5)
        for batch in (numbers[start : start + step] for start in range(0, len(numbers), step)):
            x = _directions(lens, [units[i] for i in batch])
            block = token_block(lens, x, side_of(name), k, largest=largest)
            for column in lists.keys() & block.keys():
                lists[column][batch] = block[column].reshape(-1, k)
    return lists


def _directions(lens: BaseLens, units: list[Unit]) -> Float[Tensor, "n d_model"]:
    """The directions of units of one weight, which are sorted by layer."""
    parts, place, matrix = [], None, None
    for unit in units:
        if place != (unit.layer, unit.expert):
            place = unit.layer, unit.expert
            matrix = lens.weights.directions(unit.weight, *place)
        assert matrix is not None
        if unit.neuron < 0 and unit.subhead >= matrix.shape[1]:
            raise errors.out_of_range("subhead", unit.subhead, lens.name, matrix.shape[1], "dimensions of a head")
        parts.append(matrix[unit.neuron] if unit.neuron >= 0 else matrix[unit.head, unit.subhead])
    return torch.stack([part.to(parts[0].device) for part in parts])


def _read_pairs(lens: BaseLens, name: str, units: list[Unit], numbers: list[int], lists: Lists, largest: bool) -> None:
    """Fill in the best pairs of the heads of one circuit."""
    layer, search = None, None
    for i in numbers:
        unit = units[i]
        if unit.layer != layer:
            layer = unit.layer
            search = pair_search(lens, name, layer)
        assert search is not None
        block = pair_block(lens, search, name, unit.head, lists["score"].shape[1], largest=largest)
        for column, values in block.items():
            lists[column][i] = values
