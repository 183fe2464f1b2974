"""Tensors and keys → tidy frames. No other module builds a DataFrame."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from .columns import GLOSSARY, WEIGHTS

KINDS = (
    "tokens",
    "pairs",
    "search",
    "components",
    "contexts",
    "saliency",
    "alignment",
    "related_pairs",
    "recall",
    "keep_k",
    "stitch",
    "displacement",
    "importance",
    "measurements",
)
"""What a table may hold, so that `show`, `label` and `plot` need not infer it from the columns."""

_CATEGORIES = {
    "weight": WEIGHTS,
    "side": ("read", "write", "query", "key"),
    "match": ("nearest", "one_to_one"),
}


def _cells(name: str, values: Any) -> Any:
    """One column in its declared dtype, whatever it was given as."""
    dtype = GLOSSARY[name].dtype
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if dtype == "category":
        return pd.Categorical(values, categories=_CATEGORIES[name])
    if dtype == "str":
        return pd.Series(np.asarray(values, dtype=object), dtype="str")
    return np.asarray(values, dtype=dtype)


def tidy(
    columns: Sequence[str], blocks: Iterable[Mapping[str, Any]], strings: Any = None, *, kind: str = "measurements"
) -> pd.DataFrame:
    """Concatenate blocks of columns into one table with `columns`, in the glossary's order and dtypes.

    Args:
        columns: Names from the glossary: the table's columns, whatever the blocks hold.
        blocks: Mappings from column to a tensor, array or list; a scalar is repeated along its block.
        strings: The vocabulary's strings as a pandas array; columns `*_string` are then looked up by their `*_index`, all
            at once, and blocks need not hold them.
        kind: What the table holds, one of `KINDS`, kept in `frame.attrs["embspace_kind"]`.

    Returns:
        A plain frame with a RangeIndex, its rows in the order of the blocks. No blocks: no rows, the same columns.
    """
    order = [name for name in GLOSSARY if name in columns]
    looked_up = [name for name in order if strings is not None and name.endswith("_string")]
    gathered: dict[str, list] = {name: [] for name in order if name not in looked_up}
    for block in blocks:
        length = max((len(v) for v in block.values() if not np.isscalar(v)), default=1)
        for name in gathered:
            value = block[name]
            gathered[name].append(_cells(name, [value] * length if np.isscalar(value) else value))
    cells = {name: _joined(name, parts) for name, parts in gathered.items()}
    for name in looked_up:
        assert strings is not None
        cells[name] = strings.take(cells[name.removesuffix("string") + "index"])
    frame = pd.DataFrame(cells, columns=order)
    frame.attrs["embspace_kind"] = kind
    return frame


def _joined(name: str, parts: list) -> Any:
    if not parts:
        return _cells(name, [])
    if GLOSSARY[name].dtype == "category":
        return pd.Categorical.from_codes(np.concatenate([part.codes for part in parts]), categories=_CATEGORIES[name])
    if GLOSSARY[name].dtype == "str":
        return pd.concat(parts, ignore_index=True).array
    return np.concatenate(parts)
