"""Tidy tables: from tensors and keys to dataframes. No other module makes a DataFrame."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from .columns import GLOSSARY, WEIGHTS

KINDS = (
    "tokens",  # directions as lists of tokens
    "pairs",  # heads as pairs of tokens
    "search",  # the directions that score one token highest
    "components",  # the weights of a model
    "contexts",  # texts in which a factor is active
    "saliency",  # how much each token of a context contributes to a code
    "alignment",  # similarities of the layers of two models
    "related_pairs",  # overlaps of the token lists of two weights
    "recall",  # overlaps of the token lists of parameters and hidden states
    "keep_k",  # what remains of vectors if only k scores are kept
    "stitch",  # accuracies of stitched models
    "displacement",  # the direction of the changes that fine-tuning made, by layer
    "importance",  # factors' importance curves
    "measurements",  # all others
)
"""The kinds of tables. Plots and displays read the kind, so that they need not infer it from the columns."""

_CATEGORIES = {
    "weight": WEIGHTS,
    "side": ("read", "write", "query", "key"),
    "match": ("nearest", "one_to_one"),
}


def tidy(
    columns: Sequence[str], blocks: Iterable[Mapping[str, Any]], strings: Any = None, *, kind: str = "measurements"
) -> pd.DataFrame:
    """Concatenate blocks of columns into one table, in the glossary's order and dtypes.

    Args:
        columns: The names of the table's columns, from the glossary; other columns of the blocks are dropped.
        blocks: Mappings from column to a tensor, an array or a list; a scalar is repeated along its block.
        strings: The vocabulary's strings as a pandas array. Columns `*_string` are then looked up by their `*_index`, all at
            once, and blocks need not hold them; they are empty for the index −1.
        kind: What the table holds, one of `KINDS`; stored in `frame.attrs["embspace_kind"]`.

    Returns:
        A plain frame with a RangeIndex, its rows in the order of the blocks. Without blocks it has no rows and the same columns.
        pandas drops `attrs` in some operations, such as a merge: code that reads the kind must also work without it.
    """
    assert kind in KINDS, kind
    order = [name for name in GLOSSARY if name in columns]
    looked_up = [name for name in order if strings is not None and name.endswith("_string")]
    parts: dict[str, list] = {name: [] for name in order if name not in looked_up}
    for block in blocks:
        length = max((len(values) for values in block.values() if not np.isscalar(values)), default=1)
        for name in parts:
            value = block[name]
            parts[name].append(_cells(name, [value] * length if np.isscalar(value) else value))
    cells = {name: _concatenate(name, column) for name, column in parts.items()}
    for name in looked_up:
        assert strings is not None
        index = cells[name.removesuffix("string") + "index"]
        cells[name] = strings.take(index, allow_fill=bool((index < 0).any()), fill_value="")
    frame = pd.DataFrame(cells, columns=order)
    frame.attrs["embspace_kind"] = kind
    return frame


GIVEN = "_given"
"""The suffix of columns that `join_rows` renames."""


def join_rows(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Add the columns of other rows to a table, whose column `row` is the position of each row among them.

    Args:
        table: A table made by `tidy`.
        rows: A table with other columns, also such that are not in the glossary.

    Returns:
        The table's columns, then the others in their order; a column that both have is added with the suffix `GIVEN`.
    """
    others = rows.iloc[table["row"].to_numpy()].reset_index(drop=True)
    names, taken = [], {*table.columns, *others.columns}
    for name in others.columns:
        new = name
        while new in table.columns or (new != name and new in taken):
            new += GIVEN
        taken.add(new)
        names.append(new)
    joined = pd.concat([table, others.set_axis(names, axis=1)], axis=1)
    joined.attrs = dict(table.attrs)
    return joined


def _cells(name: str, values: Any) -> Any:
    """Values of one column in its declared dtype."""
    dtype = GLOSSARY[name].dtype
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if dtype == "category":
        return pd.Categorical(values, categories=_CATEGORIES[name])
    if dtype == "str":
        return pd.Series(np.asarray(values, dtype=object), dtype="str")
    return np.asarray(values, dtype=dtype)


def _concatenate(name: str, parts: list) -> Any:
    """One column from the cells of all blocks."""
    if not parts:
        return _cells(name, [])
    if GLOSSARY[name].dtype == "category":
        return pd.Categorical.from_codes(np.concatenate([part.codes for part in parts]), categories=_CATEGORIES[name])
    if GLOSSARY[name].dtype == "str":
        return pd.concat(parts, ignore_index=True).array
    return np.concatenate(parts)
