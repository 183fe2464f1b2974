"""What a table holds, and its rows grouped by neuron, head or direction, with the names that readers see."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .. import errors
from ..tables.columns import GLOSSARY
from .tokens import visible

TOKEN = ("token_index", "token_string")
PAIR = ("dest_token_index", "dest_token_string", "src_token_index", "src_token_string")

REQUIRED = {
    "components": ("weight", "rows", "columns", "norm"),
    "search": (*TOKEN, "score", "neuron", "head", "weight"),
    "pairs": (*PAIR, "score"),
    "tokens": (*TOKEN, "score"),
    "contexts": ("factor", "layer", "rank", "code", "before", "token_string", "after"),
    "saliency": ("factor", "layer", "rank", "offset", "token_string", "saliency"),
    "related_pairs": ("layer", "pair", "sample", "jaccard", "low", "high", "n"),
    "recall": ("target", "layer", "weight", "sample", "recall", "low", "high", "n"),
    "keep_k": ("source", "inverse", "k", "similarity", "n"),
    "stitch": ("recipient", "donor", "kernel", "keep", "accuracy", "low", "high", "n"),
    "displacement": ("layer", "weight", "sample", "share", "low", "high", "n"),
    "importance": ("factor", "layer", "importance"),
    "alignment": ("weight", "layer_a", "layer_b", "correlation"),
}
"""The columns that each kind of table must have, in the order in which `kind` compares them with a table's columns."""

TOKEN_KINDS = ("tokens", "pairs", "search")
_WITH_OTHER_COLUMNS = ("components", *TOKEN_KINDS)
"""Kinds that are recognised beside columns that are not in the glossary, which a merge may add."""

_MAKERS = {
    "tokens": "neurons(), subheads(), singular() or directions()",
    "pairs": "ov() or qk()",
    "search": "search()",
    "components": "components()",
    "related_pairs": "evidence.related_pairs()",
    "recall": "evidence.hidden_state_recall()",
    "keep_k": "evidence.keep_k()",
    "stitch": "stitch_sweep()",
    "displacement": "displacement()",
    "alignment": "align()",
}
"""The functions that make each kind of table, for messages."""

KEYS = ("layer", "expert", "head", "neuron", "subhead", "direction", "factor", "weight", "component", "side")
MEASURES = {name for name, column in GLOSSARY.items() if column.dtype == "float32"}
MEASURES -= {"score", "singular_value", "norm"}  # columns of tokens, directions and weights

VERBS = {
    "W_in": "reads",
    "W_gate": "gates",
    "W_out": "writes",
    "W_Q": "queries",
    "W_K": "keys",
    "W_V": "values",
    "W_O": "writes",
    "W_OV": "moves",
    "W_QK": "attends",
}
"""What each weight does, in one word."""


class TableGroup(NamedTuple):
    """The rows of one neuron, head or direction for one of its weights, best first."""

    name: str
    weight: str
    rows: pd.DataFrame


def kind(df: Any) -> str:
    """What a table holds: one of `frames.KINDS`.

    The kind in `df.attrs` is returned if the table still has that kind's columns. Otherwise the kind is inferred from the
    columns, because pandas drops `attrs` in merges.

    Raises:
        EmbspaceError: If it is not a table of this package.
    """
    columns = set(map(str, getattr(df, "columns", ())))
    stored = getattr(df, "attrs", {}).get("embspace_kind")
    if stored in REQUIRED and columns.issuperset(REQUIRED[stored]):
        return stored
    ours = columns <= set(GLOSSARY)
    for name, required in REQUIRED.items():
        if name == "alignment" and columns != set(required):
            continue  # a table of matched neurons also has these columns
        if columns.issuperset(required) and (ours or name in _WITH_OTHER_COLUMNS):
            return name
    if ours and columns & MEASURES:
        return "measurements"
    raise errors.not_a_table(list(map(str, getattr(df, "columns", ()))))


def check_kind(df: Any, caller: str, kinds: Sequence[str] = ("tokens", "pairs")) -> str:
    """The table's kind, which must be one that the caller accepts.

    Raises:
        EmbspaceError: If it is of another kind.
    """
    table_kind = kind(df)
    if table_kind not in kinds:
        accepted = [_MAKERS.get(name, name) for name in kinds]
        raise errors.wrong_kind(caller, accepted, _MAKERS.get(table_kind, table_kind))
    return table_kind


def check_columns(df: Any, table_kind: str, caller: str) -> None:
    """Check that a table has rows, and the columns of a kind.

    Raises:
        EmbspaceError: If a column is missing, or the table is empty.
    """
    missing = [name for name in REQUIRED[table_kind] if name not in getattr(df, "columns", ())]
    if missing:
        raise errors.missing_columns(caller, missing)
    if df.empty:
        raise errors.empty_table()


def key_columns(df: pd.DataFrame) -> list[str]:
    """The columns that identify a group."""
    return [name for name in KEYS if name in df.columns]


def name_of(row: Mapping[Any, Any]) -> str:
    """`L3N120`, `L3E2N120`, `L2H5`, `L2H5.17`, `F30`, or the name of a direction.

    Args:
        row: Columns and values of a row; −1 or NaN in a column leaves out its part.
    """

    def part(letter: str, column: str) -> str:
        index = row.get(column, -1)
        return f"{letter}{index}" if index == index and index >= 0 else ""

    if "direction" in row:
        return visible(str(row["direction"]))
    name = part("L", "layer") + part("E", "expert") + part("H", "head") + part(".", "subhead") + part("N", "neuron")
    return name + part("F", "factor")


def weight_of(row: Mapping[Any, Any]) -> str:
    """`W_out`; for a singular direction `W_OV 0 read`."""
    parts = [row[column] for column in ("weight", "component", "side") if column in row]
    return " ".join(map(str, parts))


def noun_of(df: pd.DataFrame) -> str:
    """What a group of the table is, in one word; empty if all rows are one group."""
    columns = set(df.columns)
    if columns >= {"neuron", "head"}:
        return "component"
    nouns = {"neuron": "neuron", "subhead": "sub-head", "direction": "direction", "factor": "factor", "head": "head"}
    return next((noun for column, noun in nouns.items() if column in columns), "layer" if "layer" in columns else "")


def count_groups(df: pd.DataFrame) -> int:
    """How many groups a table holds."""
    return len(df[key_columns(df)].drop_duplicates())


def first_groups(df: pd.DataFrame, n: int | None) -> pd.DataFrame:
    """The rows of a table's first n groups (all for None)."""
    names = key_columns(df)
    if n is None or not names:
        return df
    is_first = df.groupby(names, sort=False, observed=True, dropna=False).ngroup() < n
    return df.loc[is_first.to_numpy()]


def table_groups(df: pd.DataFrame, n: int | None = None) -> Iterator[TableGroup]:
    """The first n groups of a table (all for None), in the table's order, each with its rows, best first."""
    names = key_columns(df)
    rows = first_groups(df, n)
    if not names:
        if len(rows):
            yield TableGroup("", "", rows)
        return
    if "rank" in rows.columns:
        order = rows.groupby(names, sort=False, observed=True, dropna=False).ngroup()
        rows = rows.iloc[np.lexsort((rows["rank"].to_numpy(), order.to_numpy()))]
    for values, group in rows.groupby(names, sort=False, observed=True, dropna=False):
        keys = dict(zip(names, values if isinstance(values, tuple) else (values,)))
        yield TableGroup(name_of(keys), weight_of(keys), group)


def pair_ends(rows: pd.DataFrame) -> tuple[str, str]:
    """The two ends of a pair, in the order of the arrow: source → promoted for W_OV, query → key for W_QK."""
    query_first = "weight" in rows.columns and len(rows) and rows["weight"].iloc[0] == "W_QK"
    return ("dest", "src") if query_first else ("src", "dest")


def in_glossary_order(columns: list[str]) -> list[str]:
    """Column names in the order of the package's tables; other names last."""
    order = {name: i for i, name in enumerate(GLOSSARY)}
    return sorted(columns, key=lambda name: order.get(name, len(order)))
